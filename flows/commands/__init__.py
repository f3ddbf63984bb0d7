"""``python -m flows …``: a module for each command, no logic of their own.

The front door is ``add_command`` in ``plan``, as in every other command, for ``flows.__main__``.
"""
