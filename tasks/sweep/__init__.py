"""Tiny checkpoints of every model type that transformers knows, for sweeping the gate over them.

The front door is ``build`` in ``tiny``.
"""
