"""A network and a server that fail in every way: retried and won, or a typed error; never wrong.

Each test looks at what the proxy saw: a fault that was never met proves nothing.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from botocore.config import Config

from tasks.publish.conversion import publish
from tests.support import faults
from tests.support.fault_proxy import FaultProxy
from tests.support.faults import Fault, Rule, status
from tests.support.s3_servers import S3Server
from tests.support.store_support import (
    check_never_half,
    contents,
    conversion,
    look,
    normalised,
    whole,
)
from tracefleet.errors import (
    ArtifactError,
    DigestMismatchError,
    StoreError,
    StoreUnavailableError,
)
from tracefleet.manifest import Manifest
from tracefleet.store import s3_client
from tracefleet.store.folder import FileStore
from tracefleet.store.s3 import S3Store
from tracefleet.store.s3_client import Connection

BUNDLE_BYTES = 12_000_000  # three parts
#: Shortened from the minute that is right for real networks.
SHORT = Config(
    connect_timeout=2, read_timeout=1, retries={"mode": "standard", "total_max_attempts": 4}
)
Conversion = tuple[Manifest, dict[str, Path]]


pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    return conversion(tmp_path_factory.mktemp("new"), 2, size=BUNDLE_BYTES)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    return conversion(tmp_path_factory.mktemp("old"), 1)


class Faulty:
    """A store behind a proxy, and the same store without one."""

    def __init__(
        self,
        server: S3Server,
        proxy: FaultProxy,
        monkeypatch: pytest.MonkeyPatch,
        connection: Connection | None = None,
    ):
        self.proxy = proxy
        url = f"s3://{server.bucket}/{uuid.uuid4().hex}"
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        self.straight = S3Store.at(url)
        if connection is not None:
            self.straight.root._connections[os.getpid()] = connection
        # Both clients connect to the server itself, now.
        self.straight.check_writable()
        self.straight.names("")
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        self.store = S3Store.at(url, SHORT)
        self.store.check_writable()

    def fails(self, *rules: Rule) -> None:
        self.proxy.set(*rules)

    def met(self) -> int:
        return len(self.proxy.faults())


@pytest.fixture(scope="module")
def straight(swift_server: S3Server) -> Connection:
    """Clients of the server itself, connected: they meet no fault, and creating them is slow."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in swift_server.env().items():
            patched.setenv(name, value)
        store = S3Store.at(f"s3://{swift_server.bucket}/straight")
        store.check_writable()
        store.names("")
        return store.root.connection


@pytest.fixture
def faulty(
    swift_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    old: Conversion,
    straight: Connection,
):
    with FaultProxy(swift_server.url) as proxy:
        faulty = Faulty(swift_server, proxy, monkeypatch, straight)
        publish(faulty.straight, *old, channel="latest")
        yield faulty


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, old: Conversion, new: Conversion
) -> dict[str, str]:
    """What a store has to hold in the end, published without any fault."""
    store = FileStore(root=tmp_path_factory.mktemp("undisturbed"))
    publish(store, *old, channel="latest")
    publish(store, *new, channel="latest")
    return normalised(store)


