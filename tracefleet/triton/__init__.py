"""Triton: model repositories of conversions; the front door is ``add_model`` in ``repository``.

``config`` describes a conversion, in the store too; ``check`` asks a running server.
"""
