"""What every store promises, held against a folder, Swift and moto alike."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.s3_servers import S3Server, uploads
from tracefleet.errors import DigestMismatchError, ManifestError, StoreError
from tracefleet.store import Store, Upload, open_writable
from tracefleet.store import s3 as module
from tracefleet.store.folder import FileStore
from tracefleet.store.s3 import S3Store
from tracefleet.store.s3_client import PART_BYTES
from tracefleet.store.streams import CheckedSink

SMALL = b"some bytes"
SMALL_SHA256 = hashlib.sha256(SMALL).hexdigest()


@pytest.fixture(params=["file", "swift", "moto"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, aws_env: Callable[[S3Server], S3Server]
) -> Store:
    if request.param == "file":
        return FileStore(root=tmp_path / "store")
    server = aws_env(request.getfixturevalue(f"{request.param}_server"))
    return open_writable(f"s3://{server.bucket}/{uuid.uuid4().hex}/models", check=False)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """More than two parts of a multipart upload."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(2 * PART_BYTES + 12_345))
    return path


def put(store: Store, path: str, local: Path) -> str:
    data = local.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    store.put_file(path, local, size=len(data), sha256=digest)
    return digest


def everything(store: Store) -> list[str]:
    return [file.path for file in store.walk("") if not file.path.startswith("probe/")]


def test_what_was_put_reads_back(store: Store, tmp_path: Path):
    store.check_writable()
    local = tmp_path / "local"
    local.write_bytes(SMALL)
    assert store.put_new("a/b.json", b"{}")
    assert put(store, "a/c/weights", local) == SMALL_SHA256
    store.put_over("reports/r.html", b"old")
    store.put_over("reports/r.html", b"new")
    assert store.read("a/b.json") == b"{}"
    assert store.read("reports/r.html") == b"new"
    assert everything(store) == ["a/b.json", "a/c/weights", "reports/r.html"]
    assert store.names("a") == ["b.json", "c"]
    assert {"a", "reports"} <= set(store.names(""))
    assert store.names("a/b.json") == [], "a file has no children"


def test_what_is_not_there_is_said_so(store: Store):
    assert store.names("absent") == []
    assert list(store.walk("absent")) == []
    with pytest.raises(FileNotFoundError):
        store.read("absent/a")
    with pytest.raises(FileNotFoundError):
        store.copy_out("absent/a", io.BytesIO())
    with pytest.raises(FileNotFoundError):
        store.open_checked("absent/a", size=1, sha256="0" * 64)
    store.remove(["absent/a"])


def test_a_second_put_new_changes_nothing(store: Store):
    assert store.put_new("a", b"first") is True
    assert store.put_new("a", b"second") is False
    assert store.read("a") == b"first"


def test_sixteen_racing_threads_have_one_winner(store: Store):
    won: list[int] = []
    barrier = threading.Barrier(16)

    def run(index: int) -> None:
        barrier.wait()
        if store.put_new("race/a", f"racer {index}".encode()):
            won.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("race/a") == f"racer {won[0]}".encode()


def test_a_walk_is_in_the_order_of_whole_paths_and_starts_where_it_is_told(store: Store):
    paths = ["a-b/x", "a/x", "a/y/z", "a0", "b/é", "b/x"]
    for path in reversed(paths):
        store.put_new(path, b"12")
    expected = sorted(paths)
    assert everything(store) == expected
    for cut in range(len(expected)):
        assert [f.path for f in store.walk("", after=expected[cut])][: len(expected) - cut - 1] == (
            expected[cut + 1 :]
        )
    assert [f.path for f in store.walk("a")] == ["a/x", "a/y/z"]
    assert [f.path for f in store.walk("a", after="a/y")] == ["a/y/z"]
    (first, _) = store.walk("a")
    assert first.size == 2
    assert abs(first.modified - time.time()) < 60


def test_a_large_file_goes_and_comes_whole(store: Store, large: Path, tmp_path: Path):
    digest = put(store, "f/large", large)
    sink = CheckedSink("f/large")
    store.copy_out("f/large", sink)
    sink.check(size=large.stat().st_size, sha256=digest)
    with store.open_checked("f/large", size=large.stat().st_size, sha256=digest) as handle:
        assert handle.read() == large.read_bytes()
    store.download_to("f/large", tmp_path / "placed", size=large.stat().st_size, sha256=digest)
    assert (tmp_path / "placed").read_bytes() == large.read_bytes()
    assert list(store.uploads()) == []


def test_the_same_file_again_is_skipped_and_others_are_refused(
    store: Store, large: Path, tmp_path: Path
):
    put(store, "f", large)
    (before,) = [file for file in store.walk("") if file.path == "f"]
    put(store, "f", large)
    (after,) = [file for file in store.walk("") if file.path == "f"]
    assert after == before, "it was written again"
    other = tmp_path / "other"
    data = large.read_bytes()
    other.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StoreError, match=f"already holds {before.size} bytes"):
        put(store, "f", other)
    sink = CheckedSink("f")
    store.copy_out("f", sink)
    assert sink.sha256 == hashlib.sha256(large.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [0, 10, PART_BYTES, 2 * PART_BYTES + 7])
