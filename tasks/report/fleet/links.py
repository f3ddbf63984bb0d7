"""Which addresses a fleet's report links to, and how: relative within a store.

The addresses come with the run's facts and may hold anything: what isn't a plain address of a
store or a site stays text.
"""

from __future__ import annotations

import posixpath
from urllib.parse import quote, urlsplit

_SCHEMES = ("", "http", "https", "file", "s3")
#: What may stand in an address as it is. No quotes, brackets, spaces or backslashes.
_KEPT = "/:?#@!$&+,;=%~"


def safe_url(url: str, schemes: tuple[str, ...] = _SCHEMES) -> str | None:
    """Return the address as it may stand in a link; None: it must stay text."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return None
    # An address without a scheme but with a host would follow the scheme of the page.
    if parts.scheme not in schemes or (parts.netloc and not parts.scheme):
        return None
    return quote(url.strip(), safe=_KEPT)


def href(url: str, base_url: str = "") -> str | None:
    """Return what a link says, relative where the address lies in the report's own store.

    A relative link still leads home when the store is read through another address, such as
    a bucket behind a web server, or a copy on a disk.

    Args:
        url: where the link leads.
        base_url: folder of the report, ``<store>/reports/<run>``.
    """
    safe = safe_url(url)
    base = (safe_url(base_url) or "").rstrip("/")
    store = base.rsplit("/", 2)[0] if base.count("/") > 2 else ""
    if safe is None or not store or not safe.startswith(f"{store}/"):
        return safe
    path = posixpath.relpath(safe.removeprefix(f"{store}/"), base.removeprefix(f"{store}/"))
    # A file named `javascript:…` in this very folder must not turn into a scheme.
    return path if path.startswith("../") else f"./{path}"
