"""Fetch from S3: a real moto server on loopback."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from tasks.errors import RequestError, UnsafeCheckpointError, UnsupportedCheckpointError
from tasks.fetch import s3
from tasks.fetch.checkpoint import fetch, fetch_description, resolve
from tests.support.fetch_support import NEEDED_OF_WHOLE, sharded, whole
from tracefleet.store import s3_client
from tracefleet.store.cache import cache_root
from tracefleet.store.s3_client import share_connection

SOURCE = "s3://models/org/tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture
def aws(moto_server, aws_env, monkeypatch):
    """The standard AWS environment, with one attempt for each request."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return aws_env(moto_server)


@pytest.fixture
def bucket(aws):
    # A session of its own: the default one remembers the first credentials that it met.
    bucket = boto3.session.Session().resource("s3").Bucket("models")
    bucket.create()
    yield bucket
    bucket.objects.all().delete()


def put(bucket, files, prefix="org/tiny"):
    for path, data in files.items():
        bucket.put_object(Key=f"{prefix}/{path}", Body=data)


def test_needed_files_arrive_whole(bucket):
    put(bucket, whole())
    put(bucket, {"config.json": b"another"}, "org/tiny-2")
    resolved = resolve(f"{SOURCE}/")
    assert (resolved.source, len(resolved.commit)) == (SOURCE, 64)
    assert tuple(file.path for file in resolved.files) == NEEDED_OF_WHOLE
    checkpoint = fetch(resolved)
    found = [path for path in checkpoint.folder.rglob("*") if path.is_file()]
    assert {str(path.relative_to(checkpoint.folder)) for path in found} == set(NEEDED_OF_WHOLE)
    assert all((checkpoint.folder / p).read_bytes() == whole()[p] for p in NEEDED_OF_WHOLE)
    assert checkpoint.license == "apache-2.0"
    assert checkpoint.folder.is_relative_to(cache_root())


def test_the_commit_is_the_content(bucket):
    put(bucket, whole())
    commit = resolve(SOURCE).commit
    put(bucket, whole())
    assert resolve(SOURCE).commit == commit
    put(bucket, {"onnx/model.onnx": b"not needed"})
    assert resolve(SOURCE).commit == commit
    put(bucket, {"vocab.txt": b"[PAD]!"})
    assert resolve(SOURCE).commit != commit


def test_shards_and_a_bucket_without_prefix(bucket):
    for path, data in sharded().items():
        bucket.put_object(Key=path, Body=data)
    checkpoint = fetch(resolve("s3://models"))
    names = {file.path for file in checkpoint.files}
    assert {"model-1.safetensors", "model-2.safetensors"} < names
    assert "model-3.safetensors" not in names


def test_the_description_comes_before_the_weights(bucket):
    put(bucket, sharded())
    folder = fetch_description(resolve(SOURCE))
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@dataclass
class Downloads:
    """Names of the objects that were downloaded, and what to do after each."""

    names: list[str] = field(default_factory=list)
    after: list[Callable[[str, Path], object]] = field(default_factory=list)


@pytest.fixture
def downloads(monkeypatch):
    original, seen = s3._Prefix.download, Downloads()

    def spy(self, path, target):
        original(self, path, target)
        seen.names.append(path)
        for action in seen.after:
            action(path, target)

    monkeypatch.setattr(s3._Prefix, "download", spy)
    return seen


def test_a_finished_folder_is_used_again(bucket, downloads):
    put(bucket, whole())
    first = fetch(resolve(SOURCE))
    assert WEIGHTS in downloads.names
    downloads.names.clear()
    assert fetch(resolve(SOURCE)) == first
    assert downloads.names == []


def test_a_finished_folder_that_lost_a_byte_is_fetched_again(bucket, downloads):
    put(bucket, whole())
    weights = fetch(resolve(SOURCE)).folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    downloads.names.clear()
    assert (fetch(resolve(SOURCE)).folder / WEIGHTS).read_bytes() == whole()[WEIGHTS]
    assert WEIGHTS in downloads.names


def test_an_object_that_is_overwritten_during_the_download(bucket, downloads):
    put(bucket, whole(b"before"))
    resolved = resolve(SOURCE)
    overwrite = whole(b"behind")[WEIGHTS]

    def meddle(path, target):
        if path == WEIGHTS:
            put(bucket, {WEIGHTS: overwrite})

    downloads.after.append(meddle)
    with pytest.raises(UnsafeCheckpointError, match=f"expected content {resolved.commit}, got"):
        fetch(resolved)
    assert _left(resolved) == []
    downloads.after.clear()
    assert b"behind" in (fetch(resolve(SOURCE)).folder / WEIGHTS).read_bytes()


