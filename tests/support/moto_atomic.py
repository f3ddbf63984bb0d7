"""moto's server with conditional writes that have one winner.

Started by ``python -m tests.support.moto_atomic …``.

moto looks whether a key is there and stores it a little later: of several threads that write one
key with ``If-None-Match: *`` two can win (in 5 of 150 rounds of 16 with a switch interval of 1 µs;
once in a hundred runs of the suite without). S3 has one winner: here looking and storing go under
one lock. The body has arrived by then, so that no slow client holds it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from moto.s3.responses import S3Response
from moto.server import main

#: Methods of ``S3Response`` that look for a key and then store it.
WRITES = ("put_object", "_key_response_post")
_LOCK = threading.RLock()


def _one_at_a_time(write: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(write)
    def locked(*arguments: Any, **options: Any) -> Any:
        with _LOCK:
            return write(*arguments, **options)

    return locked


def make_atomic(responses: type) -> None:
    """Put looking for a key and storing it under one lock."""
    for name in WRITES:
        setattr(responses, name, _one_at_a_time(getattr(responses, name)))


if __name__ == "__main__":
    make_atomic(S3Response)
    main()
