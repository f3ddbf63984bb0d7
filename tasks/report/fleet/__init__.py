"""The report of a fleet run: ``page.fleet_report`` and ``markdown.fleet_markdown``."""
