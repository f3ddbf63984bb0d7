"""The cache: one download for many, always checked, bounded, enough to open without a network."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
import urllib.request
import uuid
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

import tracefleet
from tests.support.reader_support import SOURCE, publish, race
from tests.support.s3_servers import S3Server
from tracefleet.cli import main
from tracefleet.errors import DigestMismatchError, NoSuchVariantError, StoreError
from tracefleet.store import Store, open_store, open_writable
from tracefleet.store import cache as module
from tracefleet.store.cache import Cache, is_offline
from tracefleet.store.s3 import S3Store
from tracefleet.store.s3_bucket import Bucket
from tracefleet.store.streams import ArrivingFile, Sink, copy

DATA = b"weights" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


class Source:
    """Something to download, that counts how often it was."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data, self.downloads = data, 0
        self.sha256 = hashlib.sha256(data).hexdigest()

    def __call__(self, sink: Sink) -> None:
        self.downloads += 1
        copy(BytesIO(self.data), sink)

    def read_through(self, cache: Cache) -> bytes:
        with cache.open("f", self, size=len(self.data), sha256=self.sha256) as handle:
            return handle.read()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(root=tmp_path / "own")


def left(cache: Cache) -> list[str]:
    return sorted(path.name for path in (cache.root / "blobs").rglob("*") if path.is_file())


def test_what_was_downloaded_once_is_not_downloaded_again(cache: Cache):
    source = Source()
    assert source.read_through(cache) == source.read_through(cache) == DATA
    assert source.downloads == 1
    assert left(cache) == [SHA256]


def test_a_cached_blob_that_rotted_is_downloaded_again(cache: Cache):
    source = Source()
    source.read_through(cache)
    cache.blob(SHA256).write_bytes(b"!" + DATA[1:])
    assert source.read_through(cache) == DATA
    assert source.downloads == 2


@pytest.mark.parametrize("wrong", [DATA[:-1] + b"!", DATA[:-1], DATA + b"!", b""])
def test_other_bytes_than_promised_are_never_kept(cache: Cache, wrong: bytes):
    source = Source(wrong)
    source.sha256 = SHA256
    with pytest.raises(DigestMismatchError):
        source.read_through(cache)
    assert left(cache) == []


def test_a_download_that_breaks_leaves_nothing(cache: Cache):
    def breaks(sink: Sink) -> None:
        sink.write(DATA[:10])
        raise StoreError("the connection is gone")

    with pytest.raises(StoreError, match="the connection is gone"):
        cache.open("f", breaks, size=len(DATA), sha256=SHA256)
    assert left(cache) == []
    assert Source().read_through(cache) == DATA


