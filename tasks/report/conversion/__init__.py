"""The report of one conversion; its front door is ``html_report`` in ``page``."""