PASSING = {
    "reset before a part": Rule("PUT", "partNumber", faults.RESET_BEFORE, times=2),
    "reset in a part": Rule("PUT", "partNumber", faults.RESET_MID_UPLOAD, times=2),
    "answer to a part lost": Rule("PUT", "partNumber", faults.LOST_RESPONSE, times=2),
    # Of the file's upload: an empty one that the probe leaves behind so is gc's.
    "answer to the start lost": Rule("POST", r"model\.pt\?uploads", faults.LOST_RESPONSE, times=1),
    "answer to the completion lost": Rule("POST", "uploadId=", faults.LOST_RESPONSE, times=1),
    "completion 200 with an error": Rule("POST", "uploadId=", faults.OK_WITH_ERROR, times=2),
    "answer to the manifest lost": Rule("PUT", "manifest", faults.LOST_RESPONSE, times=1),
    "answer to the channel lost": Rule("PUT", "channels/", faults.LOST_RESPONSE, times=1),
    "answer to a small file lost": Rule("PUT", "config.json", faults.LOST_RESPONSE, times=1),
    "reset before the manifest": Rule("PUT", "manifest", faults.RESET_BEFORE, times=3),
    "burst of 503": Rule(".*", ".", status(503, "SlowDown"), times=3),
    "burst of 503 with Retry-After": Rule(
        ".*", ".", status(503, "SlowDown", retry_after=1), times=2
    ),
    "burst of 500": Rule(".*", ".", status(500, "InternalError"), times=3),
    "conflict with another writer": Rule(
        "PUT", "manifest", status(409, "ConditionalRequestConflict"), times=2
    ),
    "slow first byte": Rule(".*", ".", faults.slow_first_byte(0.3), times=4),
    "stall over the read timeout": Rule("PUT", "manifest", faults.slow_first_byte(3), times=1),
    "reset in a listing": Rule("GET", "list-type|prefix", faults.RESET_MID_BODY, times=2),
    "truncated listing": Rule("GET", "list-type|prefix", faults.TRUNCATE, times=2),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_survived_by_a_publish(
    faulty: Faulty, name: str, old: Conversion, new: Conversion, undisturbed: dict[str, str]
):
    faulty.fails(PASSING[name])
    publish(faulty.store, *new, channel="latest")
    assert faulty.met(), "the fault was never met"
    assert normalised(faulty.straight) == undisturbed
    assert list(faulty.straight.walk("publishing")) == []
    # An upload whose start was answered twice: the client knows one, our tidying finds both.
    assert list(faulty.straight.uploads()) == []


READING = {
    "reset in a range": Rule("GET", "model.pt", faults.RESET_MID_BODY, times=2),
    "truncated range": Rule("GET", "model.pt", faults.TRUNCATE, times=3),
    "stalled range": Rule("GET", "model.pt", faults.stall(30), times=1),
    "burst of 503": Rule(".*", ".", status(503, "SlowDown"), times=3),
    "burst of 500": Rule(".*", ".", status(500, "InternalError"), times=3),
    "truncated manifest": Rule("GET", "manifest.json", faults.TRUNCATE, times=1),
    "reset in the channel's entry": Rule("GET", "000001.json", faults.RESET_MID_BODY, times=1),
    "stalled listing": Rule("GET", "list-type", faults.stall(30), times=1),
}


@pytest.mark.parametrize("name", READING)
def test_what_passes_is_survived_by_a_reader(faulty: Faulty, name: str, new: Conversion):
    other = S3Store.at(f"{faulty.straight.url}-read")
    publish(other, *new, channel="latest")
    faulty.fails(READING[name])
    reader = S3Store.at(other.url, SHORT)
    assert look(reader).key == new[0].key
    assert faulty.met(), "the fault was never met"


STAYING: dict[str, tuple[Fault, type[StoreError], str]] = {
    "reset": (faults.RESET_BEFORE, StoreUnavailableError, "Check the network"),
    "503": (status(503, "SlowDown"), StoreUnavailableError, "SlowDown.*fewer requests"),
    "500": (status(500, "InternalError"), StoreUnavailableError, "InternalError"),
    "no answer": (faults.slow_first_byte(3), StoreUnavailableError, "Check the network"),
    "expired, without a reason": (status(400, "400"), StoreError, "have expired"),
    "expired": (faults.EXPIRED, StoreError, "credentials have expired"),
    "denied": (faults.DENIED, StoreError, "Allow s3:"),
    "clock": (faults.SKEWED, StoreError, "set the clock"),
    "no bucket": (faults.NO_BUCKET, StoreError, "Create the bucket"),
    "no region": (
        status(400, "AuthorizationHeaderMalformed"),
        StoreError,
        "set AWS_DEFAULT_REGION",
    ),
    "not implemented": (status(501, "NotImplemented"), StoreError, "lacks the operation"),
    "something new": (status(418, "Teapot"), StoreError, "Teapot.*Nothing was changed"),
}


@pytest.mark.parametrize(
    ("name", "where"),
    [
        *((name, "PUT .*manifest") for name in STAYING),
        *(("denied", where) for where in ("PUT partNumber", "PUT channels/", "GET .")),
        *(("reset", where) for where in ("PUT partNumber", "PUT channels/", "GET .")),
        ("503", "GET ."),
        ("500", "PUT partNumber"),
    ],
)
def test_what_stays_is_a_typed_error_and_a_rerun_completes(
    faulty: Faulty,
    name: str,
    where: str,
    old: Conversion,
    new: Conversion,
    undisturbed: dict[str, str],
):
    fault, kind, message = STAYING[name]
    method, _, path = where.partition(" ")
    faulty.fails(Rule(method, path, fault))
    with pytest.raises(StoreError, match=f"(?s){message}") as caught:
        publish(faulty.store, *new, channel="latest")
    assert type(caught.value) is kind
    assert faulty.met()
    assert faulty.straight.url.split("/")[2] in str(caught.value), "the bucket is named"
    assert any(verb in str(caught.value) for verb in VERBS), "the verb is named"
    # The store is right: the old one is current, or the new one whole.
    assert look(faulty.straight).key in (old[0].key, new[0].key)
    check_never_half(faulty.straight, new[0])
    faulty.fails()
    publish(faulty.store, *new, channel="latest")
    assert normalised(faulty.straight) == undisturbed
    assert list(faulty.straight.uploads()) == []


VERBS = (
    "PutObject",
    "GetObject",
    "HeadObject",
    "ListObjectsV2",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
)


@pytest.mark.parametrize(
    ("method", "path", "action"),
    [
        ("PUT", "config.json", "PutObject"),
        ("POST", "uploads", "PutObject"),
        ("HEAD", "config.json", "GetObject"),
        ("GET", "channels/.*json", "GetObject"),
        ("GET", "list-type", "ListBucket"),
    ],
)
def test_a_verb_that_is_denied_names_the_right_that_is_missing(
    faulty: Faulty, new: Conversion, method: str, path: str, action: str
):
    faulty.fails(Rule(method, path, faults.DENIED))
    with pytest.raises(StoreError, match=f"Allow s3:{action} ") as caught:
        publish(faulty.store, *new, channel="latest")
    assert faulty.store.root.name in str(caught.value)
    assert not check_never_half(faulty.straight, new[0]) or path.startswith(("channels", "list"))


@pytest.mark.parametrize("path", ["uploads", "delete"])
def test_rights_that_only_tidy_are_not_needed_to_publish(
    faulty: Faulty, new: Conversion, old: Conversion, path: str, caplog: pytest.LogCaptureFixture
):
    method = "GET" if path == "uploads" else "POST"
    faulty.fails(Rule(method, rf"\?{path}", faults.DENIED))
    publish(faulty.store, *new, channel="latest")
    assert faulty.met()
    assert contents(faulty.straight, new[0]) == whole(new[0])
    if path == "delete":
        assert "a claim was left behind" in caplog.text


def test_bytes_that_are_changed_on_their_way_up_are_refused_by_a_server_that_checks(
    faulty: Faulty, old: Conversion, new: Conversion, undisturbed: dict[str, str]
):
    faulty.fails(Rule("PUT", "partNumber", faults.CORRUPT_UPLOAD))
    with pytest.raises(StoreUnavailableError, match="changed in transit"):
        publish(faulty.store, *new, channel="latest")
    assert faulty.met()
    assert not check_never_half(faulty.straight, new[0])
    faulty.fails()
    publish(faulty.store, *new, channel="latest")
    assert normalised(faulty.straight) == undisturbed


@pytest.mark.parametrize("path", ["partNumber=2", "config.json"])
def test_bytes_that_are_changed_on_their_way_up_are_found_where_the_server_does_not_check(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch, new: Conversion, path: str
):
    with FaultProxy(moto_server.url) as proxy:
        faulty = Faulty(moto_server, proxy, monkeypatch)
        faulty.fails(Rule("PUT", path, faults.CORRUPT_UPLOAD, times=1))
        publish(faulty.store, *new, channel="latest")
        assert faulty.met()
        assert contents(faulty.straight, new[0]) == whole(new[0])


def test_a_byte_that_flips_on_its_way_down_is_refused_and_not_cached(
    faulty: Faulty, new: Conversion
):
    manifest, _ = new
    publish(faulty.straight, *new, channel="latest")
    faulty.fails(Rule("GET", "model.pt", faults.CORRUPT, times=1))
    bundle = manifest.bundle
    (path,) = [f.path for f in faulty.straight.walk("conversions") if f.size == bundle.size]
    with pytest.raises(DigestMismatchError, match=bundle.sha256):
        faulty.store.open_checked(path, size=bundle.size, sha256=bundle.sha256)
    assert faulty.met() == 1
    assert faulty.store.cache.find(size=bundle.size, sha256=bundle.sha256) is None
    with faulty.store.open_checked(path, size=bundle.size, sha256=bundle.sha256) as handle:
        assert len(handle.read()) == bundle.size


@pytest.mark.parametrize("path", ["manifest.json", "0000000001.json"])
def test_a_byte_that_flips_in_what_names_the_files_is_refused(faulty: Faulty, path: str):
    faulty.fails(Rule("GET", path, faults.CORRUPT))
    with pytest.raises(ArtifactError):
        look(faulty.store)
    assert faulty.met()


@pytest.mark.parametrize("fault", [faults.TRUNCATE, faults.RESET_MID_BODY, faults.stall(3)])
def test_a_download_that_never_comes_to_its_end_is_a_typed_error(faulty: Faulty, fault: Fault):
    faulty.straight.put_over("large", b"x" * (6 << 20))
    faulty.fails(Rule("GET", "large", fault))
    with pytest.raises(StoreUnavailableError, match="large: GetObject"):
        faulty.store.copy_out("large", BytesIO())
    assert faulty.met()


def test_an_object_that_is_overwritten_while_it_comes_is_never_a_mixture(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
):
    faulty.straight.put_over("large", b"a" * (24 << 20))
    faulty.fails(Rule("GET", "large", faults.slow_first_byte(0.7), after=1))
    sink = BytesIO()
    overwritten: list[bool] = []

    class Overwriting:
        def write(self, data: bytes) -> int:
            if not overwritten:
                overwritten.append(True)
                faulty.straight.put_over("large", b"b" * 100)
            return sink.write(data)

    monkeypatch.setattr(s3_client, "_THREADS", 1)
    with pytest.raises(StoreUnavailableError, match=r"large: GetObject .*overwritten"):
        faulty.store.copy_out("large", Overwriting())
    assert overwritten
    assert set(sink.getvalue()) == {ord("a")}


def test_no_server_at_all_names_where_it_was_looked_for(
    monkeypatch: pytest.MonkeyPatch, aws_env: Callable[[S3Server], S3Server]
):
    aws_env(S3Server(name="none", url="http://127.0.0.1:9", access_key="a", secret_key="b"))
    store = S3Store.at("s3://bucket/models", SHORT)
    for attempt in (
        store.check_writable,
        lambda: store.names("a"),
        lambda: store.read("a"),
        lambda: list(store.walk("")),
    ):
        with pytest.raises(StoreUnavailableError, match=r"s3://bucket/models.*AWS_ENDPOINT_URL"):
            attempt()


def test_settings_that_are_missing_or_wrong_name_the_variables(
    monkeypatch: pytest.MonkeyPatch, swift_server: S3Server
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", swift_server.url)
    for attempt in (
        lambda: S3Store.at("s3://bucket").check_writable(),
        lambda: S3Store.at("s3://bucket").presign("a", seconds=1),
    ):
        with pytest.raises(StoreError, match=r"Unable to locate credentials.*AWS_ACCESS_KEY_ID"):
            attempt()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match=r"nobody.*AWS_PROFILE"):
        S3Store.at("s3://bucket").check_writable()


def test_wrong_credentials_are_refused_with_what_to_check(
    swift_server: S3Server, aws_env: Callable[[S3Server], S3Server], monkeypatch
):
    aws_env(swift_server)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match="check AWS_ACCESS_KEY_ID"):
        S3Store.at(f"s3://{swift_server.bucket}").check_writable()
