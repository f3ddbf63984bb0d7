"""What goes wrong on this side of an S3 store: disk, local files, settings. Never 'the network'."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.support.s3_servers import S3Server
from tracefleet import cli
from tracefleet.errors import StoreError, StoreUnavailableError
from tracefleet.store import durable, s3_upload
from tracefleet.store.s3 import S3Store

MIB = 1 << 20
ON_S3 = pytest.mark.parametrize("store_url", ["swift", "moto"], indirect=True)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def visible(store: S3Store) -> list[str]:
    return [file.path for file in store.walk("") if not file.path.startswith("probe/")]


def cached(store: S3Store) -> list[str]:
    return [path.name for path in (store.cache.root / "blobs").rglob("*") if path.is_file()]


# A full disk under a download


class FullDisk:
    """Takes so many bytes, then no more."""

    def __init__(self, room: int) -> None:
        self.room, self._pwrite = room, os.pwrite

    def write(self, data: bytes, /) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)

    def pwrite(self, descriptor: int, data: bytes, offset: int, /) -> int:
        self.write(data)
        return self._pwrite(descriptor, data, offset)


@ON_S3
@pytest.mark.parametrize("room", [0, 10 * MIB])
@pytest.mark.parametrize("verb", ["open_checked", "place"])
def test_a_full_disk_under_a_download_speaks_of_the_cache_and_leaves_nothing_in_it(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, verb: str
):
    data = os.urandom(20 * MIB)  # three ranges
    store, size, sha256 = S3Store.at(store_url), len(data), digest(data)
    store.put_over("f", data)

    def get() -> bytes:
        if verb == "place":
            store.download_to("f", tmp_path / "placed", size=size, sha256=sha256)
            return (tmp_path / "placed").read_bytes()
        with store.open_checked("f", size=size, sha256=sha256) as handle:
            return handle.read()

    disk = FullDisk(room)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", disk.pwrite)
        with pytest.raises(StoreError, match=r"cache .*No space left.*Free some space") as caught:
            get()
    assert disk.room < 0, "the fault was never met"
    assert type(caught.value) is StoreError, "not what another try could mend"
    assert "network" not in str(caught.value)
    assert cached(store) == []
    assert not (tmp_path / "placed").exists()
    assert get() == data, "the control: with space it comes"
    assert cached(store) == [sha256]


@ON_S3
@pytest.mark.parametrize("room", [0, 10 * MIB])
def test_a_sink_that_can_take_no_more_fails_with_its_own_error(store_url: str, room: int):
    store = S3Store.at(store_url)
    store.put_over("f", bytes(20 * MIB))
    with pytest.raises(OSError, match="No space left") as caught:
        store.copy_out("f", FullDisk(room))
    assert caught.value.errno == errno.ENOSPC
    enough = FullDisk(20 * MIB)
    store.copy_out("f", enough)
    assert enough.room == 0, "the control: with just enough room all of it comes"


# A local file that is gone or can't be read, under an upload


@ON_S3
@pytest.mark.parametrize("size", [10, 12 * MIB])
@pytest.mark.usefixtures("small_parts")
def test_a_local_file_that_is_missing_is_named_and_nothing_is_begun(
    store_url: str, tmp_path: Path, size: int
):
    store, local, data = S3Store.at(store_url), tmp_path / "gone.pt", os.urandom(size)
    with pytest.raises(FileNotFoundError) as caught:
        store.put_file("f", local, size=size, sha256=digest(data))
    assert caught.value.filename == str(local)
    assert store_url not in str(caught.value), "not to be taken for a missing key"
    assert visible(store) == []
    assert list(store.uploads()) == []
    local.write_bytes(data)
    store.put_file("f", local, size=size, sha256=digest(data))
    assert visible(store) == ["f"], "the control: once it is there it is taken"


class BadSector:
    """A file whose bytes from some place on can't be read."""

    def __init__(self, file: BinaryIO, good: int) -> None:
        self._file, self._good = file, good

    def read(self, amount: int, /) -> bytes:
        if self._file.tell() + amount > self._good:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._file.read(amount)


@ON_S3
@pytest.mark.parametrize(("size", "good"), [(10, 0), (12 * MIB, 0), (12 * MIB, 6 * MIB)])
@pytest.mark.usefixtures("small_parts")
def test_a_local_file_that_cannot_be_read_is_named_and_nothing_is_left(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, good: int
):
    store, local, data = S3Store.at(store_url), tmp_path / "bad.pt", os.urandom(size)
    local.write_bytes(data)
    whole = s3_upload._upload

    def from_bad_disk(bucket, path, file, *promised):
        monkeypatch.setattr(file, "_file", BadSector(file._file, good))
        whole(bucket, path, file, *promised)

    with monkeypatch.context() as patch:
        patch.setattr(s3_upload, "_upload", from_bad_disk)
        with pytest.raises(StoreError, match=r"bad\.pt: .*can't be read: .*output error") as caught:
            store.put_file("f", local, size=size, sha256=digest(data))
    assert type(caught.value) is StoreError
    assert "network" not in str(caught.value)
    assert visible(store) == []
    assert list(store.uploads()) == []
    store.put_file("f", local, size=size, sha256=digest(data))
    assert visible(store) == ["f"], "the control: from a good disk it is taken"


