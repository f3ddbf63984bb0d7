"""Servers that ignore conditions, cut answers, or say little: nothing published is ever changed.

The server is moto's, with the behaviour that a test orders (`tests.support.s3_liar`).
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.support import faults, s3_servers
from tests.support.fault_proxy import FaultProxy
from tests.support.faults import Rule
from tests.support.s3_liar import behave
from tests.support.s3_servers import S3Server
from tracefleet.errors import DigestMismatchError, StoreError, StoreUnavailableError
from tracefleet.store import s3_client, s3_upload
from tracefleet.store.s3 import S3Store

PART = 5 << 20
#: In each of four tests; a hundred with ``make soak``.
PLACES = 100 if os.environ.get("TRACEFLEET_SOAK") else 25


@pytest.fixture(scope="module")
def liar() -> Iterator[S3Server]:
    with s3_servers.moto("s3_liar") as server:
        yield server


@pytest.fixture
def order(
    liar: S3Server, aws_env: Callable[[S3Server], S3Server]
) -> Iterator[Callable[..., S3Store]]:
    """Return a function that orders a behaviour and opens an empty store there."""
    aws_env(liar)
    url = f"s3://{liar.bucket}/{uuid.uuid4().hex}"

    def make(**orders: int) -> S3Store:
        behave(liar.url, **orders)
        return S3Store.at(url)

    yield make
    behave(liar.url)


def write(folder: Path, data: bytes) -> dict[str, Any]:
    """Write a local file; return the arguments of put_file."""
    folder.mkdir(exist_ok=True)
    local = folder / hashlib.sha256(data).hexdigest()[:8]
    local.write_bytes(data)
    return {"local": local, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# Answers that are cut


@pytest.mark.parametrize("size", [200_000, 2_500_000], ids=["one range", "several ranges"])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_an_answer_that_is_cut_at_any_byte_is_never_doubled(
    liar: S3Server,
    order: Callable[..., S3Store],
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    reset: bool,
):
    data, straight = os.urandom(size), order()
    straight.put_over("f", data)
    monkeypatch.setattr(s3_client, "RANGE_BYTES", 1_500_000)
    with FaultProxy(liar.url) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = S3Store.at(straight.url)
        for place in range(PLACES):
            after = (min(size, 1_000_000) - 1) * place // (PLACES - 1)
            proxy.set(Rule("GET", "/f", faults.cut(after, reset=reset), times=1))
            sink = BytesIO()
            store.copy_out("f", sink)
            assert proxy.faults() == ["cut"]
            assert sink.getvalue() == data, f"cut after {after} bytes"


def test_a_publisher_whose_looks_are_cut_changes_nothing_that_is_there(
    liar: S3Server, order: Callable[..., S3Store], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    straight, file = order(), write(tmp_path, os.urandom(200_000))
    straight.put_file("f", **file)
    with FaultProxy(liar.url) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = S3Store.at(straight.url)
        store.put_file("g", **file)
        proxy.set(Rule("GET", "/f", faults.cut(70_000, reset=False), times=2))
        store.put_file("f", **file)
        assert proxy.faults() == ["cut", "cut"]
        # And if the way itself changes bytes, each time others or not.
        proxy.set(Rule("GET", "/f", faults.CORRUPT, times=1))
        with pytest.raises(StoreUnavailableError, match=r"second look.*Nothing was changed"):
            store.put_file("f", **file)
        proxy.set(Rule("GET", "/f", faults.CORRUPT, times=2))
        store.put_file("f", **file)
        assert not [seen for seen in proxy.seen if seen.method in ("DELETE", "POST")]
    assert straight.read("f") == file["local"].read_bytes()


def test_an_object_that_got_other_bytes_than_were_sent_is_sent_again(
    liar: S3Server, order: Callable[..., S3Store], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    straight, file = order(), write(tmp_path, os.urandom(1000))
    with FaultProxy(liar.url) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = S3Store.at(straight.url)
        store.check_writable()
        proxy.set(Rule("PUT", "/f$", faults.CORRUPT_UPLOAD, times=2))
        with pytest.raises(StoreUnavailableError, match="in transit, twice"):
            store.put_file("f", **file)
        with pytest.raises(DigestMismatchError):
            store.read("f")
        store.put_file("f", **file)
    assert straight.read("f") == file["local"].read_bytes()
    with pytest.raises(StoreError, match="already holds"):
        straight.put_file("f", **write(tmp_path, b"what another writer meant"))


# Conditions that are ignored


def put_while_another_publishes(store: S3Store, ours: Path, theirs: Path) -> None:
    """Publish ``theirs`` between our look for the file and the end of our upload of it."""
    begun: list[bool] = []

    def publish_first(**_: object) -> None:
        if not begun:
            begun.append(True)
            S3Store.at(store.url).put_file("f", **write(ours.parent, theirs.read_bytes()))

    events = store.root.connection.create_only.meta.events
    store.root.check_conditions()
    assert store.root.honours_completions in (True, False)
    for operation in ("CreateMultipartUpload", "PutObject"):
        events.register(f"before-call.s3.{operation}", publish_first)
    store.put_file("f", **write(ours.parent, ours.read_bytes()))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("orders", [{}, {"ignore_completion": 1}])
def test_of_two_publishers_of_a_large_file_the_first_one_stays(
    order: Callable[..., S3Store], tmp_path: Path, orders: dict[str, int]
):
    store = order(**orders)
    ours, theirs = (tmp_path / name for name in ("ours", "theirs"))
    ours.write_bytes(os.urandom(PART + 10))
    theirs.write_bytes(os.urandom(PART + 10))
    with pytest.raises(StoreError, match="already holds"):
        put_while_another_publishes(store, ours, theirs)
    assert store.root.honours_completions is not bool(orders)
    assert store.read("f") == theirs.read_bytes()


@pytest.mark.usefixtures("small_parts")
def test_without_the_probe_of_completions_a_published_file_would_be_overwritten(
    order: Callable[..., S3Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = order(ignore_completion=1)
    monkeypatch.setitem(vars(store.root), "honours_completions", True)
    ours, theirs = (tmp_path / name for name in ("ours", "theirs"))
    ours.write_bytes(os.urandom(PART + 10))
    theirs.write_bytes(os.urandom(PART + 10))
    put_while_another_publishes(store, ours, theirs)
    assert store.read("f") == ours.read_bytes(), "the control"


@pytest.mark.usefixtures("small_parts")
def test_a_file_that_one_request_can_not_take_is_refused_where_completions_are_unconditional(
    order: Callable[..., S3Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(s3_upload, "MOST_IN_ONE", PART + 9)
    store, file = order(ignore_completion=1), write(tmp_path, bytes(PART + 10))
    with pytest.raises(StoreError, match=r"one PutObject takes no more.*Nothing was changed"):
        store.put_file("f", **file)
    assert store.names("") == ["probe"]
    monkeypatch.setattr(s3_upload, "MOST_IN_ONE", PART + 10)
    store.put_file("f", **file)
    assert store.read("f") == bytes(PART + 10)


def test_a_server_that_ignores_all_conditions_is_refused(order: Callable[..., S3Store]):
    store = order(ignore_all=1)
    with pytest.raises(StoreError, match=r"ignores conditional writes.*versioning"):
        store.put_new("f", b"")
    assert store.names("") == ["probe"]
