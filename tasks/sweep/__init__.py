"""Every architecture through the whole conversion; the front door is ``run_sweep`` in ``run``."""
