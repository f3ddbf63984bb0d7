"""The pipeline's commands in ``tracefleet``: a module for each, no logic of their own.

The front door is ``add_command`` in ``plan``, as in every other command; ``all`` has them together.
"""
