"""``python -m flows …``: one module for each command, no logic of their own."""
