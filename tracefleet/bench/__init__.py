"""Compare conversions with what they replace; the front door is ``bench_command`` in ``command``.

Peers are optional packages: none is imported before the command runs, and one that is missing is
named with its reason.
"""
