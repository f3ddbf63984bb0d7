"""Guarded channels: nothing enters them but what a person confirmed, by whatever way it comes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from flows.convert import convert
from tasks.errors import RequestError
from tasks.fleet.spec import FleetSpec, read_fleet
from tasks.publish.channels import promote, rollback
from tasks.publish.guard import guard_stores, is_guarded, set_guarded
from tasks.publish.identity import Identity
from tasks.publish.point import move_channels, point_channel
from tasks.publish.withdraw import reinstate, withdraw
from tasks.request.conversion import make_request
from tests.support.reader_support import SOURCE, example_manifest, publish
from tracefleet.errors import StoreError, StoreUnavailableError
from tracefleet.manifest import Manifest
from tracefleet.published import Selection, load_manifest, select
from tracefleet.store import open_existing, open_writable
from tracefleet.store.folder import FileStore

PRODUCTION = "production"


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    """A store with two conversions: `old` in production, `new` in latest."""
    store = FileStore(root=tmp_path / "store")
    for name, channel in (("old", PRODUCTION), ("new", "latest")):
        put(store, name, channel)
    set_guarded(store, PRODUCTION)
    return store


def put(store: FileStore, name: str, channel: str) -> Manifest:
    options = {"name": name}
    key = Identity.of(example_manifest(options=options)).key
    return publish(store, bundle=b"no model", channel=channel, key=key, options=options)


def chosen(store: FileStore, channel: str = PRODUCTION) -> Selection:
    return select(store, SOURCE, channel=channel)


def name(store: FileStore) -> str:
    return load_manifest(store, chosen(store)).options["name"]


def test_a_promotion_into_a_guarded_channel_needs_a_persons_word(store: FileStore):
    with pytest.raises(RequestError, match=r"'production', which is guarded .*promote-conversion"):
        promote(store, chosen(store, "latest"), to=PRODUCTION)
    assert name(store) == "old"
    assert promote(store, chosen(store, "latest"), to="stable")[1] == 1, "the control"
    promote(store, chosen(store, "latest"), to=PRODUCTION, confirmed=True)
    assert name(store) == "new"


def test_a_guard_is_lifted_and_set_again(store: FileStore):
    assert not set_guarded(store, PRODUCTION), "it was guarded before"
    assert set_guarded(store, PRODUCTION, guarded=False)
    promote(store, chosen(store, "latest"), to=PRODUCTION)
    assert name(store) == "new"
    assert set_guarded(store, PRODUCTION)
    assert is_guarded(store, PRODUCTION)
    assert not is_guarded(store, "latest")


def test_nothing_is_published_into_a_guarded_channel(store: FileStore):
    new = load_manifest(store, chosen(store, "latest"))
    for way in (point_channel, move_channels):
        with pytest.raises(RequestError, match="expected one that conversions are published into"):
            way(store, new, channel=PRODUCTION)
    assert name(store) == "old"
    old = load_manifest(store, chosen(store))
    assert point_channel(store, old, channel=PRODUCTION).number == 1, "it stands there already"


def test_a_request_for_a_guarded_channel_is_refused_before_any_work(store: FileStore, checkpoint):
    fields = {"source": str(checkpoint("bert")), "task": "feature-extraction", "lengths": [8]}
    request = make_request({**fields, "store": str(store.root), "channel": PRODUCTION})
    before = sorted(store.root.rglob("*"))
    with pytest.raises(RequestError, match="guarded"):
        convert(request)
    assert sorted(store.root.rglob("*")) == before


def test_the_way_out_of_trouble_is_never_held_up(store: FileStore):
    promote(store, chosen(store, "latest"), to=PRODUCTION, confirmed=True)
    rollback(store, chosen(store))
    assert name(store) == "old"
    withdraw(store, chosen(store), "wrong on long texts")
    with pytest.raises(RequestError, match="reinstate: expected a person's word"):
        reinstate(store, chosen(store))
    reinstate(store, chosen(store), confirmed=True)
    assert name(store) == "old"


@pytest.mark.parametrize("damaged", [b"", b"{}", b'{"guarded": "no"}', b"[1]", b"[" * 9_000])
def test_a_damaged_guard_lets_nothing_in(store: FileStore, damaged: bytes):
    store.put_over(f"guarded/{PRODUCTION}.json", damaged)
    with pytest.raises(StoreError, match="tracefleet guard"):
        promote(store, chosen(store, "latest"), to=PRODUCTION)
    assert name(store) == "old"
    assert set_guarded(store, PRODUCTION), "it is written anew"
    assert is_guarded(store, PRODUCTION)


def test_a_fleet_keeps_its_guards_in_its_stores(
    store: FileStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    away = tmp_path / "no-folder"
    away.write_text("a file")
    with caplog.at_level(logging.WARNING):
        guard_stores([str(away), str(store.root), str(store.root)], ["production", "stable"])
    assert is_guarded(store, "stable")
    assert "could not be guarded" in caplog.text


def test_a_store_that_is_away_is_asked_again_and_holds_up_no_other(tmp_path: Path, monkeypatch):
    there = FileStore(root=tmp_path / "there")

    def open_or_fail(url: str, **options: Any) -> Any:
        if url.endswith("away"):
            raise StoreUnavailableError("away: 503")
        return open_writable(url, **options)

    monkeypatch.setattr("tasks.publish.guard.open_writable", open_or_fail)
    with pytest.raises(StoreUnavailableError):
        guard_stores([f"file://{tmp_path}/away", there.url], [PRODUCTION])
    assert is_guarded(there, PRODUCTION)
    # Nothing else was written to it, and it is a store all the same.
    assert list(open_existing(there.url).walk("guarded"))


def test_a_fleet_file_names_guarded_channels_and_publishes_into_none(tmp_path: Path):
    path = tmp_path / "fleet.yaml"
    entry = "{source: hf://org/name, task: fill-mask, lengths: [8]"
    path.write_text(f"guarded: [production]\nentries:\n  a: {entry}}}\n")
    spec = read_fleet(path)
    assert spec.guarded == ("production",)
    assert spec.with_store("./other").guarded == ("production",)
    assert list(spec.requests()) == ["a"]
    path.write_text(f"guarded: [production]\nentries:\n  a: {entry}, channel: production}}\n")
    with pytest.raises(RequestError, match=r"a\.channel: expected one that the file"):
        read_fleet(path).requests()
    path.write_text(f"guarded: [Prod/uction]\nentries:\n  a: {entry}}}\n")
    with pytest.raises(RequestError, match=r"guarded.*lower-case"):
        read_fleet(path)
    assert FleetSpec(entries={"a": {}}).guarded == ()


def test_the_command_line_guards_promotes_and_lifts(store: FileStore, capsys):
    where = ["--store", str(store.root)]
    promotion = ["promote", *where, "--source", SOURCE, "--channel", "latest", "--to", PRODUCTION]
    assert main(promotion) == 1
    assert "RequestError: promote: expected a person's word" in capsys.readouterr().err
    assert main([*promotion, "--confirm"]) == 0
    assert capsys.readouterr().out.startswith("channel  production #2 -> ")
    assert main(["guard", *where, "--channel", "stable"]) == 0
    assert main(["guard", *where, "--channel", "stable"]) == 0
    assert main(["guard", *where, "--channel", "stable", "--lift", "--json"]) == 0
    guarded, again, lifted = capsys.readouterr().out.split("\n", 2)
    assert (guarded, again) == (
        "channel  stable is guarded from now on",
        "channel  stable is guarded already",
    )
    assert json.loads(lifted) == {"channel": "stable", "guarded": False}
    assert main(["guard", *where, "--channel", "no/channel"]) == 1
    assert "expected lower-case letters" in capsys.readouterr().err
