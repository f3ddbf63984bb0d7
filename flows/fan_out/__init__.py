"""How a fleet's entries reach the pools and come back as rows."""