@pytest.mark.parametrize("change", ["flipped", "shorter", "longer"])
def test_a_file_that_is_not_what_was_hashed_never_becomes_visible(
    store: Store, tmp_path: Path, size: int, change: str
):
    data = os.urandom(size)
    digest = hashlib.sha256(data).hexdigest()
    changed = {
        "flipped": data[:-1] + bytes([data[-1] ^ 1]) if data else b"x",
        "shorter": data[:-1] if data else b"x",
        "longer": data + b"x",
    }[change]
    (tmp_path / "local").write_bytes(changed)
    with pytest.raises((DigestMismatchError, ManifestError)):
        store.put_file("f", tmp_path / "local", size=size, sha256=digest)
    assert everything(store) == []
    assert list(store.uploads()) == []
    (tmp_path / "local").write_bytes(data)
    store.put_file("f", tmp_path / "local", size=size, sha256=digest)
    assert everything(store) == ["f"], "the control: unchanged it is taken"


def test_bytes_that_were_damaged_in_the_store_are_refused(store: Store, tmp_path: Path):
    store.put_over("f", b"other bytes")
    with pytest.raises(DigestMismatchError):
        store.open_checked("f", size=len(SMALL), sha256=SMALL_SHA256)
    with pytest.raises(DigestMismatchError):
        store.download_to("f", tmp_path / "placed", size=len(SMALL), sha256=SMALL_SHA256)
    store.put_over("f", SMALL)
    with store.open_checked("f", size=len(SMALL), sha256=SMALL_SHA256) as handle:
        assert handle.read() == SMALL


def test_removed_files_are_gone_and_the_others_stay(store: Store):
    for path in ("a/b/c", "a/b/d", "e/f"):
        store.put_new(path, b"")
    store.remove(["a/b/c", "e/f", "never/was"])
    assert everything(store) == ["a/b/d"]
    assert store.put_new("a/b/c", b"again")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", ".", "a//b", "a\\b"])
def test_no_path_leaves_the_store(store: Store, tmp_path: Path, path: str):
    local = tmp_path / "local"
    local.write_bytes(SMALL)
    for attempt in (
        lambda: store.put_new(path, b""),
        lambda: store.put_over(path, b""),
        lambda: put(store, path, local),
        lambda: store.read(path),
        lambda: store.copy_out(path, io.BytesIO()),
        lambda: list(store.walk(path)),
        lambda: store.names(path),
        lambda: store.remove([path]),
    ):
        with pytest.raises(ManifestError, match="path expected relative"):
            attempt()


def test_a_store_crosses_a_process_boundary(store: Store):
    store.put_new("a", b"1")
    copied: Store = pickle.loads(pickle.dumps(store))
    assert copied.url == store.url
    assert copied.read("a") == b"1"


# What only S3 has


@pytest.fixture(params=["swift", "moto"])
def server(request: pytest.FixtureRequest, aws_env: Callable[[S3Server], S3Server]) -> S3Server:
    return aws_env(request.getfixturevalue(f"{request.param}_server"))


@pytest.fixture
def s3_store(server: S3Server) -> S3Store:
    return S3Store.at(f"s3://{server.bucket}/{uuid.uuid4().hex}")


@pytest.mark.parametrize("first", [1, 2, 3, 100])
def test_a_walk_gives_each_file_once_whatever_its_first_page_holds(
    s3_store: S3Store, monkeypatch: pytest.MonkeyPatch, first: int
):
    monkeypatch.setattr(module, "_FIRST_KEYS", first)
    for name in ("a b", "é", "x/1", "x/2", "x/3"):
        s3_store.put_over(name, b"")
    assert [file.path for file in s3_store.walk("")] == ["a b", "x/1", "x/2", "x/3", "é"]
    assert [file.path for file in s3_store.walk("x", after="x/1")] == ["x/2", "x/3"]
    assert list(s3_store.walk("absent")) == []


def begin_upload(server: S3Server, store: S3Store, path: str) -> str:
    """What a publisher that was killed leaves behind: an upload with one part."""
    client, key = server.client(), store.root.key(path)
    began = client.create_multipart_upload(Bucket=server.bucket, Key=key)["UploadId"]
    client.upload_part(
        Bucket=server.bucket, Key=key, UploadId=began, PartNumber=1, Body=b"x" * (5 << 20)
    )
    return str(began)


def test_publishing_again_aborts_what_a_killed_publisher_left(
    server: S3Server, s3_store: S3Store, large: Path
):
    begin_upload(server, s3_store, "f/large")
    begin_upload(server, s3_store, "f/large.other")
    put(s3_store, "f/large", large)
    prefix = s3_store.root.key("")
    assert uploads(server.client(), prefix=prefix) == [f"{prefix}f/large.other"]


def test_unfinished_uploads_are_listed_and_aborted(server: S3Server, s3_store: S3Store):
    began = begin_upload(server, s3_store, "f")
    (upload,) = s3_store.uploads()
    assert (upload.path, upload.identifier) == ("f", began)
    # moto says 2010 of every upload.
    assert server.name == "moto" or abs(upload.started - time.time()) < 60
    s3_store.abort(upload)
    assert list(s3_store.uploads()) == []
    s3_store.abort(Upload(path="f", identifier=began, started=0.0))  # gone already


