"""A folder becomes an eager model and its inputs; ``preflight.inspect`` and ``load.load_eager``."""
