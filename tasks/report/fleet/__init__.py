"""The report of a fleet run; its front doors are ``fleet_report`` in ``page`` and ``markdown``."""
