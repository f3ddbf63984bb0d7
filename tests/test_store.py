"""Stores in a folder: one winner, whole or nothing, nothing outside, clear errors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.reader_support import put_rounds, put_same_file, race
from tracefleet.errors import DigestMismatchError, ManifestError, StoreError
from tracefleet.store import Store, open_store, open_writable
from tracefleet.store.durable import sha256_of
from tracefleet.store.folder import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(root=tmp_path / "store")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(3 * 1024 * 1024 + 7))
    return path


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def put(store: Store, path: str, local: Path) -> None:
    store.put_file(path, local, size=local.stat().st_size, sha256=sha256_of(local))


def opened(store: Store) -> Callable[[str], object]:
    return lambda path: store.open_checked(path, size=0, sha256=sha256_of(Path(os.devnull)))


def copied(store: Store) -> Callable[[str], object]:
    return lambda path: store.copy_out(path, io.BytesIO())


# URLs


def test_urls_and_paths_name_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    absolute = tmp_path / "my store"
    spellings: list[str | Path] = [
        "./my store",
        "my store",
        "file://./my store",
        f"file://{absolute}",
        absolute.as_uri(),
        str(absolute),
        absolute,
        f"file://../{tmp_path.name}/my store",
    ]
    assert {open_store(spelling).url for spelling in spellings} == {absolute.as_uri()}
    assert open_store("./other").url != absolute.as_uri()
    assert not absolute.exists(), "opening must not create"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://bucket/x", "unknown scheme 'gs', expected s3://"),
        ("s3://", r"expected s3://bucket/prefix, got bucket ''"),
        ("s3://b/x", "got 'b' as the bucket's name, which no bucket can have"),
        ("~nobody-of-that-name/x", "which is no user's here. Write ./~nobody"),
        ("s3://bucket//x", "expected s3://bucket/prefix"),
        ("s3://bucket/../x", "expected s3://bucket/prefix"),
        ("s3://bucket/x?versionId=1", "expected s3://bucket/prefix"),
        ("file://host/x", "takes no host name"),
        ("file://", "takes no host name"),
        ("", "path is empty"),
    ],
)
def test_urls_that_no_store_serves_are_refused(url: str, message: str):
    with pytest.raises(StoreError, match=message):
        open_store(url)


# Creating


def test_what_was_put_reads_back(store: FileStore, weights: Path):
    assert store.put_new("a/b/one.json", b"1")
    put(store, "a/b/weights", weights)
    store.put_over("reports/r.html", b"old")
    store.put_over("reports/r.html", b"new")
    assert store.read("a/b/one.json") == b"1"
    assert store.read("reports/r.html") == b"new"
    assert store.read("a/b/weights") == weights.read_bytes()
    assert everything(store.root) == [
        "a",
        "a/b",
        "a/b/one.json",
        "a/b/weights",
        "reports",
        "reports/r.html",
    ]


def test_published_files_get_the_users_own_mode(store: FileStore, weights: Path):
    before = os.umask(0o027)
    try:
        put(store, "a", weights)
    finally:
        os.umask(before)
    assert (store.root / "a").stat().st_mode & 0o777 == 0o640


def test_a_second_put_new_changes_nothing(store: FileStore):
    assert store.put_new("a", b"first") is True
    assert store.put_new("a", b"second") is False
    assert store.read("a") == b"first"
    assert everything(store.root) == ["a"]


def test_eight_racing_processes_have_one_winner_in_each_round(tmp_path: Path):
    rounds = 40
    won = race(put_rounds, tmp_path, rounds)
    assert [sum(flags) for flags in zip(*won, strict=True)] == [1] * rounds
    whole = {f"racer {index}".encode() * 1000 for index in range(8)}
    assert {path.read_bytes() for path in (tmp_path / "log").iterdir()} <= whole
    assert not list(tmp_path.rglob(".tmp-*"))


def test_eight_processes_that_put_the_same_file_all_succeed(tmp_path: Path, weights: Path):
    root = tmp_path / "store"
    assert race(put_same_file, root, weights, sha256_of(weights)) == [True] * 8
    assert everything(root) == ["files", "files/same"]


def test_the_same_file_again_is_skipped_without_writing(store: FileStore, weights: Path):
    put(store, "a", weights)
    before = (store.root / "a").stat()
    put(store, "a", weights)
    after = (store.root / "a").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_other_bytes_under_the_same_path_are_refused(store: FileStore, weights: Path):
    store.put_new("a", b"something else")
    with pytest.raises(StoreError, match="already holds 14 bytes"):
        put(store, "a", weights)
    assert store.read("a") == b"something else"


def test_a_file_that_changed_since_it_was_hashed_never_becomes_visible(
    store: FileStore, weights: Path
):
    promised, size = sha256_of(weights), weights.stat().st_size
    with weights.open("r+b") as file:
        file.seek(size - 1)
        last = file.read(1)
        file.seek(size - 1)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(DigestMismatchError) as caught:
        store.put_file("a/w", weights, size=size, sha256=promised)
    assert caught.value.expected == promised
    assert caught.value.got == sha256_of(weights)
    assert not (store.root / "a/w").exists()
    assert everything(store.root) == ["a"]


def test_a_missing_local_file_is_not_blamed_on_the_store(store: FileStore, tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        store.put_file("a", tmp_path / "absent", size=1, sha256="0" * 64)
    assert everything(store.root) == []


# Reading


def test_what_is_not_there_is_said_so(store: FileStore):
    for _ in range(2):  # before the store's folder exists, and after
        assert store.names("") == []
        assert store.names("a/b") == []
        assert list(store.walk("")) == []
        for read in (store.read, opened(store), copied(store)):
            with pytest.raises(FileNotFoundError):
                read("a")
        store.root.mkdir(exist_ok=True)


def test_names_are_the_sorted_children_without_temporary_files(store: FileStore):
    for path in ("f/b", "f/a", "f/sub/x", "top"):
        store.put_new(path, b"")
    (store.root / "f" / ".tmp-left-by-a-killed-writer").touch()
    assert store.names("f") == ["a", "b", "sub"]
    assert store.names("") == ["f", "top"]
    assert store.names("top") == [], "a file has no children"


# Staying inside


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", ".", "a//b", "a\\b"])
def test_no_path_leaves_the_store(store: FileStore, tmp_path: Path, weights: Path, path: str):
    (tmp_path / "x").write_bytes(b"outside")
    for attempt in (
        lambda: store.put_new(path, b""),
        lambda: store.put_over(path, b""),
        lambda: put(store, path, weights),
        lambda: store.read(path),
        lambda: store.names(path),
        lambda: list(store.walk(path)),
        lambda: opened(store)(path),
        lambda: copied(store)(path),
        lambda: store.remove([path]),
    ):
        with pytest.raises(ManifestError, match="path expected relative"):
            attempt()
    assert (tmp_path / "x").read_bytes() == b"outside"


@pytest.mark.parametrize("link", ["folder", "file"])
def test_no_symbolic_link_leads_out(store: FileStore, tmp_path: Path, link: str):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    store.put_new("inside/secret", b"ours")
    if link == "folder":
        (store.root / "door").symlink_to(outside)
        path = "door/secret"
    else:
        (store.root / "door").symlink_to(outside / "secret")
        path = "door"
    for attempt in (
        lambda: store.read(path),
        lambda: opened(store)(path),
        lambda: copied(store)(path),
        lambda: store.put_over(path, b"overwritten"),
        lambda: store.put_new(f"{path}-new" if link == "folder" else path, b"planted"),
    ):
        with pytest.raises(StoreError, match="symbolic link"):
            attempt()
    assert [p.name for p in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


def test_a_symbolic_link_that_stays_inside_is_followed(store: FileStore):
    store.put_new("real/a", b"1")
    (store.root / "alias").symlink_to(store.root / "real")
    assert store.read("alias/a") == b"1"


def test_the_root_itself_may_be_a_symbolic_link(store: FileStore, tmp_path: Path):
    store.put_new("a", b"1")
    (tmp_path / "alias").symlink_to(store.root)
    assert open_store(tmp_path / "alias").read("a") == b"1"


# Stores that can't serve


def test_a_writable_store_passes_the_check_and_is_left_as_it_was(store: FileStore, tmp_path: Path):
    store.check_writable()
    assert everything(tmp_path) == [], "the check of an absent store left something behind"
    store.put_new("a", b"")
    store.check_writable()
    assert everything(store.root) == ["a"]


def test_a_store_below_a_file_is_refused_with_its_url(tmp_path: Path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        store = FileStore(root=root)
        for attempt in (
            store.check_writable,
            lambda store=store: open_writable(store.root),
            lambda store=store: store.put_new("a", b""),
            lambda store=store: store.put_over("a", b""),
        ):
            with pytest.raises(
                StoreError, match=f"{store.url}.*C(heck that|hoose another)"
            ) as caught:
                attempt()
            told = "got the file" in str(caught.value)
            assert told or isinstance(caught.value.__cause__, OSError)
    for listing in (FileStore.names, lambda store, path: list(store.walk(path))):
        with pytest.raises(StoreError, match="can't list"):
            listing(FileStore(root=tmp_path / "file"), "channels")
    assert everything(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_file_system_that_refuses_links_or_writes_is_named(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreError, match="hard links"):
        store.check_writable()
    with pytest.raises(StoreError, match=f"{store.url}/a: can't write it"):
        store.put_new("a", b"")
    assert everything(tmp_path) == ["store"], "a temporary file was left behind"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_how_much_is_missing_and_leaves_nothing(
    store: FileStore, weights: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    size = weights.stat().st_size
    with pytest.raises(StoreError, match=rf"no space left: {size} bytes needed, \d+ free"):
        put(store, "a/w", weights)
    assert everything(store.root) == ["a"]
    monkeypatch.undo()
    put(store, "a/w", weights)
    assert (store.root / "a/w").exists(), "the control: with space it works"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets us mount no small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_leaves_nothing(tmp_path: Path, weights: Path):
    with small_disk(tmp_path / "disk"):
        store = FileStore(root=tmp_path / "disk")
        with pytest.raises(StoreError, match="no space left"):
            put(store, "w", weights)
        assert everything(store.root) == []
        assert store.put_new("small", b"fits")


def test_every_new_name_is_synced_up_to_the_root(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    store.put_new("a/b/c", b"1")
    root = store.root
    assert Path(synced[0]).name.startswith(".tmp-"), "the contents come before the name"
    assert {str(p) for p in (root / "a/b", root / "a", root, tmp_path)} <= set(synced[1:])


def test_the_digest_of_a_file_is_its_sha256(weights: Path):
    assert sha256_of(weights) == hashlib.sha256(weights.read_bytes()).hexdigest()
