"""The report of a fleet; its front door is ``fleet_report`` in ``page``."""
