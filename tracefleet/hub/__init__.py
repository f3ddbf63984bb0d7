"""Hugging Face's hub: publish a copy of a conversion; the front door is ``push`` in ``push``.

``card`` writes the page that people see, ``repository`` says what is there and what is missing.
"""
