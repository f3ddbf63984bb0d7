"""A source becomes a verified folder; its front door is ``checkpoint``."""
