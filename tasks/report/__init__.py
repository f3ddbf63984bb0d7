"""Pages for people, and markdown for Prefect's UI: of one conversion, and of a fleet.

The front doors are ``conversion`` and ``fleet``; ``templates`` has what they look like.
"""
