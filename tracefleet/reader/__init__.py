"""Open a conversion and call it; its front door is ``open`` in ``open``."""
