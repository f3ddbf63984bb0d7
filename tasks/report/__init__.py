"""Pages for people, and the same as markdown for Prefect's UI.

The front doors are ``conversion`` for one conversion and ``fleet`` for a fleet; ``templates`` has
what the pages look like.
"""