def test_an_object_that_is_overwritten_between_two_of_its_ranges(
    swift_server, aws_env, monkeypatch
):
    aws_env(swift_server)  # moto does not know If-Match
    monkeypatch.setattr(s3_client, "RANGE_BYTES", 1 << 10)
    bucket = boto3.session.Session().resource("s3").Bucket(swift_server.bucket)
    source, prefix = f"s3://{swift_server.bucket}/org/torn", "org/torn"
    put(bucket, whole(b"before" * 1000), prefix)
    resolved = resolve(source)
    overwritten: list[None] = []

    def meddle(params, **_):
        if params["url_path"].endswith(WEIGHTS) and not overwritten:
            overwritten.append(put(bucket, {WEIGHTS: whole(b"behind" * 1000)[WEIGHTS]}, prefix))

    events = share_connection().s3.meta.events
    events.register("before-call.s3.GetObject", meddle)
    try:
        with pytest.raises(UnsafeCheckpointError, match=f"got another {WEIGHTS}"):
            fetch(resolved)
    finally:
        events.unregister("before-call.s3.GetObject", meddle)
    assert _left(resolved) == []
    assert fetch(resolve(source)).files, "the control: what stays as it is arrives"


def test_an_object_that_is_overwritten_and_put_back(bucket, downloads):
    put(bucket, whole())
    resolved = resolve(SOURCE)

    def meddle(path, target):
        if path == WEIGHTS:
            threading.Event().wait(1.1)  # LastModified counts whole seconds
            put(bucket, {WEIGHTS: whole()[WEIGHTS]})

    downloads.after.append(meddle)
    with pytest.raises(UnsafeCheckpointError, match="written again"):
        fetch(resolved)
    assert _left(resolved) == []


def test_an_object_that_changed_between_resolve_and_fetch(bucket, downloads):
    put(bucket, whole(b"before"))
    resolved = resolve(SOURCE)
    put(bucket, whole(b"behind"))
    with pytest.raises(UnsafeCheckpointError, match="overwritten"):
        fetch(resolved)
    bucket.Object(f"org/tiny/{WEIGHTS}").delete()
    with pytest.raises(UnsafeCheckpointError, match=f"no object {WEIGHTS}"):
        fetch(resolved)
    assert downloads.names == []


def test_a_truncated_download_is_not_kept(bucket, downloads):
    put(bucket, whole())
    downloads.after.append(lambda path, target: target.write_bytes(target.read_bytes()[:-1]))
    resolved = resolve(SOURCE)
    with pytest.raises(UnsafeCheckpointError, match="bytes, got"):
        fetch(resolved)
    assert _left(resolved) == []


def test_what_a_killed_download_left_is_swept_up(bucket):
    put(bucket, whole())
    cache = fetch_description(resolve(SOURCE)).parent
    killed, running = cache / "killed.partial", cache / "running.partial"
    killed.mkdir()
    running.mkdir()
    os.utime(killed, (1, 1))
    fetch(resolve(SOURCE))
    assert (killed.exists(), running.exists()) == (False, True)


def test_no_bucket_and_no_prefix(bucket):
    put(bucket, whole())
    with pytest.raises(RequestError, match="bucket 'nosuch'"):
        resolve("s3://nosuch/org/tiny")
    with pytest.raises(RequestError, match="prefix 'org/none'"):
        resolve("s3://models/org/none")


def test_no_config_there(bucket):
    put(bucket, {"readme.txt": b"x"})
    with pytest.raises(UnsupportedCheckpointError, match=r"no config\.json.*readme\.txt"):
        resolve(SOURCE)


def test_no_credentials(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(RequestError, match="AWS_PROFILE"):
        resolve(SOURCE)


def test_a_setting_that_can_not_be_used(bucket, monkeypatch):
    put(bucket, whole())
    for name, value, says in (
        ("AWS_MAX_ATTEMPTS", "many", "whole number, got 'many'"),
        ("AWS_ENDPOINT_URL", "localhost:9", "Set AWS_ENDPOINT_URL"),
        ("AWS_PROFILE", "none", "AWS_PROFILE"),
    ):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            with pytest.raises(RequestError, match=f"bucket 'models'.*{says}"):
                resolve(SOURCE)
    assert resolve(SOURCE).files


class _Denying(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):  # noqa: A002
        pass


def test_denied(aws, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Denying)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    with pytest.raises(RequestError, match=r"bucket 'models'.*s3:ListBucket"):
        resolve(SOURCE)
    server.shutdown()
    server.server_close()


def test_no_connection_keeps_the_librarys_error(aws, monkeypatch):
    from botocore.exceptions import EndpointConnectionError

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        EndpointConnectionError, match="Check the network and AWS_ENDPOINT_URL"
    ) as lost:
        resolve(SOURCE)
    assert "http://127.0.0.1:9" in str(lost.value)


def _left(resolved):
    """What a fetch left in the cache folder."""
    slug = hashlib.sha256(resolved.source.encode()).hexdigest()
    return list((cache_root() / "s3" / slug).iterdir())
