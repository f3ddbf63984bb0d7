"""A proxy on loopback that fails on purpose, to stand between an S3 client and a server.

It passes requests on as they are, the ``Host`` header too: a client that signs for the proxy's
address sends a signature that the server accepts, as it sees the same header. Bodies are held in
memory. A server that is down looks like a reset.

    with FaultProxy(server.url) as proxy:
        proxy.set(Rule("PUT", r"/manifest\\.json$", LOST_RESPONSE, times=1))
        client = server.at(proxy.url).client()
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.support.faults import Fault, Rule, Seen

_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "expect"}
_SERVER_SECONDS = 120.0
_DELIVERY_SECONDS = 0.05


class FaultProxy:
    """A context manager; ``url`` is where it listens, ``seen`` what it saw since the last set."""

    def __init__(self, upstream: str, *rules: Rule) -> None:
        parts = urlsplit(upstream)
        self.upstream = (str(parts.hostname), int(parts.port or 80))
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self.set(*rules)
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def set(self, *rules: Rule) -> None:
        """Replace the rules; the first that matches and is not used up applies."""
        with self._lock:
            self._rules, self._matched = rules, dict.fromkeys(range(len(rules)), 0)
            self.seen: list[Seen] = []

    def fault_for(self, method: str, path: str) -> Fault | None:
        """Note the request and say what shall become of it."""
        with self._lock:
            fault = next(self._due(method, path), None)
            self.seen.append(Seen(method, path, fault.name if fault else None))
            return fault

    def faults(self) -> list[str]:
        """The names of the faults that were met, in order: a test's proof that it tested them."""
        return [request.fault for request in self.seen if request.fault]

    def _due(self, method: str, path: str) -> Iterator[Fault]:
        for index, rule in enumerate(self._rules):
            if not rule.matches(method, path):
                continue
            last = None if rule.times is None else rule.after + rule.times
            if last is not None and self._matched[index] >= last:
                continue  # used up: the next rule's turn
            self._matched[index] += 1
            if self._matched[index] > rule.after:
                yield rule.fault
                return

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)


class _ResetError(Exception):
    """End the connection with RST."""


@dataclass(frozen=True)
class _Answer:
    code: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (_ResetError, OSError, http.client.HTTPException):
            self.close_connection = True
            linger = struct.pack("ii", 1, 0)  # for zero seconds: the kernel sends RST at close
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.rfile.close()  # else the socket stays open, and is shut down properly later
            self.connection.close()

    def handle_expect_100(self) -> bool:
        """Say nothing yet: whether to go on is the fault's decision."""
        return True

    def _serve(self) -> None:
        fault = self.server.proxy.fault_for(self.command, self.path)
        name = fault.name if fault else ""
        if name == "reset_before":
            raise _ResetError
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body = self._body(half=name == "reset_mid_upload")
        if fault and name == "status":
            return self._send(_error(fault))
        answer = self._forward(_flipped(body) if name == "corrupt_upload" else body, name)
        if name == "lost_response":
            raise _ResetError
        if fault and name == "slow_first_byte":
            self.server.proxy.closing.wait(fault.seconds)
        return self._send(answer, fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815

    def _body(self, *, half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(self._chunks(half=half))
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length // 2 if half else length)

    def _chunks(self, *, half: bool) -> Iterator[bytes]:
        """The chunks of a body, or half of the first one."""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data = self.rfile.read(size)
            if half:
                yield data[: size // 2]
                return
            yield data
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers

    def _forward(self, body: bytes, fault: str) -> _Answer:
        """Pass the request on, and return the server's whole answer."""
        upstream = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=_SERVER_SECONDS)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in _passed_on(self.headers):
                upstream.putheader(name, value)
            if self.headers.get("Transfer-Encoding"):
                upstream.putheader("Transfer-Encoding", "chunked")
                upstream.endheaders(iter([body] if body else []), encode_chunked=True)
            else:
                upstream.endheaders(body or None)
            if fault == "reset_mid_upload":
                raise _ResetError
            answer = upstream.getresponse()
            headers = _passed_on(answer.headers)
            return _Answer(answer.status, answer.reason, headers, answer.read())
        finally:
            upstream.close()

    def _send(self, answer: _Answer, fault: Fault | None = None) -> None:
        name = fault.name if fault else ""
        self._send_head(answer)
        if self.command == "HEAD" or not answer.body:
            return
        body = _flipped(answer.body) if name == "corrupt" else answer.body
        half = fault.bytes if fault and name == "cut" else len(body) // 2
        self.wfile.write(body[:half])
        if fault and name == "stall":
            self.server.proxy.closing.wait(fault.seconds)
        if name == "reset_mid_body" or (fault and fault.reset):
            time.sleep(_DELIVERY_SECONDS)  # RST overtakes what the client hasn't read yet
            raise _ResetError
        if name in ("truncate", "cut"):
            self.close_connection = True
            return
        self.wfile.write(body[half:])

    def _send_head(self, answer: _Answer) -> None:
        self.send_response_only(answer.code, answer.reason)
        for name, value in answer.headers:
            self.send_header(name, value)
        told = any(name.lower() == "content-length" for name, _ in answer.headers)
        if not told and answer.code not in (204, 304) and self.command != "HEAD":
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()


def _passed_on(headers: Message) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP]


def _flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :] if body else body


def _error(fault: Fault) -> _Answer:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{fault.s3_code}</Code><Message>ordered by a test</Message></Error>"
    ).encode()
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    if fault.retry_after is not None:
        headers.append(("Retry-After", str(fault.retry_after)))
    reason = http.client.responses.get(fault.code, "")
    return _Answer(fault.code, reason, headers, body)
