"""What of a fleet is fresh, stale, missing or invalid; its front door is ``fleet.plan``."""
