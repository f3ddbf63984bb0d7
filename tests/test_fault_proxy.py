"""The fault proxy itself: each fault arrives, and without one nothing changes."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from tests.support import faults, s3_servers
from tests.support.fault_proxy import FaultProxy
from tests.support.faults import Fault, Rule, Seen
from tests.support.s3_servers import BUCKET, S3Server

BODY = bytes(range(256)) * 64
UPLOAD = b"u" * 1000
PART = b"p" * (5 << 20)


class _Echo(BaseHTTPRequestHandler):
    """Answers BODY, and notes the bodies that it got."""

    protocol_version = "HTTP/1.1"
    got: list[bytes]

    def do_GET(self):
        self._answer(BODY)

    def do_HEAD(self):
        self._answer(BODY)

    def do_PUT(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            size = int(self.rfile.readline(), 16)
            data = self.rfile.read(size + 2)[:-2]
            self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append(data)
        self._answer(self.headers["Host"].encode())

    def do_DELETE(self):
        self.send_response(204)
        self.end_headers()

    def _answer(self, body: bytes):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_one_request(self):
        with suppress(ConnectionError):  # a proxy that resets is what these tests order
            return super().handle_one_request()
        self.close_connection = True

    def log_message(self, format, *args):  # noqa: A002
        pass


@pytest.fixture
def got() -> list[bytes]:
    """The request bodies that came through to the server."""
    return []


@pytest.fixture
def proxy(got: list[bytes]) -> Iterator[FaultProxy]:
    handler = type("Handler", (_Echo,), {"got": got})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    with FaultProxy(f"http://127.0.0.1:{server.server_address[1]}") as proxy:
        yield proxy
    server.shutdown()
    server.server_close()


@pytest.fixture
def connection(proxy: FaultProxy) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(str(urlsplit(proxy.url).netloc), timeout=10)
    yield connection
    connection.close()


def ask(connection, method: str = "GET", path: str = "/x", **request):
    """One request; the answer and its body."""
    connection.request(method, path, **request)
    answer = connection.getresponse()
    return answer, answer.read()


def test_without_rules_nothing_changes(proxy, connection, got):
    host = proxy.url.removeprefix("http://").encode()
    for _ in range(2):  # over one connection that is kept alive
        assert ask(connection)[1] == BODY
        assert ask(connection, "PUT", body=UPLOAD)[1] == host
        answer, body = ask(connection, "HEAD")
        assert (answer.status, answer.headers["Content-Length"], body) == (200, str(len(BODY)), b"")
        assert ask(connection, "DELETE")[0].status == 204
    assert got == [UPLOAD] * 2
    assert proxy.faults() == []
    assert proxy.seen[:2] == [Seen("GET", "/x", None), Seen("PUT", "/x", None)]


def test_chunked_uploads_and_expectations(proxy, connection, got):
    ask(connection, "PUT", body=iter([b"ab", b"cd"]), encode_chunked=True)
    connection.putrequest("PUT", "/x")
    connection.putheader("Content-Length", "4")
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    assert connection.sock.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    connection.send(b"abcd")
    assert connection.getresponse().read()
    assert got == [b"abcd"] * 2


@pytest.mark.parametrize("fault", [faults.RESET_BEFORE, faults.RESET_MID_UPLOAD])
def test_a_reset_before_the_answer(proxy, connection, got, fault: Fault):
    proxy.set(Rule("PUT", "/x", fault))
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        ask(connection, "PUT", body=UPLOAD)
    time.sleep(0.1)
    assert UPLOAD not in got  # the server saw nothing or half
    assert proxy.faults() == [fault.name]


def test_the_server_gets_half_of_a_reset_upload(proxy, connection, got):
    proxy.set(Rule("PUT", "/x", faults.RESET_MID_UPLOAD))
    with pytest.raises(ConnectionResetError):
        ask(connection, "PUT", body=UPLOAD)
    until = time.monotonic() + 5
    while not got and time.monotonic() < until:
        time.sleep(0.01)
    assert got == [UPLOAD[:500]]


def test_a_lost_response(proxy, connection, got):
    proxy.set(Rule("PUT", "/x", faults.LOST_RESPONSE))
    with pytest.raises(ConnectionResetError):
        ask(connection, "PUT", body=UPLOAD)
    assert got == [UPLOAD]


def test_a_reset_within_the_answer(proxy, connection):
    proxy.set(Rule("GET", "/x", faults.RESET_MID_BODY))
    connection.request("GET", "/x")
    answer = connection.getresponse()
    assert answer.headers["Content-Length"] == str(len(BODY))
    assert answer.read(len(BODY) // 2) == BODY[: len(BODY) // 2]
    with pytest.raises(ConnectionResetError):
        answer.read()


def test_a_truncated_answer(proxy, connection):
    proxy.set(Rule("GET", "/x", faults.TRUNCATE))
    with pytest.raises(http.client.IncompleteRead) as failed:
        ask(connection)
    assert failed.value.partial == BODY[: len(BODY) // 2]


def test_a_flipped_bit_in_the_answer_and_in_the_upload(proxy, connection, got):
    proxy.set(Rule("GET", "/x", faults.CORRUPT), Rule("PUT", "/x", faults.CORRUPT_UPLOAD))
    _, body = ask(connection)
    assert [i for i, byte in enumerate(body) if byte != BODY[i]] == [len(BODY) // 2]
    assert ask(connection, "PUT", body=UPLOAD)[0].status == 200
    assert [i for i, byte in enumerate(got[0]) if byte != UPLOAD[i]] == [500]


@pytest.mark.parametrize(
    ("fault", "code", "s3_code"),
    [
        (faults.status(503, "SlowDown", retry_after=2), 503, "SlowDown"),
        (faults.OK_WITH_ERROR, 200, "InternalError"),
        (faults.EXPIRED, 400, "ExpiredToken"),
        (faults.DENIED, 403, "AccessDenied"),
        (faults.SKEWED, 403, "RequestTimeTooSkewed"),
        (faults.NO_BUCKET, 404, "NoSuchBucket"),
    ],
)
def test_an_error_answer(proxy, connection, got, fault: Fault, code: int, s3_code: str):
    proxy.set(Rule("PUT|HEAD", "/x", fault))
    answer, body = ask(connection, "PUT", body=UPLOAD)
    assert answer.status == code
    assert f"<Error><Code>{s3_code}</Code>".encode() in body
    assert answer.headers["Retry-After"] == (str(fault.retry_after) if fault.retry_after else None)
    answer, body = ask(connection, "HEAD")
    assert (answer.status, body, got) == (code, b"", [])


@pytest.mark.parametrize("fault", [faults.stall(0.3), faults.slow_first_byte(0.3)])
def test_a_slow_answer(proxy, connection, fault: Fault):
    proxy.set(Rule("GET", "/x", fault))
    begin = time.monotonic()
    connection.request("GET", "/x")
    answer = connection.getresponse()
    first = time.monotonic() - begin
    assert answer.read() == BODY
    assert time.monotonic() - begin > 0.3
    assert (first > 0.3) == (fault.name == "slow_first_byte")


def test_a_rule_applies_to_what_it_names_as_often_as_it_says(proxy, connection):
    proxy.set(
        Rule("GET", r"/x\?part=2", faults.DENIED, times=2, after=1),
        Rule("GET", "part", faults.NO_BUCKET, times=1),
    )
    paths = ["/x", "/x?part=2", "/x?part=2", "/x?part=2", "/x?part=2", "/x?part=2"]
    codes = [ask(connection, path=path)[0].status for path in paths]
    assert codes == [200, 404, 403, 403, 200, 200]
    assert ask(connection, "HEAD", "/x?part=2")[0].status == 200
    proxy.set(Rule("GET", "", faults.DENIED))
    assert [ask(connection)[0].status for _ in range(3)] == [403] * 3
    assert proxy.faults() == ["status"] * 3


def test_closing_the_proxy_ends_a_stall(proxy, connection):
    proxy.set(Rule("GET", "/x", faults.slow_first_byte(60)))
    connection.request("GET", "/x")
    while not proxy.seen:
        time.sleep(0.01)
    proxy.closing.set()
    assert connection.getresponse().read() == BODY


@pytest.fixture
def behind(swift_server: S3Server) -> Iterator[tuple[FaultProxy, S3Server]]:
    """A proxy before Swift, and the server as it looks through it."""
    s3_servers.empty(swift_server.client())  # other tests leave what they published
    with FaultProxy(swift_server.url) as proxy:
        yield proxy, swift_server.at(proxy.url)
    s3_servers.empty(swift_server.client())


def test_boto3_through_the_proxy(behind, swift_server: S3Server, tmp_path):
    proxy, server = behind
    client = server.client()
    client.put_object(Bucket=BUCKET, Key="a b/ü+&", Body=BODY, IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=BUCKET, Key="a b/ü+&", Body=b"", IfNoneMatch="*")
    ranged = client.get_object(Bucket=BUCKET, Key="a b/ü+&", Range="bytes=10-19")
    assert ranged["Body"].read() == BODY[10:20]
    assert client.head_object(Bucket=BUCKET, Key="a b/ü+&")["ContentLength"] == len(BODY)
    file = tmp_path / "file"
    file.write_bytes(PART * 2 + b"end")
    client.upload_file(str(file), BUCKET, "multi", Config=_transfer())
    client.download_file(BUCKET, "multi", str(tmp_path / "back"), Config=_transfer())
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert s3_servers.objects(swift_server.client()).keys() == {"a b/ü+&", "multi"}
    assert sum("partNumber" in request.path for request in proxy.seen) == 3


def _transfer():
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=len(PART), multipart_chunksize=len(PART))


def test_many_requests_at_once_through_the_proxy(behind):
    _, server = behind
    client = server.client(max_pool_connections=16)
    with ThreadPoolExecutor(16) as pool:
        keys = [f"k/{number}" for number in range(64)]
        list(
            pool.map(lambda key: client.put_object(Bucket=BUCKET, Key=key, Body=key.encode()), keys)
        )
    assert s3_servers.objects(client) == {key: key.encode() for key in keys}


def test_boto3_retries_what_the_proxy_breaks_and_reports_what_stays(behind):
    proxy, server = behind
    stubborn = server.client(retries={"total_max_attempts": 4, "mode": "standard"})
    proxy.set(
        Rule("PUT", "/x", faults.RESET_BEFORE, times=1),
        Rule("PUT", "/x", faults.RESET_MID_UPLOAD, times=1),
        Rule("PUT", "/x", faults.status(503, "SlowDown"), times=1),
    )
    stubborn.put_object(Bucket=BUCKET, Key="x", Body=UPLOAD)
    assert proxy.faults() == ["reset_before", "reset_mid_upload", "status"]
    proxy.set(Rule("PUT", "/x", faults.LOST_RESPONSE, times=1))
    with pytest.raises(ClientError, match="PreconditionFailed"):  # by its own first attempt
        stubborn.put_object(Bucket=BUCKET, Key="y/x", Body=UPLOAD, IfNoneMatch="*")
    proxy.set(Rule("PUT", "/x", faults.CORRUPT_UPLOAD))
    with pytest.raises(ClientError, match="XAmzContentSHA256Mismatch"):
        stubborn.put_object(Bucket=BUCKET, Key="z/x", Body=UPLOAD)
    assert s3_servers.objects(server.client()) == {"x": UPLOAD, "y/x": UPLOAD}
