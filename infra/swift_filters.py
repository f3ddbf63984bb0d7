"""Replacements, in one process, for services that Swift expects on other machines."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any
from urllib.parse import parse_qs

from eventlet import semaphore

Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


class Cache:
    """The part of memcached's interface that Swift uses."""

    # Unbounded: Swift stores a few facts about each bucket.
    def __init__(self) -> None:
        self._held: dict[str, tuple[Any, float]] = {}

    def get(self, key: str, **_: Any) -> Any:
        """Return the value, or None if there is none or it has expired."""
        value, until = self._held.get(key, (None, 0.0))
        return value if until > monotonic() else None

    def set(self, key: str, value: Any, time: float = 0, **_: Any) -> None:
        """Store the value for ``time`` seconds; 0 means for ever, as in memcached."""
        self._held[key] = (value, monotonic() + time if time else math.inf)

    def delete(self, key: str, **_: Any) -> None:
        """Delete the value."""
        self._held.pop(key, None)


def add_cache(app: App) -> App:
    """Give each request of ``app`` the same `Cache`."""
    cache = Cache()

    def call(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["swift.cache"] = cache
        return app(environ, start_response)

    return call


def serialise_writes(app: App) -> App:
    """Let only one request at a time write a key.

    This makes ``If-None-Match: *`` atomic as long as only this process serves the folder. It does
    not cover the keys of a multi-object delete.
    """
    # Swift checks the header when a write begins: of concurrent writes, several would succeed.
    locks: defaultdict[str, Any] = defaultdict(semaphore.Semaphore)
    waiting: Counter[str] = Counter()

    def call(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if not _writes_key(environ["REQUEST_METHOD"], path, environ.get("QUERY_STRING", "")):
            return app(environ, start_response)
        waiting[path] += 1
        try:
            with locks[path]:
                return list(app(environ, start_response))
        finally:
            waiting[path] -= 1
            if not waiting[path]:
                del waiting[path], locks[path]

    return call


def _writes_key(method: str, path: str, query: str) -> bool:
    """Whether a request creates, completes or deletes an object; uploading a part does not."""
    _, _, key = path.removeprefix("/").partition("/")
    fields = parse_qs(query, keep_blank_values=True)
    if method == "POST":
        return bool(key) and "uploadId" in fields
    return bool(key) and method in ("PUT", "DELETE") and "uploadId" not in fields
