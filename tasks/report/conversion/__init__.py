"""The report of one conversion: ``page.html_report`` and ``markdown.markdown_report``."""
