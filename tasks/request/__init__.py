"""What is to be converted, and how; the front door is ``make_request`` in ``conversion``."""