def test_two_uploads_of_one_file_at_once_converge(s3_store: S3Store, large: Path):
    errors: list[BaseException] = []

    def publish() -> None:
        try:
            put(s3_store, "f/large", large)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=publish) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert everything(s3_store) == ["f/large"]
    assert list(s3_store.uploads()) == []


def test_digest_and_media_type_stand_on_the_object(
    server: S3Server, s3_store: S3Store, tmp_path: Path
):
    local = tmp_path / "config.json"
    local.write_bytes(b"{}")
    put(s3_store, "config.json", local)
    s3_store.put_over("reports/index.html", b"<p>")
    head = server.client().head_object(Bucket=server.bucket, Key=s3_store.root.key("config.json"))
    assert head["Metadata"] == {"sha256": hashlib.sha256(b"{}").hexdigest()}
    page = s3_store.root.key("reports/index.html")
    assert server.client().head_object(Bucket=server.bucket, Key=page)["ContentType"] == "text/html"


def test_an_object_that_somebody_else_copied_there_is_hashed(s3_store: S3Store, tmp_path: Path):
    (tmp_path / "local").write_bytes(SMALL)
    s3_store.put_over("f", SMALL)  # no digest in its metadata
    put(s3_store, "f", tmp_path / "local")
    s3_store.put_over("g", b"x" * len(SMALL))
    with pytest.raises(StoreError, match="already holds"):
        put(s3_store, "g", tmp_path / "local")


def test_a_server_that_ignores_conditional_writes_is_refused(
    s3_store: S3Store, monkeypatch: pytest.MonkeyPatch
):
    connected = s3_store.root.connection
    monkeypatch.setattr(connected, "create_only", connected.s3)  # sends no If-None-Match
    for attempt in (s3_store.check_writable, lambda: s3_store.put_new("a", b"")):
        with pytest.raises(StoreError, match="ignores conditional writes"):
            attempt()
    assert everything(s3_store) == []


def test_the_probe_tells_servers_that_check_from_those_that_do_not(
    server: S3Server, s3_store: S3Store
):
    assert s3_store.root.checks_what_it_receives == (server.name == "swift")
    assert [f.path for f in s3_store.walk("probe")] == [], "nothing of the wrong probe is left"


def test_encryption_named_in_fsspecs_configuration_goes_with_every_write(
    aws_env: Callable[[S3Server], S3Server],
    moto_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    large: Path,
):
    import fsspec.config

    aws_env(moto_server)
    own = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/models", "ACL": "public-read"}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"s3_additional_kwargs": own})
    store = S3Store.at(f"s3://{moto_server.bucket}/{uuid.uuid4().hex}")
    put(store, "large", large)
    store.put_new("new", b"")
    store.put_over("over", b"")
    for path in ("large", "new", "over"):
        head = moto_server.client().head_object(Bucket=moto_server.bucket, Key=store.root.key(path))
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/models")


def test_presigned_urls_open_without_credentials_until_they_expire(
    server: S3Server, s3_store: S3Store
):
    import urllib.request

    s3_store.put_over("a b/é", SMALL)
    url = s3_store.presign("a b/é", seconds=60)
    assert "X-Amz-Signature" in url
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == SMALL
    for seconds in (0, 8 * 24 * 3600):
        with pytest.raises(StoreError, match=r"expected 1 to \d+ seconds"):
            s3_store.presign("a", seconds=seconds)


def test_a_folder_signs_no_urls(tmp_path: Path):
    with pytest.raises(StoreError, match="expected an s3:// store"):
        FileStore(root=tmp_path).presign("a", seconds=1)


def test_the_standard_configuration_decides_how_to_retry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3_store: S3Store
):
    ours = s3_store.root.connection.s3.meta.config.retries
    assert (ours["mode"], ours["total_max_attempts"]) == ("standard", 6)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    by_environment = S3Store.at(s3_store.url).root.connection.s3.meta.config.retries
    assert by_environment["total_max_attempts"] == 2
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    (tmp_path / "config").write_text("[default]\nretry_mode = adaptive\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    client = S3Store.at(s3_store.url).root.connection.s3
    assert client.meta.config.retries["mode"] == "adaptive"
    assert client.meta.region_name == "eu-north-1"


def test_a_folder_that_goes_while_a_store_is_looked_through_is_no_error(tmp_path: Path):
    """Two garbage collectors at once: the one removes what the other is about to list."""
    store = FileStore(root=tmp_path)
    for name in ("a", "b", "c"):
        store.put_new(f"{name}/kept", SMALL)
        (tmp_path / name / ".tmp-0123").write_bytes(SMALL)
    files = (file.path for file in store.walk(""))
    temps = (upload.path for upload in store.uploads())
    for listed in (files, temps):
        first = next(listed)
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        assert [first[0], *(path[0] for path in listed)] == ["a", "c"]
