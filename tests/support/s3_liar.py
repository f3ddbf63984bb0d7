"""moto's server, lying or limited as other servers are, as a test orders.

Started by ``python -m tests.support.s3_liar -H … -p …``; told what to be by ``POST /_behave`` with
JSON (`behave`). Every field is off unless it is given:

* ``ignore_completion``: If-None-Match is ignored where a multipart upload is completed (measured
  on Ceph's radosgw 16).
* ``ignore_all``: it is ignored altogether (radosgw 16 with versioning enabled, s3rver, rclone).
* ``stuck``: what was removed can't be created by a conditional write: 412, and 404 when it is read
  (radosgw 16 with versioning suspended).
* ``no_messages``: errors have a code and no ``<Message>`` (radosgw 16).
* ``quota``: most bytes that one PUT may bring; more is QuotaExceeded.
* ``revoked``: after so many PUTs the keys are not known any more: InvalidAccessKeyId.
"""

from __future__ import annotations

import io
import json
import re
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

import moto.server
from moto.s3.responses import S3Response

from tests.support.moto_atomic import make_atomic

Answer = Iterable[bytes]
_CONDITION = "HTTP_IF_NONE_MATCH"


def behave(url: str, **orders: int) -> None:
    """Tell the server at ``url`` what to be from now on."""
    data = json.dumps(orders).encode()
    urllib.request.urlopen(f"{url}/_behave", data).close()


class Liar:
    """A WSGI application around moto's."""

    def __init__(self, server: Callable[..., Answer]) -> None:
        self._server, self._lock = server, threading.Lock()
        self._orders: dict[str, int] = {}
        self._removed: set[str] = set()
        self._puts = 0

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Answer:
        if environ["PATH_INFO"] == "/_behave":
            self._orders, self._puts = json.loads(_read_body(environ)), 0
            self._removed.clear()
            start("204 No Content", [])
            return []
        with self._lock:
            refusal = self._refuse(environ)
        if refusal is not None:
            return _answer(environ, start, *refusal)
        self._forget_conditions(environ)
        answer = self._server(environ, start)
        return map(_blank_messages, answer) if self._orders.get("no_messages") else answer

    def _refuse(self, environ: dict[str, Any]) -> tuple[str, str] | None:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self._puts += method == "PUT"
        if self._puts > self._orders.get("revoked", sys.maxsize):
            return "403 Forbidden", "InvalidAccessKeyId"
        if self._orders.get("stuck"):
            self._note_removed(environ)
        if method != "PUT":
            return None
        if path in self._removed and _CONDITION in environ:
            return "412 Precondition Failed", "PreconditionFailed"
        self._removed.discard(path)
        if int(environ.get("CONTENT_LENGTH") or 0) > self._orders.get("quota", sys.maxsize):
            return "403 Forbidden", "QuotaExceeded"
        return None

    def _note_removed(self, environ: dict[str, Any]) -> None:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] == "DELETE":
            self._removed.add(path)
        elif environ["REQUEST_METHOD"] == "POST" and "delete" in environ["QUERY_STRING"]:
            body = _read_body(environ)
            environ["wsgi.input"] = io.BytesIO(body)
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            self._removed |= {f"{path.rstrip('/')}/{key}" for key in keys}

    def _forget_conditions(self, environ: dict[str, Any]) -> None:
        completes = environ["REQUEST_METHOD"] == "POST" and "uploadId" in environ["QUERY_STRING"]
        if self._orders.get("ignore_all") or (completes and self._orders.get("ignore_completion")):
            environ.pop(_CONDITION, None)


def _read_body(environ: dict[str, Any]) -> bytes:
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return body


def _answer(environ: dict[str, Any], start: Callable[..., Any], status: str, code: str) -> Answer:
    """Refuse as radosgw does: with a code and no message; to HEAD with nothing."""
    _read_body(environ)
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code></Error>'
    body = b"" if environ["REQUEST_METHOD"] == "HEAD" else text.encode()
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _blank_messages(body: bytes) -> bytes:
    """Put as many spaces in the place of a message: the answer's length has been told."""
    return re.sub(rb"<Message>.*?</Message>", lambda found: b" " * len(found[0]), body)


if __name__ == "__main__":
    make_atomic(S3Response)
    real = moto.server.DomainDispatcherApplication
    moto.server.DomainDispatcherApplication = lambda backend: Liar(real(backend))
    moto.server.main()
