"""Build the image without Docker and check it in containers: see ``__main__``."""
