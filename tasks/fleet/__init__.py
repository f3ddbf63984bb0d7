"""Fleet files and the requests in them; read by ``read_fleet`` in ``spec``."""
