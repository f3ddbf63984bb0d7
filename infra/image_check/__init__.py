"""Build the image without Docker, and try it out: see ``__main__``."""
