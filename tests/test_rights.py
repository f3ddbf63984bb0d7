"""The policies of `infra/bucket.yaml` on an S3 server that enforces them: enough, and no more.

moto judges actions and resources, and no conditions; of removals it asks for the bucket, where AWS
asks for each key. `tests/test_infra.py` has the conditions, and who may remove which key.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from tasks.publish.channels import promote
from tasks.publish.gc import collect
from tasks.publish.guard import is_guarded, set_guarded
from tests.support.reader_support import SOURCE, example_manifest, publish
from tests.support.s3_servers import S3Server, moto
from tests.test_infra import ROLES, Template
from tracefleet.channel import advance, channel_folder
from tracefleet.errors import StoreError
from tracefleet.published import load_manifest, select
from tracefleet.store import Store, open_writable

PREFIX = "team/fleet"
TEMPLATE = Template(Prefix=f"{PREFIX}/", **{"BucketName": "tracefleet"})
HOUR = 3600.0


@pytest.fixture(scope="module")
def users() -> Iterator[dict[str, S3Server]]:
    """The server as each role signs in to it; it enforces the roles' policies."""
    with moto() as server:
        iam = boto3.session.Session().client(
            "iam",
            endpoint_url=server.url,
            region_name=server.region,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        signed_in = {role: _sign_in(iam, server, role) for role in ROLES}
        httpx.post(f"{server.url}/moto-api/reset-auth", content="0").raise_for_status()
        yield signed_in


def _sign_in(iam: Any, server: S3Server, role: str) -> S3Server:
    """Make a user with the role's policy; without conditions, which moto takes for a denial."""
    iam.create_user(UserName=role)
    statements = [one for one in TEMPLATE.statements(f"{role}Policy") if "Condition" not in one]
    if any(one["Action"] == "s3:DeleteObject" for one in statements):
        bulk = {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::models"}
        statements.append(bulk)
    text = json.dumps({"Version": "2012-10-17", "Statement": statements})
    text = text.replace("arn:aws:s3:::models", f"arn:aws:s3:::{server.bucket}")
    iam.put_user_policy(UserName=role, PolicyName=role, PolicyDocument=text)
    key = iam.create_access_key(UserName=role)["AccessKey"]
    return replace(server, access_key=key["AccessKeyId"], secret_key=key["SecretAccessKey"])


@pytest.fixture
def store_as(
    users: dict[str, S3Server], aws_env: Callable[[S3Server], S3Server]
) -> Callable[[str], Store]:
    """Open the store as a role."""

    def open_as(role: str) -> Store:
        server = aws_env(users[role])
        return open_writable(f"s3://{server.bucket}/{PREFIX}", check=False)

    return open_as


def put(store: Store, number: int, channel: str = "latest") -> Any:
    return publish(store, bundle=b"bytes", channel=channel, options={"n": str(number)})


def test_each_role_can_do_its_work_and_no_more(store_as: Callable[[str], Store], tmp_path: Path):
    publisher = store_as("Publisher")
    manifest = put(publisher, 1)
    set_guarded(publisher, "production")
    folder = channel_folder(SOURCE, example_manifest().variant, "production")
    with pytest.raises(StoreError, match=r"[Dd]enied"):
        advance(publisher, folder, manifest_digest=manifest.digest, key=manifest.key)

    promoter = store_as("Promoter")
    selection = select(promoter, SOURCE)
    assert promote(promoter, selection, to="production", confirmed=True)[1] == 1
    assert promoter.names("publishing") == [], "its claim is gone"
    with pytest.raises(StoreError, match=r"[Dd]enied"):
        put(promoter, 2)

    reader = store_as("Reader")
    assert load_manifest(reader, select(reader, SOURCE, channel="production")).key == manifest.key
    assert is_guarded(reader, "production")
    for path in ("channels/x", "conversions/x", "guarded/latest.json"):
        with pytest.raises(StoreError, match=r"[Dd]enied"):
            reader.put_new(path, b"{}")


def test_gc_removes_what_it_may_and_writes_no_channel(store_as: Callable[[str], Store]):
    publisher = store_as("Publisher")
    manifest = put(publisher, 3)
    path = "conversions/hf.lost/" + "0" * 64 + "/model/config.json"
    publisher.put_new(path, b"{}")
    publisher.put_over("reports/run/index.html", b"a page")
    collector = store_as("Collector")
    now = time.time() + 24 * HOUR
    done = collect(collector, before=now - HOUR, now=now, reports_before=now - HOUR)
    assert done.damaged == ()
    assert {one.kind for one in done.removed} == {"files", "report"}
    folder = channel_folder(SOURCE, example_manifest().variant, "latest")
    with pytest.raises(StoreError, match=r"[Dd]enied"):
        advance(collector, folder, manifest_digest="0" * 64, key=manifest.key)
