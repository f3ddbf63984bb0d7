"""How a fleet's entries reach the pools and come back; the front door is ``convert_entries``."""
