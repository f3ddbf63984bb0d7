"""Find out what of a fleet is fresh, stale, missing or invalid: call ``fleet.plan``."""
