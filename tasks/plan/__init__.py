"""What of a fleet is fresh, stale, missing or invalid; the front door is ``plan`` in ``fleet``."""
