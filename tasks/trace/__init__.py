"""A model becomes one archive; its front door is ``trace_checkpoint`` in ``record``."""
