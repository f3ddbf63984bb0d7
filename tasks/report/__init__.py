"""Pages for people: the front door is ``conversion`` for one conversion, ``fleet`` for a fleet."""
