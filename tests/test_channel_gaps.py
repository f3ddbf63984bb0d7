"""Channels that somebody changed by hand: gaps are passed over, the last number is refused, and
``tracefleet log`` shows what is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import RequestError
from tasks.publish import point as publishing
from tasks.publish.channels import promote, rollback
from tasks.publish.conversion import attest
from tasks.publish.identity import Identity
from tasks.publish.withdraw import reinstate, withdraw
from tests.support.reader_support import SOURCE, example_manifest, publish
from tracefleet import channel_numbers, cli
from tracefleet.channel import ChannelEntry, advance, entry_path, read_current, read_entry
from tracefleet.errors import ManifestError, StoreUnavailableError
from tracefleet.manifest import Manifest
from tracefleet.published import Selection, load_manifest, select
from tracefleet.store.folder import FileStore

LAST = 9_999_999_999


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(root=tmp_path / "store")


def put(store: FileStore, name: str, channel: str = "latest") -> Manifest:
    options = {"name": name}
    key = Identity.of(example_manifest(options=options)).key
    return publish(store, bundle=b"bytes", channel=channel, key=key, options=options)


def chosen(store: FileStore) -> Selection:
    return select(store, SOURCE)


def name(store: FileStore) -> str:
    return load_manifest(store, chosen(store)).options["name"]


def forge(store: FileStore, like: int, number: int, previous: int) -> None:
    """Copy one number of the channel to another."""
    folder = chosen(store).published.folder
    fields = json.loads(store.read(entry_path(folder, like))) | {"previous": previous}
    store.put_new(entry_path(folder, number), json.dumps(fields).encode())


def point(store: FileStore, manifest: Manifest) -> int:
    return publishing.point_channel(store, manifest, channel="latest").number


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = cli.main(["log", *words])
    out = capsys.readouterr().out
    return code, json.loads(out) if "--json" in words else out


def test_a_gap_below_a_forged_number_holds_nothing_up(store: FileStore):
    for text in ("one", "two"):
        put(store, text)
    forge(store, like=1, number=7, previous=1)
    assert name(store) == "one", "readers take the highest number"
    assert point(store, new := put(store, "three")) == 8
    assert point(store, new) == 8
    rollback(store, chosen(store))
    rollback(store, chosen(store))
    assert chosen(store).number == 10


def test_a_rollback_passes_over_a_number_that_was_removed(store: FileStore, tmp_path: Path):
    for text in ("one", "two", "three"):
        put(store, text)
    folder = chosen(store).published.folder
    (tmp_path / "store" / entry_path(folder, 2)).unlink()
    rollback(store, chosen(store))
    assert name(store) == "one"
    with pytest.raises(ManifestError, match=r"got none: it was removed\. `tracefleet log`"):
        read_entry(store, folder, 2)
    with pytest.raises(RequestError, match=r"got nothing\. `tracefleet log` shows"):
        rollback(store, chosen(store))


def test_a_withdrawal_is_found_below_a_gap(store: FileStore, tmp_path: Path):
    put(store, "one")
    two = put(store, "two")
    withdraw(store, chosen(store), "wrong")
    three = put(store, "three")
    put(store, "four")
    folder = chosen(store).published.folder
    (tmp_path / "store" / entry_path(folder, 4)).unlink()
    standing = publishing.point_channel(store, two, channel="latest")
    assert standing.withdrawal is not None
    assert (standing.number, standing.withdrawal.number) == (5, 3)
    assert reinstate(store, chosen(store), number=3)[1] == 6
    assert point(store, three) == 7, "the control: what was not withdrawn takes over"


def test_no_number_follows_the_last_one_and_nobody_is_told_otherwise(store: FileStore):
    put(store, "one")
    two = put(store, "two")
    other = put(store, "three", channel="candidate")
    forge(store, like=1, number=LAST, previous=LAST - 1)
    candidate = select(store, SOURCE, channel="candidate")
    for move in (
        lambda: point(store, other),
        lambda: rollback(store, chosen(store)),
        lambda: promote(store, candidate),
        lambda: withdraw(store, chosen(store), "forged"),
    ):
        with pytest.raises(ManifestError, match=r"9999999999\.json: .*Remove that file by hand"):
            move()
    folder = chosen(store).published.folder
    assert len(store.names(folder)) == 3
    (store.root / entry_path(folder, LAST)).unlink()
    assert point(store, two) == 2, "the control: once it is removed, all is as before"
    assert point(store, other) == 3


def test_a_channel_that_is_always_taken_ends_in_an_error(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
):
    put(store, "one")
    two = put(store, "two", channel="candidate")
    folder = chosen(store).published.folder
    one = read_current(store, folder)
    assert one is not None
    monkeypatch.setattr(FileStore, "put_new", lambda *_: False)
    for module in (publishing, channel_numbers):
        monkeypatch.setattr(module, "MOST_LOST", 3)
    with pytest.raises(StoreUnavailableError, match="3 times that another writer"):
        advance(store, folder, manifest_digest=two.digest, key=two.key)
    log = publishing._Log(folder=folder)
    with pytest.raises(StoreUnavailableError, match="3 times that another writer"):
        publishing._move(store, log, two, repeat=False)


def test_log_tells_each_number_of_a_channel(store: FileStore, capsys: pytest.CaptureFixture[str]):
    one = put(store, "one")
    facts = {"finished": "2026-12-01T00:00:00+00:00", "host": "worker\x1b[2J", "user": "ada"}
    attest(store, one, "run", facts)
    put(store, "two")
    withdraw(store, chosen(store), "wrong on long texts")
    rollback(store, chosen(store))
    forge(store, like=1, number=7, previous=6)
    folder = chosen(store).published.folder
    store.put_new(entry_path(folder, 8), b"{")
    code, rows = run(capsys, store.url, SOURCE, "--json")
    assert code == 1, "a damaged entry"
    did = [(row["number"], row["did"]) for row in rows]
    assert did == [
        *((1, "points"), (2, "points"), (3, "withdraws"), (4, "returns")),
        *((5, "missing"), (7, "points"), (8, "damaged")),
    ]
    assert rows[0]["key"] == one.key
    assert rows[0]["who"] == "ada@worker\x1b[2J"
    assert rows[1]["who"] is None
    assert rows[2]["why"] == "wrong on long texts"
    assert rows[0]["when"] < rows[4]["why"] or "5 to 6" in rows[4]["why"]
    code, text = run(capsys, store.url)
    assert code == 1
    assert "\x1b" not in text, "a terminal would obey it"
    assert "wrong on long texts" in text
    assert text.splitlines()[0] == folder
    assert run(capsys, store.url, "hf://absent/model")[0] == 1


def test_an_entry_that_leads_round_and_round_ends(store: FileStore):
    put(store, "one")
    two = put(store, "two")
    withdraw(store, chosen(store), "wrong")
    forge(store, like=3, number=4, previous=4)
    assert isinstance(chosen(store).entry, ChannelEntry)
    with pytest.raises(RequestError):
        rollback(store, chosen(store), number=2)
    rollback(store, chosen(store))
    assert name(store) == "one"
    assert two.key != chosen(store).entry.key