@pytest.mark.parametrize("seed", range(20))
def test_ranges_may_come_in_any_order_and_more_than_once(tmp_path: Path, seed: int):
    """As parallel ranges with retries do; the digest is of what the file holds in the end."""
    chance = random.Random(seed)
    pieces = [(start, start + 700) for start in range(0, len(DATA), 700)]
    again = [(start, start + chance.randrange(1, 1500)) for start, _ in chance.sample(pieces, 4)]
    pieces += again
    chance.shuffle(pieces)
    with (tmp_path / "f").open("x+b") as file:
        arriving = ArrivingFile("f", file.fileno())
        for start, end in pieces:
            arriving.seek(start)
            assert arriving.write(DATA[start:end]) == len(DATA[start:end])
        arriving.check(size=len(DATA), sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == DATA


def test_what_was_hashed_is_not_written_again(tmp_path: Path):
    with (tmp_path / "f").open("x+b") as file:
        arriving = ArrivingFile("f", file.fileno())
        arriving.write(DATA)
        arriving.seek(10)
        arriving.write(b"other bytes, in a range that was fetched again")
        arriving.check(size=len(DATA), sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.parametrize("missing", [0, 3, 9])
def test_a_range_that_never_came_is_noticed(tmp_path: Path, missing: int):
    with (tmp_path / "f").open("x+b") as file:
        arriving = ArrivingFile("f", file.fileno())
        for number in range(10):
            if number != missing:
                arriving.seek(700 * number)
                arriving.write(DATA[700 * number : 700 * (number + 1)])
        with pytest.raises(DigestMismatchError):
            arriving.check(size=len(DATA), sha256=SHA256)


def download_slowly(index: int, root: Path, log: Path) -> bytes:
    """What each racing process does; the log counts downloads."""

    def slow(sink: Sink) -> None:
        with log.open("a") as file:
            file.write(f"{index}\n")
        for start in range(0, len(DATA), 1000):
            sink.write(DATA[start : start + 1000])
            time.sleep(0.05)

    with Cache(root=root).open("f", slow, size=len(DATA), sha256=SHA256) as handle:
        return handle.read()


def test_of_eight_processes_one_downloads_and_the_others_wait(tmp_path: Path):
    assert race(download_slowly, tmp_path / "shared", tmp_path / "log") == [DATA] * 8
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def die_downloading(index: int, root: Path) -> None:
    def dies(sink: Sink) -> None:
        sink.write(DATA[:10])
        os._exit(9)

    Cache(root=root).open("f", dies, size=len(DATA), sha256=SHA256)


def test_a_downloader_that_is_killed_holds_nobody_up(tmp_path: Path):
    killed = multiprocessing.get_context("spawn").Process(
        target=die_downloading, args=(0, tmp_path / "shared")
    )
    killed.start()
    killed.join()
    assert killed.exitcode == 9
    cache = Cache(root=tmp_path / "shared")
    assert Source().read_through(cache) == DATA
    (part,) = [name for name in left(cache) if name != SHA256]
    assert part.endswith(".part")


def test_what_a_killed_download_left_is_swept_after_a_day(cache: Cache):
    old = cache.blob(SHA256).with_name(f"{SHA256}.0.part")
    young = old.with_name(f"{SHA256}.1.part")
    for part in (old, young):
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"x")
    two_days_ago = time.time() - 2 * 86400
    os.utime(old, (two_days_ago, two_days_ago))
    Source().read_through(cache)
    assert (old.exists(), young.exists()) == (False, True)


def test_the_least_recently_used_goes_first_and_the_limit_holds(tmp_path: Path):
    cache = Cache(root=tmp_path / "own", limit=3 * len(DATA))
    sources = [Source(bytes([number]) * len(DATA)) for number in range(4)]
    for age, source in enumerate(sources[:3]):
        source.read_through(cache)
        used = time.time() - 100 + age
        os.utime(cache.blob(source.sha256), (used, used))
    sources[0].read_through(cache)  # used now: no longer the oldest
    sources[3].read_through(cache)
    assert left(cache) == sorted(source.sha256 for source in (sources[0], *sources[2:]))
    assert sources[0].downloads == 1


def test_a_blob_larger_than_the_limit_is_kept_alone(tmp_path: Path):
    cache = Cache(root=tmp_path / "own", limit=10)
    first, second = Source(b"a" * 100), Source(b"b" * 100)
    first.read_through(cache)
    assert second.read_through(cache) == second.data
    assert left(cache) == [second.sha256]


def test_a_handle_outlives_the_eviction_of_its_blob(tmp_path: Path):
    cache = Cache(root=tmp_path / "own", limit=len(DATA))
    with cache.open("f", Source(), size=len(DATA), sha256=SHA256) as handle:
        Source(b"x" * len(DATA)).read_through(cache)
        assert not cache.blob(SHA256).exists()
        cache.place(handle, tmp_path / "placed", sha256=SHA256)
    assert (tmp_path / "placed").read_bytes() == DATA


def test_a_small_file_is_copied_so_that_editing_it_touches_nothing_else(
    cache: Cache, tmp_path: Path
):
    for name in ("one", "two"):
        with cache.open("f", Source(), size=len(DATA), sha256=SHA256) as handle:
            cache.place(handle, tmp_path / name, sha256=SHA256)
    with (tmp_path / "one").open("ab") as file:
        file.write(b"instance_group")
    assert (tmp_path / "two").read_bytes() == cache.blob(SHA256).read_bytes() == DATA


def fork_while_holding(cache: Cache) -> int:
    """Fork a child that lives on while this process downloads, and return its pid."""
    pid = 0

    def forks(sink: Sink) -> None:
        nonlocal pid
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        sink.write(DATA)

    cache.open("f", forks, size=len(DATA), sha256=SHA256).close()
    return pid


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_was_forked_meanwhile_holds_nobody_up(cache: Cache):
    child = fork_while_holding(cache)
    try:
        cache.blob(SHA256).unlink()
        started = time.monotonic()
        assert Source().read_through(cache) == DATA
        assert time.monotonic() - started < 10
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_damaged_blob_in_a_cache_that_can_not_be_written_is_a_typed_error(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
):
    Source().read_through(cache)
    cache.blob(SHA256).write_bytes(b"rotten")

    def read_only(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(Path, "unlink", read_only)
    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(StoreError, match="set TRACEFLEET_CACHE"):
        Source().read_through(cache)


def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch: pytest.MonkeyPatch):
    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TRACEFLEET_CACHE")
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(StoreError, match="Set TRACEFLEET_CACHE"):
        open_store("s3://bucket/models")


def test_a_placed_file_is_another_name_of_the_blob_where_that_can_be(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "LINKED_BYTES", 1)
    with cache.open("f", Source(), size=len(DATA), sha256=SHA256) as handle:
        cache.place(handle, tmp_path / "linked", sha256=SHA256)
        assert (tmp_path / "linked").samefile(cache.blob(SHA256))

        def refuse(*_: Any) -> None:
            raise OSError("another file system")

        monkeypatch.setattr(os, "link", refuse)
        cache.place(handle, tmp_path / "copied", sha256=SHA256)
    assert (tmp_path / "copied").read_bytes() == DATA
    assert not (tmp_path / "copied").samefile(cache.blob(SHA256))


def test_a_cache_that_can_not_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cache .*set TRACEFLEET_CACHE"):
        Source().read_through(Cache(root=tmp_path / "file"))


@pytest.mark.parametrize("text", ["lots", "-1", "nan", "inf", ""])
def test_a_limit_that_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("TRACEFLEET_CACHE_GB", text)
    with pytest.raises(StoreError, match="TRACEFLEET_CACHE_GB: expected gigabytes"):
        Cache()
    monkeypatch.setenv("TRACEFLEET_CACHE_GB", "0.5")
    assert Cache().limit == 500_000_000


@pytest.mark.parametrize(("text", "offline"), [("1", True), ("true", True), ("0", False), ("", 0)])
def test_offline_is_asked_for_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, offline: bool
):
    monkeypatch.setenv("TRACEFLEET_OFFLINE", text)
    assert is_offline() == bool(offline)


