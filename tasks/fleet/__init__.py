"""A fleet file and what it asks for; its front door is ``read_fleet`` in ``spec``."""
