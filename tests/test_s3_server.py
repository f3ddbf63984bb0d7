"""The S3 server that newcomers and the other tests use: its promises and its refusals."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
from botocore.exceptions import ClientError

from infra.s3_server import main
from tests.support import s3_servers
from tests.support.s3_servers import BUCKET, S3Server

PART = b"p" * (5 << 20)
WRITERS, ROUNDS = 16, 10


@pytest.fixture
def client(swift_server: S3Server):
    client = swift_server.client()
    yield client
    s3_servers.empty(client)


def code_of(call, **arguments) -> str:
    """The S3 error code of a call, or ``ok``."""
    try:
        call(Bucket=BUCKET, **arguments)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return "ok"


def test_of_many_conditional_writers_exactly_one_wins(swift_server: S3Server, client):
    clients = [swift_server.client() for _ in range(WRITERS)]
    together = Barrier(WRITERS)

    def write(writer: int, key: str) -> str:
        together.wait()
        body = f"writer {writer}".encode()
        return code_of(clients[writer].put_object, Key=key, Body=body, IfNoneMatch="*")

    with ThreadPoolExecutor(WRITERS) as pool:
        for key in (f"race/{number}" for number in range(ROUNDS)):
            codes = list(pool.map(write, range(WRITERS), [key] * WRITERS))
            assert Counter(codes) == {"ok": 1, "PreconditionFailed": WRITERS - 1}
            held = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            assert held == f"writer {codes.index('ok')}".encode()


def test_a_conditional_completion_is_refused_where_the_key_is_held(client):
    def complete(key: str) -> str:
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        parts = [
            {"PartNumber": number, "ETag": _part(client, key, upload, number, data)}
            for number, data in ((1, PART), (2, b"the rest"))
        ]
        done = {"Key": key, "UploadId": upload, "MultipartUpload": {"Parts": parts}}
        return code_of(client.complete_multipart_upload, IfNoneMatch="*", **done)

    assert complete("free") == "ok"
    assert s3_servers.objects(client, prefix="free") == {"free": PART + b"the rest"}
    client.put_object(Bucket=BUCKET, Key="held", Body=b"first")
    assert complete("held") == "PreconditionFailed"
    assert s3_servers.objects(client, prefix="held") == {"held": b"first"}


def _part(client, key: str, upload: str, number: int, data: bytes) -> str:
    part = client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=number, Body=data)
    return str(part["ETag"])


def test_a_wrong_checksum_is_refused_and_leaves_nothing(client):
    wrong = "A" * 43 + "="
    assert code_of(client.put_object, Key="x", Body=b"x", ChecksumSHA256=wrong) == "BadDigest"
    assert s3_servers.objects(client) == {}


def test_metadata_names_come_back_in_lower_case(client):
    client.put_object(Bucket=BUCKET, Key="x", Body=b"x", Metadata={"sha256": "0f"})
    answer = client.head_object(Bucket=BUCKET, Key="x")
    assert answer["Metadata"] == {"sha256": "0f"}
    assert "x-amz-meta-sha256" in answer["ResponseMetadata"]["HTTPHeaders"]


def test_a_listing_has_sorted_pages_of_a_thousand_at_most(client):
    for key in ("b", "a/2", "a-1", "a/1"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"")
    assert client.list_objects_v2(Bucket=BUCKET)["MaxKeys"] == 1000
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=BUCKET, PaginationConfig={"PageSize": 3}
    )
    keys = [[item["Key"] for item in page["Contents"]] for page in pages]
    assert keys == [["a-1", "a/1", "a/2"], ["b"]]


@pytest.mark.parametrize(
    "change",
    [
        {"secret_key": "wrong"},
        {"access_key": "tracefleet:nobody"},
    ],
)
def test_a_bad_secret_or_name_is_refused(swift_server: S3Server, change: dict[str, str]):
    stranger = replace(swift_server, **change).client()
    assert code_of(stranger.list_objects_v2) == "SignatureDoesNotMatch"
    assert code_of(stranger.put_object, Key="x", Body=b"x") == "SignatureDoesNotMatch"
    assert code_of(swift_server.client().list_objects_v2) == "ok"


def test_objects_outlive_a_restart(tmp_path: Path):
    with s3_servers.swift(tmp_path) as first:
        first.client().put_object(Bucket=BUCKET, Key="kept", Body=PART, Metadata={"a": "b"})
    with s3_servers.swift(tmp_path) as second:
        client = second.client()
        assert s3_servers.objects(client) == {"kept": PART}
        assert client.head_object(Bucket=BUCKET, Key="kept")["Metadata"] == {"a": "b"}
    assert first.secret_key != second.secret_key


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_what_to_paste_and_ends_at_a_signal(tmp_path: Path, number: signal.Signals):
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.s3_server", "--folder", str(tmp_path / "s3"), "--port", "0"],
        cwd=s3_servers.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    lines = [process.stdout.readline().strip() for _ in range(6)]
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0
    patterns = [
        r"# .*s3://tracefleet.*",
        r"# .*paste.*",
        r"export AWS_ENDPOINT_URL=http://127\.0\.0\.1:\d+",
        r"export AWS_ACCESS_KEY_ID=tracefleet:local",
        r"export AWS_SECRET_ACCESS_KEY=[\w-]{20,}",
        r"export AWS_DEFAULT_REGION=us-east-1",
    ]
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What main says instead of starting: one line."""
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err


def test_a_port_that_is_taken(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(RuntimeError, match=rf"s3_server: port {port} .*--port") as failed,
            s3_servers.swift(tmp_path, port=port),
        ):
            pass
    [_, line] = str(failed.value).splitlines()
    assert line.startswith("s3_server: ")


def test_a_folder_that_another_server_uses(tmp_path: Path, capsys):
    with s3_servers.swift(tmp_path):
        assert "another server" in refusal(capsys, "--folder", str(tmp_path), "--port", "0")


def test_a_folder_that_can_not_be_one(tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    assert "--folder" in refusal(capsys, "--folder", str(tmp_path / "file" / "below"))


def test_a_file_system_without_attributes(tmp_path: Path, capsys, monkeypatch):
    def refuse(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    assert "extended attributes" in refusal(capsys, "--folder", str(tmp_path))


def test_swift_is_not_installed(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "eventlet", None)
    monkeypatch.delitem(sys.modules, "infra.swift_app", raising=False)
    assert "pip install '.[s3server]'" in refusal(capsys, "--folder", str(tmp_path))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--port", "70000"),
        ("--bucket", "No_Bucket"),
        ("--access-key", "nocolon"),
        ("--secret", "with space"),
    ],
)
def test_what_swift_would_stumble_over(tmp_path: Path, capsys, option: str, value: str):
    said = refusal(capsys, "--folder", str(tmp_path / "never"), option, value)
    assert option.removeprefix("--").replace("-", " ") in said
    assert not (tmp_path / "never").exists()
