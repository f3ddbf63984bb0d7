"""Requests: what is to be converted, and how. Made by ``make_request`` in ``conversion``."""