# A whole conversion on S3


@pytest.fixture
def published(swift_server: S3Server, aws_env: Callable[[S3Server], S3Server]) -> S3Store:
    aws_env(swift_server)
    store = S3Store.at(f"s3://{swift_server.bucket}/{uuid.uuid4().hex}")
    publish(store)
    return store


def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


IDS = [[3, 4, 5]]


def test_a_model_opens_from_s3_and_then_without_a_network(
    published: S3Store,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    online = tracefleet.open(published.url, SOURCE)(IDS)
    without_network(monkeypatch)
    with pytest.raises(StoreError, match="TRACEFLEET_OFFLINE=1"):
        tracefleet.open(published.url, SOURCE)
    monkeypatch.setenv("TRACEFLEET_OFFLINE", "1")
    offline = tracefleet.open(published.url, SOURCE)(IDS)
    assert (offline["pooler_output"] == online["pooler_output"]).all()
    assert main(["pull", published.url, SOURCE, str(tmp_path / "pulled")]) == 0
    assert (tmp_path / "pulled" / "model/1/model.pt").stat().st_size
    assert main(["verify", published.url]) == 1
    assert "from the store itself" in capsys.readouterr().err


def test_offline_opens_only_what_was_opened_and_writes_nothing(
    published: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("TRACEFLEET_OFFLINE", "1")
    with pytest.raises(NoSuchVariantError, match="TRACEFLEET_OFFLINE is set"):
        tracefleet.open(published.url, SOURCE)
    store = open_store(published.url)
    for attempt in (
        lambda: open_writable(published.url),
        lambda: open_writable(published.url, check=False),
        lambda: store.copy_out("a", BytesIO()),
        lambda: store.open_checked("a", size=1, sha256=SHA256),
        lambda: store.presign("a", seconds=1),
    ):
        with pytest.raises(StoreError, match="TRACEFLEET_OFFLINE is set"):
            attempt()
    writing = set(vars(Store)) & {name for name in dir(published) if not name.startswith("_")}
    assert {"put_new", "put_file", "put_over", "remove"} <= writing
    assert not [name for name in writing if hasattr(store, name)]


def test_a_model_that_is_open_already_downloads_nothing(
    published: S3Store, monkeypatch: pytest.MonkeyPatch
):
    tracefleet.open(published, SOURCE)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("downloaded again")

    monkeypatch.setattr(Bucket, "fetch", refuse)
    tracefleet.open(published, SOURCE)


def test_verify_reads_the_store_and_not_the_cache(
    published: S3Store, capsys: pytest.CaptureFixture[str]
):
    tracefleet.open(published, SOURCE)
    assert main(["verify", published.url]) == 0
    (bundle,) = [f.path for f in published.walk("conversions") if f.path.endswith(".pt")]
    whole = BytesIO()
    published.copy_out(bundle, whole)
    data = whole.getvalue()
    published.put_over(bundle, data[:-1] + bytes([data[-1] ^ 1]))
    capsys.readouterr()
    assert main(["verify", published.url]) == 1
    assert bundle in capsys.readouterr().err


def test_the_command_line_reads_from_s3(
    published: S3Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert main(["list", published.url]) == 0
    assert SOURCE in capsys.readouterr().out
    assert main(["show", published.url, SOURCE]) == 0
    assert main(["pull", published.url, SOURCE, str(tmp_path / "pulled")]) == 0
    assert main(["run", published.url, SOURCE, "--ids", "3 4 5"]) == 0
    capsys.readouterr()
    assert main(["pull", published.url, SOURCE, "--presign", "--json"]) == 0
    signed = json.loads(capsys.readouterr().out)
    assert signed["files"][0]["path"] == "manifest.json"
    for file in signed["files"]:
        with urllib.request.urlopen(file["url"]) as answer:
            data = answer.read()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])
    for wrong in ([], ["--to", "there", "--presign"]):
        with pytest.raises(SystemExit):
            main(["pull", published.url, SOURCE, *wrong])
        assert "expected either --to DIR or --presign" in capsys.readouterr().err
