"""The report of a conversion; its front doors are ``html_report`` in ``page`` and ``markdown``."""
