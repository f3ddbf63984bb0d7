"""Withdrawn conversions: every reader refuses them, and only a person brings them back."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tracefleet
from flows.__main__ import main
from tasks.errors import PublishConflictError, RequestError
from tasks.publish import withdraw as module
from tasks.publish.channels import promote, rollback
from tasks.publish.gc import collect
from tasks.publish.identity import Identity
from tasks.publish.point import point_channel
from tasks.publish.withdraw import Withdrawal, find_withdrawal, reinstate, withdraw
from tests.support.reader_support import SOURCE, example_manifest, publish
from tests.support.s3_servers import S3Server
from tracefleet import Change, WithdrawnError
from tracefleet.canonical import canonical_json
from tracefleet.channel import (
    ChannelEntry,
    advance,
    append,
    channel_folder,
    conversion_folder,
    entry_path,
    read_entry,
    source_slug,
)
from tracefleet.cli import main as read_command
from tracefleet.errors import ManifestError
from tracefleet.manifest import Manifest
from tracefleet.published import Selection, load_manifest, select
from tracefleet.store import open_writable
from tracefleet.store.folder import FileStore

REASON = "gate failed with torch 9.9 on 2030-01-01: fresh-0 at length 8: relative error 0.7"
BUNDLE = b"no model, but bytes"
IDS = [[3, 4, 5]]


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(root=tmp_path / "store")


def put(store: FileStore, name: str, *, channel: str = "latest") -> Manifest:
    options = {"name": name}
    key = Identity.of(example_manifest(options=options)).key
    return publish(store, bundle=BUNDLE, channel=channel, key=key, options=options)


def chosen(store: Any, channel: str = "latest") -> Selection:
    return select(store, SOURCE, channel=channel)


def name(store: FileStore, channel: str = "latest") -> str:
    manifest = load_manifest(store, chosen(store, channel), allow_withdrawn=True)
    return manifest.options["name"]


def folder(channel: str = "latest") -> str:
    return channel_folder(SOURCE, example_manifest().variant, channel)


def entry(**more: Any) -> ChannelEntry:
    return ChannelEntry(manifest="a" * 64, key="b" * 64, previous=None, nonce="c" * 32, **more)


# --- the entry -----------------------------------------------------------------------------------


def test_what_is_not_withdrawn_has_the_bytes_that_it_always_had():
    before = {"key": "b" * 64, "manifest": "a" * 64, "nonce": "c" * 32, "previous": None}
    assert entry().to_bytes() == canonical_json(before)
    assert json.loads(entry(withdrawn=REASON).to_bytes()) == {**before, "withdrawn": REASON}


def test_entries_of_before_are_read_and_so_are_those_with_a_reason(store: FileStore):
    [before] = (Path(__file__).parent / "data/store-before/store/channels").glob(
        "*/fill-mask.jit.float32.b1/latest/0000000001.json"
    )
    store.put_new(entry_path("channels/a/b/c", 1), before.read_bytes())
    found = read_entry(store, "channels/a/b/c", 1)
    assert (found.withdrawn, found.to_bytes()) == (None, before.read_bytes())
    store.put_new(entry_path("channels/a/b/c", 2), entry(withdrawn=REASON).to_bytes())
    assert read_entry(store, "channels/a/b/c", 2).withdrawn == REASON


@pytest.mark.parametrize("reason", ["", " ", "two\nlines", "a\tb", "\x1b[31mred", "x" * 501, 1, []])
def test_a_reason_that_is_not_one_line_is_refused(store: FileStore, reason: Any):
    raw = {**json.loads(entry().to_bytes()), "withdrawn": reason}
    store.put_new(entry_path("channels/a/b/c", 1), json.dumps(raw).encode())
    with pytest.raises(ManifestError, match=r"reason: expected one line|withdrawn: expected str"):
        read_entry(store, "channels/a/b/c", 1)
    put(store, "a")
    if isinstance(reason, str):
        with pytest.raises(RequestError, match="reason: expected one line of 1 to 500"):
            withdraw(store, chosen(store), reason)
    assert chosen(store).number == 1


@pytest.fixture(scope="module")
def old_decode(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], str]:
    """Decode an entry with the reader of before there were withdrawals; return what it says."""
    [wheel] = (Path(__file__).parent / "data/reader-of-schema-2").glob("*.whl")
    target = tmp_path_factory.mktemp("old-reader")
    zipfile.ZipFile(wheel).extractall(target)
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        "from tracefleet.channel import ChannelEntry\n"
        "from tracefleet.decode import decode\n"
        "try: print(decode(ChannelEntry, json.loads(sys.argv[2]), where='entry').key)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )

    def run(data: bytes) -> str:
        return subprocess.run(
            [sys.executable, "-c", code, str(target), data.decode()],
            cwd=target,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    return run


def test_a_reader_of_before_refuses_what_is_withdrawn_and_nothing_else(old_decode):
    assert old_decode(entry().to_bytes()) == "b" * 64 + "\n"
    refused = old_decode(entry(withdrawn=REASON).to_bytes())
    assert refused.startswith("ManifestError entry: unknown fields ['withdrawn']")


# --- readers -------------------------------------------------------------------------------------


@pytest.fixture
def withdrawn(store: FileStore) -> Manifest:
    """A real bundle, which every reader opens until it is withdrawn."""
    manifest = publish(store)
    tracefleet.open(store, SOURCE)(IDS)
    withdraw(store, chosen(store), REASON)
    return manifest


READERS: dict[str, Callable[[FileStore, Path], object]] = {
    "open": lambda store, _: tracefleet.open(store, SOURCE),
    "load_manifest": lambda store, _: tracefleet.load_manifest(store, SOURCE),
    "watch": lambda store, _: tracefleet.watch(store, SOURCE),
    "pull": lambda store, tmp: tracefleet.pull(store, chosen(store), tmp / "pulled"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_refuses_and_says_what_where_why_and_what_to_do(
    store, withdrawn, reader, tmp_path
):
    with pytest.raises(WithdrawnError) as caught:
        READERS[reader](store, tmp_path)
    told = str(caught.value)
    for word in (SOURCE, "feature-extraction.jit.float32.b1", "'latest'", "number 2", REASON):
        assert word in told
    assert "Convert the checkpoint again" in told
    assert "tracefleet rollback" in told
    assert caught.value.reason == REASON
    assert not (tmp_path / "pulled").exists()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.reason) == (told, REASON)


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--ids", "3 4 5"],
        ["pull", "copy"],
        ["pull", "--presign"],
        ["bench", "--lengths", "4"],
    ],
)
def test_commands_that_read_a_model_refuse(store, withdrawn, command, capsys, tmp_path):
    more = [str(tmp_path / "copy") if word == "copy" else word for word in command[1:]]
    assert read_command([command[0], store.url, SOURCE, *more]) == 1
    assert f"was withdrawn: {REASON}" in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


def test_where_the_manifest_is_gone_the_refusal_names_the_slug(store, withdrawn):
    path = store.root / conversion_folder(SOURCE, withdrawn.key) / "manifest.json"
    path.unlink()
    with pytest.raises(WithdrawnError, match=f"{source_slug(SOURCE)} .* was withdrawn"):
        tracefleet.open(store, SOURCE)


def test_list_show_and_verify_tell_it_and_do_not_fail(store, withdrawn, capsys):
    publish(store, source="hf://acme/other")
    assert read_command(["list", store.url]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "key", "no column of its own"
    assert [row.split()[5] for row in sorted(rows)] == ["validated", "withdrawn"]
    assert read_command(["list", store.url, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["source"]: row["withdrawn"] for row in found} == {
        SOURCE: REASON,
        "hf://acme/other": None,
    }
    assert read_command(["show", store.url, SOURCE]) == 0
    shown = capsys.readouterr().out
    assert f"withdrawn  {REASON}\n" in shown
    assert withdrawn.key in shown
    assert read_command(["show", store.url, "hf://acme/other"]) == 0
    assert "withdrawn" not in capsys.readouterr().out, "the control"
    assert read_command(["show", store.url, SOURCE, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["withdrawn"] == REASON
    assert read_command(["verify", store.url]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("checked in 2 channels, 0 damaged")
    assert told[1:] == [f"withdrawn {entry_path(folder(), 2)}: {REASON}"]


def test_verify_still_finds_damage_in_what_is_withdrawn(store, withdrawn, capsys):
    path = store.root / conversion_folder(SOURCE, withdrawn.key) / "model/config.json"
    path.write_bytes(b"[]")
    assert read_command(["verify", store.url]) == 1
    captured = capsys.readouterr()
    assert "model/config.json: expected" in captured.err
    assert f"withdrawn {entry_path(folder(), 2)}" in captured.out


def test_another_channel_that_points_to_it_is_left_alone(store, withdrawn):
    advance(store, folder("stable"), manifest_digest=withdrawn.digest, key=withdrawn.key)
    tracefleet.open(store, SOURCE, channel="stable")(IDS)


def test_a_watcher_serves_on_and_says_that_what_serves_was_withdrawn(store, caplog):
    publish(store)
    seen: list[Change] = []
    with tracefleet.watch(store, SOURCE, every=3600, on_change=seen.append) as model:
        before = model(IDS)["pooler_output"]
        assert model.withdrawn is None
        withdraw(store, chosen(store), REASON)
        change = model.look()
        assert change is not None
        assert (change.number, change.withdrawn) == (2, REASON)
        assert str(model.withdrawn) == REASON
        assert f"WithdrawnError: {SOURCE}" in str(change.refused)
        assert seen == [change]
        assert caplog.text.count("what serves was withdrawn, and serves on") == 1
        assert (model(IDS)["pooler_output"] == before).all()
        assert model.look() is None, "told once"
        reinstate(store, chosen(store))
        assert model.look() == Change(number=3, key=change.key)
        assert (model.number, model.withdrawn) == (3, None)


def test_a_watcher_that_never_served_what_was_withdrawn_is_not_withdrawn_itself(store):
    publish(store)
    with tracefleet.watch(store, SOURCE, every=3600) as model:
        publish(store, recipe=9)
        withdraw(store, chosen(store), REASON)
        change = model.look()
        assert change is not None
        assert change.refused is not None
        assert (change.withdrawn, model.withdrawn, model.number) == (None, None, 1)


def test_a_watcher_in_its_own_thread_goes_back_with_the_channel(store):
    publish(store)
    publish(store, recipe=9)
    with tracefleet.watch(store, SOURCE, every=0.02) as model:
        withdraw(store, chosen(store), REASON)
        _wait(lambda: model.withdrawn == REASON)
        rollback(store, chosen(store))
        _wait(lambda: model.number == 4)
        assert model.manifest.recipe != 9
        assert model.withdrawn is None


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_without_a_network_it_is_refused_once_the_withdrawal_was_seen(
    moto_server: S3Server, aws_env, monkeypatch
):
    server = aws_env(moto_server)
    store = open_writable(f"s3://{server.bucket}/{uuid.uuid4().hex}", check=False)
    publish(store)
    tracefleet.open(store.url, SOURCE)
    withdraw(store, chosen(store), REASON)
    with monkeypatch.context() as offline:
        offline.setenv("TRACEFLEET_OFFLINE", "1")
        tracefleet.open(store.url, SOURCE)  # nobody could know
    assert chosen(tracefleet.open_store(store.url)).entry.withdrawn == REASON
    monkeypatch.setenv("TRACEFLEET_OFFLINE", "1")
    with pytest.raises(WithdrawnError, match=REASON):
        tracefleet.open(store.url, SOURCE)


# --- moving channels -----------------------------------------------------------------------------


def test_a_withdrawal_is_the_next_number_and_a_second_one_changes_nothing(store: FileStore):
    manifest = put(store, "a")
    first = store.read(entry_path(folder(), 1))
    assert withdraw(store, chosen(store), REASON) == Withdrawal(2, REASON)
    assert withdraw(store, chosen(store), "another") == Withdrawal(2, REASON)
    assert store.read(entry_path(folder(), 1)) == first
    found = read_entry(store, folder(), 2)
    assert (found.key, found.manifest) == (manifest.key, manifest.digest)
    assert find_withdrawal(store, folder(), 2, manifest.key) == Withdrawal(2, REASON)


def test_the_first_conversion_has_nothing_to_roll_back_to_and_can_be_reinstated(store: FileStore):
    put(store, "a")
    withdraw(store, chosen(store), REASON)
    with pytest.raises(RequestError, match="got nothing"):
        rollback(store, chosen(store))
    assert reinstate(store, chosen(store))[1] == 3
    assert load_manifest(store, chosen(store)).options["name"] == "a"
    with pytest.raises(RequestError, match="whose conversion was withdrawn, got 3"):
        reinstate(store, chosen(store))


def test_a_rollback_goes_past_what_was_withdrawn(store: FileStore):
    put(store, "a")
    put(store, "b")
    withdraw(store, chosen(store), "b is wrong")
    put(store, "c")
    withdraw(store, chosen(store), "c is wrong")
    assert rollback(store, chosen(store))[0].options["name"] == "a"
    assert chosen(store).entry.withdrawn is None
    for number in (2, 3, 4, 5):
        with pytest.raises(RequestError, match=r"withdrawn by number [35]: . is wrong.*reinstate"):
            rollback(store, chosen(store), number=number)
    assert reinstate(store, chosen(store), number=4)[0].options["name"] == "c"
    assert rollback(store, chosen(store), number=4)[0].options["name"] == "c", "the control"


@pytest.mark.parametrize("number", [0, -1, 3])
def test_a_number_that_is_not_there_is_not_reinstated(store: FileStore, number: int):
    put(store, "a")
    withdraw(store, chosen(store), REASON)
    with pytest.raises(RequestError, match="reinstate expected a number from 1 to 2"):
        reinstate(store, chosen(store), number=number)


def test_a_repeat_of_the_request_leaves_it_withdrawn(store: FileStore):
    manifest = put(store, "a")
    withdraw(store, chosen(store), REASON)
    publication = point_channel(store, manifest, channel="latest")
    assert (publication.number, publication.withdrawal) == (2, Withdrawal(2, REASON))
    put(store, "b")
    assert load_manifest(store, chosen(store)).options["name"] == "b", "what is new takes over"
    publication = point_channel(store, manifest, channel="latest")
    assert (publication.number, publication.withdrawal) == (3, Withdrawal(2, REASON))
    assert name(store) == "b"
    assert point_channel(store, manifest, channel="stable").withdrawal is None
    reinstate(store, chosen(store), number=2)
    assert point_channel(store, manifest, channel="latest").withdrawal is None
    assert name(store) == "a"


def test_promotion_neither_from_nor_over_a_withdrawal(store: FileStore):
    put(store, "a", channel="candidate")
    promote(store, chosen(store, "candidate"))
    withdraw(store, chosen(store), REASON)
    with pytest.raises(RequestError, match=r"latest: promote expected .*reinstate --number 2"):
        promote(store, chosen(store, "candidate"))
    put(store, "b")
    with pytest.raises(RequestError, match="withdrawn by number 2"):
        promote(store, chosen(store, "candidate"))
    withdraw(store, chosen(store, "candidate"), REASON)
    with pytest.raises(WithdrawnError):
        promote(store, chosen(store, "candidate"), to="stable")
    reinstate(store, chosen(store, "candidate"))
    assert promote(store, chosen(store, "candidate"), to="stable")[1] == 1, "the control"


def test_a_channel_that_moved_meanwhile_is_not_withdrawn(store: FileStore, monkeypatch):
    put(store, "a")
    selection = chosen(store)
    put(store, "b")
    with pytest.raises(PublishConflictError, match="Nothing was withdrawn"):
        withdraw(store, selection, REASON)
    assert load_manifest(store, chosen(store)).options["name"] == "b"
    selection = chosen(store)
    withdraw(store, selection, REASON)
    assert withdraw(store, selection, "again") == Withdrawal(3, REASON), "two with one finding"
    assert chosen(store).number == 3

    def moves_first(*arguments: object, **options: object) -> int | None:
        monkeypatch.undo()
        put(store, "c")
        return append(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "append", moves_first)
    with pytest.raises(PublishConflictError, match="Nothing was reinstated"):
        reinstate(store, chosen(store))
    assert name(store) == "c"


def test_gc_keeps_what_was_withdrawn(store: FileStore):
    manifest = put(store, "a")
    withdraw(store, chosen(store), REASON)
    now = time.time() + 1e6
    assert collect(store, before=now - 3600, now=now, keep=1).removed == ()
    assert store.read(f"{conversion_folder(SOURCE, manifest.key)}/manifest.json")
    put(store, "b")
    [removed] = collect(store, before=now - 3600, now=now, keep=1).removed
    assert removed.path == conversion_folder(SOURCE, manifest.key), "the control"


def test_the_command_line_withdraws_and_reinstates(store: FileStore, capsys):
    manifest = put(store, "a")
    where = ["--store", str(store.root), "--source", SOURCE]
    assert main(["withdraw", *where, "--reason", REASON]) == 0
    key = manifest.key[:12]
    assert capsys.readouterr().out == f"channel  latest #2 -> {key} withdrawn: {REASON}\n"
    assert main(["withdraw", *where, "--reason", "again", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "channel": "latest",
        "number": 2,
        "key": manifest.key,
        "withdrawn": REASON,
        "channels": [folder()],
    }
    assert main(["promote", *where, "--channel", "latest", "--to", "stable"]) == 1
    assert "WithdrawnError" in capsys.readouterr().err
    assert main(["reinstate", *where]) == 0
    assert capsys.readouterr().out == f"channel  latest #3 -> {key}\n"
    assert main(["reinstate", *where]) == 1
    assert "RequestError" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["withdraw", *where])
    assert main(["withdraw", *where, "--reason", "two\nlines"]) == 1
    assert chosen(store).number == 3


# --- a request that is repeated ------------------------------------------------------------------


def test_converting_again_leaves_it_withdrawn_and_says_so(checkpoint, store: FileStore, capsys):
    source = ["--source", str(checkpoint("bert")), "--store", store.url]
    task = ["--task", "feature-extraction"]
    arguments = ["convert", *source, *task, "--lengths", "8", "--quiet"]
    assert main(arguments) == 0
    assert main(["withdraw", *source, "--reason", REASON]) == 0
    capsys.readouterr()
    assert main(arguments) == 1
    told = capsys.readouterr().out
    assert told.startswith("withdrawn, and left so: ")
    assert f"channel  latest #2, this conversion was withdrawn: {REASON}." in told
    assert "`tracefleet reinstate --number 2` brings it back" in told
    assert main([*arguments, "--json"]) == 1
    as_json = json.loads(capsys.readouterr().out)
    assert (as_json["status"], as_json["withdrawn"]) == ("withdrawn", REASON)
    assert as_json["withdrawn_number"] == as_json["number"] == 2
    with pytest.raises(WithdrawnError):
        tracefleet.open(store, checkpoint("bert"))
    fleet = store.root.parent / "fleet.yaml"
    entries = {"one": {"source": source[1], "task": task[1], "lengths": [8]}}
    fleet.write_text(json.dumps({"defaults": {"store": store.url}, "entries": entries}))
    assert _plan(fleet, capsys) == ("invalid", "", "WithdrawnError", 1)
    assert main(["plan", str(fleet), "--quiet"]) == 1
    assert f"withdraws {as_json['manifest']['key'][:12]}: {REASON}" in capsys.readouterr().out
    assert main(["convert", *source, *task, "--lengths", "16", "--quiet"]) == 0
    assert tracefleet.open(store, checkpoint("bert")).lengths == (16,)
    assert _plan(fleet, capsys) == ("fresh", f"withdrawn by number 2: {REASON}", None, 0)
    assert main(arguments) == 1
    assert tracefleet.open(store, checkpoint("bert")).lengths == (16,)


def _plan(fleet: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str, str | None, int]:
    capsys.readouterr()
    code = main(["plan", str(fleet), "--json", "--quiet"])
    [row] = json.loads(capsys.readouterr().out)["rows"]
    return row["state"], "; ".join(row["why"]), row["error"], code