# Settings that can't be used

ENDPOINT = r"AWS_ENDPOINT_URL .*such as http://"
SETTINGS: dict[str, tuple[dict[str, str], str]] = {
    "endpoint without a scheme": ({"AWS_ENDPOINT_URL": "localhost:9000"}, ENDPOINT),
    "endpoint of S3 alone": ({"AWS_ENDPOINT_URL_S3": "localhost:9000"}, ENDPOINT),
    "endpoint with another scheme": ({"AWS_ENDPOINT_URL": "ftp://localhost"}, ENDPOINT),
    "attempts that are no number": (
        {"AWS_MAX_ATTEMPTS": "abc"},
        "AWS_MAX_ATTEMPTS: expected a whole number, got 'abc'. Correct or unset",
    ),
    "no attempts": ({"AWS_MAX_ATTEMPTS": "0"}, "unset AWS_RETRY_MODE and AWS_MAX_ATTEMPTS"),
    "a retry mode that is none": ({"AWS_RETRY_MODE": "abc"}, "unset AWS_RETRY_MODE and"),
    "no certificates": (
        {"AWS_CA_BUNDLE": "{tmp}/none.pem"},
        r"AWS_CA_BUNDLE: expected .*none\.pem' \(.*No such file.*\)\. Correct or unset",
    ),
    "no certificates in it": ({"AWS_CA_BUNDLE": "{tmp}/garbage"}, "AWS_CA_BUNDLE: .* or unset"),
    "garbage as configuration": (
        {"AWS_CONFIG_FILE": "{tmp}/garbage"},
        r"config file: .*garbage\)\. Correct that file, or set AWS_CONFIG_FILE",
    ),
    "garbage as credentials": (
        {"AWS_SHARED_CREDENTIALS_FILE": "{tmp}/garbage"},
        r"config file: .*garbage\)\. Correct .*AWS_SHARED_CREDENTIALS_FILE",
    ),
    "attempts in the file": (
        {"AWS_CONFIG_FILE": "{tmp}/attempts"},
        "AWS_MAX_ATTEMPTS: .*got 'many'.* max_attempts in the AWS configuration file",
    ),
    "certificates in the file": (
        {"AWS_CONFIG_FILE": "{tmp}/certificates"},
        "AWS_CA_BUNDLE: .*got '/none.pem'.* ca_bundle in the AWS configuration file",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_cannot_be_used_is_named_with_what_to_do(
    name: str,
    moto_server: S3Server,
    aws_env: Callable[[S3Server], S3Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    url = f"s3://{aws_env(moto_server).bucket}/{hashlib.sha256(name.encode()).hexdigest()}"
    assert S3Store.at(url).put_new("a", b""), "the control: without the setting all is well"
    (tmp_path / "garbage").write_bytes(b"garbage\0 \xff\n[[[")
    (tmp_path / "attempts").write_text("[default]\nmax_attempts = many\n")
    (tmp_path / "certificates").write_text("[default]\nca_bundle = /none.pem\n")
    settings, says = SETTINGS[name]
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value.format(tmp=tmp_path))
    for attempt in (
        lambda: S3Store.at(url).check_writable(),
        lambda: S3Store.at(url).put_over("a", b""),
        lambda: S3Store.at(url).names(""),
        lambda: S3Store.at(url).read("a"),
        lambda: list(S3Store.at(url).walk("")),
        lambda: list(S3Store.at(url).uploads()),
        lambda: S3Store.at(url).open_checked("a", size=0, sha256=digest(b"")),
        lambda: S3Store.at(url).presign("a", seconds=1),
    ):
        with pytest.raises(StoreError, match=says) as caught:
            attempt()
        assert not isinstance(caught.value, StoreUnavailableError), "another try mends no setting"
        assert "network" not in str(caught.value)
    assert cli.main(["list", url]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "AWS_" in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_certificates_that_can_be_read_are_used(
    moto_server: S3Server,
    aws_env: Callable[[S3Server], S3Server],
    monkeypatch: pytest.MonkeyPatch,
):
    """The control of the look at them."""
    import certifi

    monkeypatch.setenv("AWS_CA_BUNDLE", certifi.where())
    store = S3Store.at(f"s3://{aws_env(moto_server).bucket}/certificates")
    store.put_over("a", b"1")
    assert store.names("") == ["a"]
    assert store.root.connection.s3._endpoint.http_session._verify == certifi.where()


def test_a_disk_that_fails_while_it_is_flushed_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "_FLUSH_SECONDS", 0.001)
    with (tmp_path / "file").open("wb") as file:
        with durable.flushing(file):
            time.sleep(0.05)  # the control: a disk that takes it
        monkeypatch.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space left"), durable.flushing(file):
            time.sleep(0.05)
