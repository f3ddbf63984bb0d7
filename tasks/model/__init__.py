"""A folder becomes an eager model and its inputs; the front door is ``load_eager`` in ``load``."""
