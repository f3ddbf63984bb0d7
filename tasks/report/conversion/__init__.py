"""The report of a conversion; its front doors are ``render_html`` in ``page`` and ``markdown``."""
