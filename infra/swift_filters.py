"""What Swift gets from its neighbours on many machines, for one process."""

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
    """What Swift asks of memcached, within this process.

    It holds a few facts about each bucket, so that it needs no bound.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[Any, float]] = {}

    def get(self, key: str, **_: Any) -> Any:
        """Return the value, or None where there is none or it is too old."""
        value, until = self._held.get(key, (None, 0.0))
        return value if until > monotonic() else None

    def set(self, key: str, value: Any, time: float = 0, **_: Any) -> None:
        """Hold the value for ``time`` seconds; 0 means for ever (memcached's rule)."""
        self._held[key] = (value, monotonic() + time if time else math.inf)

    def delete(self, key: str, **_: Any) -> None:
        """Forget the value."""
        self._held.pop(key, None)


def with_cache(app: App) -> App:
    """Give each request of ``app`` the same `Cache`."""
    cache = Cache()

    def cached(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["swift.cache"] = cache
        return app(environ, start_response)

    return cached


def one_writer_per_key(app: App) -> App:
    """Let one request at a time write a key.

    Swift checks ``If-None-Match: *`` when a write begins: of several that run at once, several
    win. One after the other, exactly one does. It holds as long as this process alone serves the
    folder, and not for the keys of a multi-object delete.
    """
    locks: defaultdict[str, Any] = defaultdict(semaphore.Semaphore)
    waiting: Counter[str] = Counter()

    def locked(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
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

    return locked


def _writes_key(method: str, path: str, query: str) -> bool:
    """Whether a request makes, completes or deletes an object; parts of an upload don't."""
    _, _, key = path.removeprefix("/").partition("/")
    fields = parse_qs(query, keep_blank_values=True)
    if method == "POST":
        return bool(key) and "uploadId" in fields
    return bool(key) and method in ("PUT", "DELETE") and "uploadId" not in fields
