"""Files, manifest, channel; its front door is ``publish`` in ``conversion``."""
