"""Fleet files and the requests in them; the front door is ``read_fleet`` in ``spec``."""
