"""Try the conversion on tiny checkpoints of every model type that transformers has.

The command calls ``run_sweep`` in ``run``; each checkpoint is made by ``build`` in ``tiny``.
"""
