"""How each step of a conversion is done: plain functions on data, paths and models, no Prefect.

Each package names its front door; the order of imports between them is in
``tests/support/import_graph.py``.
"""
