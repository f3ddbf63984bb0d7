"""What people ask for; its front door is ``make_request`` in ``conversion``."""
