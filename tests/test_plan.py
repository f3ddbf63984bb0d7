"""Plans: what makes an entry stale, what does not, and what a plan never touches."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from flows.commands import fleet as command
from flows.commands.plan import summary_line, table
from flows.engine import settings
from tasks import child
from tasks.backends.jit import toolchain
from tasks.errors import BackendUnavailableError, ConversionCrashedError, RequestError
from tasks.fetch import digests
from tasks.fetch.checkpoint import resolve
from tasks.plan import default_tasks
from tasks.plan import fleet as planning
from tasks.plan import freshness as stale
from tasks.plan.concurrently import map_concurrently
from tasks.plan.fleet import PlanRow, plan
from tasks.publish.channels import rollback
from tasks.publish.conversion import attest
from tasks.publish.identity import RECIPE, Identity
from tasks.publish.schema_limit import LIMIT_PATH
from tasks.request.conversion import ConversionRequest, make_request
from tests.support import reader_support
from tests.support.fetch_support import safetensors, whole
from tests.support.reader_support import example_manifest
from tests.support.s3_servers import free_port
from tracefleet.channel import channel_folder, conversion_folder, entry_path
from tracefleet.errors import StoreUnavailableError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import Toolchain, Variant
from tracefleet.published import select
from tracefleet.store import Store, open_writable
from tracefleet.store.folder import FileStore

ROOT = Path(__file__).parent.parent
OLD = dataclasses.replace(toolchain(), torch="2.12.0")
CAUSES: dict[str, dict[str, Any]] = {
    "new commit": {"commit": "0" * 64},
    f"new toolchain: torch 2.12.0 -> {toolchain().torch}": {"toolchain": OLD},
    "new lengths: 8 -> 8,32": {"lengths": (8,)},
    f"new recipe: {RECIPE - 1} -> {RECIPE}": {"recipe": RECIPE - 1},
    "new options: rtol 0.00005 -> none": {"options": {"rtol": "0.00005"}},
}


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(root=tmp_path / "store")


@pytest.fixture
def wanted(tmp_path: Path, store: FileStore) -> ConversionRequest:
    return make_wanted(save(tmp_path / "tiny", whole()), store)


def save(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def make_wanted(folder: Path | str, store: Store, **fields: Any) -> ConversionRequest:
    source = folder if isinstance(folder, str) else f"file://{folder}"
    plain = {"task": "feature-extraction", "lengths": (8, 32), "store": store.url}
    return make_request({"source": source, **plain, **fields})


def publish(store: Store, wanted: ConversionRequest, **changes: Any) -> Manifest:
    """Publish what a conversion of ``wanted`` would, or would have with these parts of the key."""
    found = resolve(wanted.source, revision=wanted.revision)
    parts: dict[str, Any] = {
        "commit": found.commit,
        "lengths": wanted.lengths,
        "options": wanted.identity_options,
        "toolchain": toolchain(),
        "recipe": RECIPE,
        **changes,
    }
    task = wanted.task or "feature-extraction"
    variant = Variant(task=task, backend=wanted.backend, dtype=wanted.dtype, batch=wanted.batch)
    key = Identity.of(example_manifest(variant=variant, **parts)).key
    return reader_support.publish(
        store,
        source=found.source,
        variant=variant,
        channel=wanted.channel,
        bundle=b"bundle",
        key=key,
        **parts,
    )


def plan_all(requests: Sequence[ConversionRequest], **options: Any) -> list[PlanRow]:
    """Plan requests under names of their positions."""
    return plan({f"entry-{i}": request for i, request in enumerate(requests)}, **options)


def plan_one(wanted: ConversionRequest) -> PlanRow:
    (row,) = plan({"entry": wanted})
    return row


# What makes an entry stale


def test_an_entry_is_missing_then_fresh(wanted, store):
    row = plan_one(wanted)
    assert (row.state, row.why, row.number) == ("missing", ("never published",), None)
    manifest = publish(store, wanted)
    assert plan_one(wanted) == PlanRow(
        name="entry",
        request=wanted,
        state="fresh",
        source=wanted.source,
        commit=manifest.commit,
        task="feature-extraction",
        lengths=wanted.lengths,
        weight_bytes=row.weight_bytes,
        key=manifest.key,
        number=1,
        attempt=row.attempt,
    )
    assert row.key == manifest.key


@pytest.mark.parametrize("why", CAUSES)
def test_each_cause_alone_makes_an_entry_stale(wanted, store, why):
    old = publish(store, wanted, **CAUSES[why])
    row = plan_one(wanted)
    assert (row.state, row.why, row.number) == ("stale", (why,), 1)
    assert row.key != old.key


def test_all_causes_together_are_all_named(wanted, store):
    publish(store, wanted, **{k: v for cause in CAUSES.values() for k, v in cause.items()})
    assert plan_one(wanted).why == tuple(CAUSES)


def test_nothing_else_makes_an_entry_stale(wanted, store, tmp_path, monkeypatch):
    manifest = publish(store, wanted)
    attest(store, manifest, "another-run", {"host": "another"})
    store.put_over("reports/another-run/index.html", b"")
    folder = Path(wanted.source.removeprefix("file://"))
    for name in ("LICENSE", "pytorch_model.bin", "tf_model.h5", "modeling_tiny.py"):
        (folder / name).write_bytes(b"not needed")
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("TRACEFLEET_CACHE", str(tmp_path / "another-cache"))
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    work = {"timeout_seconds": 5, "memory_limit_mb": 9, "threads": 3}
    again = make_wanted("file://./tiny/", store, **work)
    assert again.model_dump(exclude=set(work)) == wanted.model_dump(exclude=set(work))
    assert plan_one(again).state == "fresh"


def test_a_hub_branch_that_moves_makes_its_entry_stale(hub, store):
    hub.push(whole())
    wanted = make_wanted("hf://acme/tiny", store)
    publish(store, wanted)
    assert plan_one(wanted).state == "fresh"
    pinned = wanted.model_copy(update={"revision": hub.refs["main"]})
    commit = hub.push(whole(b"others"))
    row = plan_one(wanted)
    assert (row.state, row.why, row.commit) == ("stale", ("new commit",), commit)
    assert plan_one(pinned).state == "fresh"
    assert "model.safetensors" not in hub.fetched()


# Channels that were moved by hand


def test_a_channel_that_was_rolled_back_is_left_so(wanted, store):
    publish(store, wanted, lengths=(8,))
    manifest = publish(store, wanted)
    rollback(store, select(store, wanted.source))
    row = plan_one(wanted)
    assert (row.state, row.why, row.number) == ("fresh", ("rolled back from number 2",), 3)
    assert row.key == manifest.key
    assert plan_one(wanted.model_copy(update={"lengths": (8, 64)})).state == "stale"


def test_a_conversion_that_is_there_but_not_current_is_stale(wanted, store):
    publish(store, wanted)
    publish(store, wanted, lengths=(8,))
    row = plan_one(wanted)
    elsewhere = "published, but the channel points to another conversion"
    assert (row.state, row.why) == ("stale", (elsewhere, "new lengths: 8 -> 8,32"))


# What is wrong is a row


def damage_entry(store: FileStore, manifest: Manifest) -> None:
    log = channel_folder(manifest.source, manifest.variant, "latest")
    store.put_over(entry_path(log, 1), b'{"key": 1}')


def damage_manifest(store: FileStore, manifest: Manifest) -> None:
    folder = conversion_folder(manifest.source, manifest.key)
    store.put_over(f"{folder}/manifest.json", b"{}")


def remove_manifest(store: FileStore, manifest: Manifest) -> None:
    store.remove([f"{conversion_folder(manifest.source, manifest.key)}/manifest.json"])


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (damage_entry, "ManifestError"),
        (damage_manifest, "DigestMismatchError"),
        (remove_manifest, "ManifestError"),
    ],
)
def test_what_is_damaged_is_an_invalid_row_beside_the_others(
    wanted, store, tmp_path, damage, error
):
    damage(store, publish(store, wanted, lengths=(8,)))
    other = make_wanted(save(tmp_path / "other", whole()), store)
    publish(store, other)
    row, beside = plan_all([wanted, other])
    assert (row.state, row.error, row.number) == ("invalid", error, 1)
    assert "latest" in row.message or "manifest.json" in row.message
    assert beside.state == "fresh"


def test_a_manifest_whose_key_does_not_fit_is_invalid(wanted, store):
    reader_support.publish(store, source=wanted.source, bundle=b"bundle")
    row = plan_one(wanted)
    assert (row.state, row.error) == ("invalid", "ManifestError")
    assert "its contents give" in row.message


def test_checkpoints_that_are_wrong_are_rows_too(wanted, store, tmp_path):
    publish(store, wanted)
    gone = make_wanted(tmp_path / "gone", store)
    bare = make_wanted(save(tmp_path / "bare", {"config.json": b"{}"}), store)
    shown: list[PlanRow] = []
    rows = plan_all([gone, wanted, bare], on_row=shown.append)
    assert [row.state for row in rows] == ["invalid", "fresh", "invalid"]
    assert [row.error for row in rows] == ["RequestError", None, "UnsupportedCheckpointError"]
    assert rows[0].commit is None
    assert "expected a folder" in rows[0].message
    assert not any(row.transient for row in rows)
    assert sorted(map(str, shown)) == sorted(map(str, rows))


def test_a_hub_that_fails_is_a_row(hub, store, wanted):
    hub.push(whole())
    hub.status["api"] = 500
    publish(store, wanted)
    row, beside = plan_all([make_wanted("hf://acme/tiny", store), wanted])
    assert (row.state, row.error, beside.state) == ("invalid", "HfHubHTTPError", "fresh")
    assert row.transient


def test_entries_that_turn_out_to_move_one_channel_are_refused(wanted, store):
    named = wanted.model_copy(update={"lengths": (4,)})
    elsewhere = wanted.model_copy(update={"channel": "other"})
    rows = plan_all([wanted, named, elsewhere])
    assert [row.state for row in rows] == ["invalid", "invalid", "missing"]
    assert "which 'entry-0' moves too, with lengths 8,32 instead of 4" in rows[1].message
    assert "which 'entry-1' moves too, with lengths 4 instead of 8,32" in rows[0].message
    rows = plan_all([wanted, wanted.model_copy(update={"threads": 2})])  # the very same twice
    assert [row.state for row in rows] == ["missing", "invalid"]


def test_a_store_that_does_not_answer_is_a_row_of_each_of_its_entries(wanted, store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    publish(store, wanted)
    away = wanted.model_copy(update={"store": "s3://bucket/models"})
    rows = plan_all([away, wanted, away.model_copy(update={"channel": "other"})])
    assert [row.state for row in rows] == ["invalid", "fresh", "invalid"]
    assert {row.error for row in rows} == {"StoreUnavailableError", None}
    assert "s3://bucket/models" in rows[0].message
    assert [row.transient for row in rows] == [True, False, True]


def test_a_store_that_fails_meanwhile_is_asked_once(wanted, store, tmp_path, monkeypatch):
    other = make_wanted(save(tmp_path / "other", whole()), store)
    publish(store, wanted)
    publish(store, other)
    asked: list[object] = []

    def unavailable(*where: object) -> None:
        asked.append(where)
        raise StoreUnavailableError("file:///store: 503")

    monkeypatch.setattr(stale, "read_entry", unavailable)
    rows = plan_all([wanted, other])
    assert [(row.state, row.transient) for row in rows] == [("invalid", True)] * 2
    assert len(asked) == 1
    told = table(rows)
    assert told.count("503") == 1
    assert "entry-0, entry-1: StoreUnavailableError: file:///store: 503" in told


def test_an_entry_that_makes_no_request_is_a_row(wanted, store):
    publish(store, wanted)
    rows = plan({"wrong": RequestError("dtype: no"), "away": ConnectionError("no"), "a": wanted})
    assert [(row.name, row.state, row.error, row.transient) for row in rows] == [
        ("wrong", "invalid", "RequestError", False),
        ("away", "invalid", "ConnectionError", True),
        ("a", "fresh", None, False),
    ]


# What a plan never touches


def test_of_a_fresh_entry_one_small_file_of_the_store_is_read(wanted, store, monkeypatch):
    publish(store, wanted)
    paths: list[str] = []
    read = FileStore.read

    def counted(self: FileStore, path: str) -> bytes:
        paths.append(path)
        return read(self, path)

    monkeypatch.setattr(FileStore, "read", counted)
    assert plan_one(wanted).state == "fresh"
    limit, entry = paths
    assert limit == LIMIT_PATH, "once for the whole store"
    assert entry.startswith("channels/")


def test_a_second_plan_reads_no_weights(wanted, store, monkeypatch):
    monkeypatch.setattr(digests, "_RACY_NS", 0)
    publish(store, wanted)
    assert plan_one(wanted).state == "fresh"

    def unreadable(*_: object) -> str:
        raise AssertionError("read a file again")

    monkeypatch.setattr(digests, "hash_stream", unreadable)
    beside = wanted.model_copy(update={"channel": "beside"})
    assert [row.state for row in plan_all([wanted, beside])] == ["fresh", "missing"]


def test_tasks_are_found_out_in_one_child_without_weights(hub, store, tmp_path, monkeypatch):
    weights = {"model.safetensors": safetensors({"a": b"a"})}
    bert = weights | {"config.json": b'{"architectures": ["BertForMaskedLM"]}'}
    hub.push(bert)
    local = make_wanted(save(tmp_path / "bert", bert), store, task=None)
    folder = save(tmp_path / "none", weights | {"config.json": b"{}"})
    nameless = make_wanted(folder, store, task=None)
    broken = make_wanted(save(tmp_path / "broken", weights | {"config.json": b"{"}), store)
    broken = broken.model_copy(update={"task": None})
    runs: list[str] = []
    run = child.run

    def counted(*arguments: Any, **settings: Any) -> Any:
        runs.append(settings["step"])
        return run(*arguments, **settings)

    monkeypatch.setattr(child, "run", counted)
    publish(store, local.model_copy(update={"task": "fill-mask"}))
    remote = make_wanted("hf://acme/tiny", store, task=None)
    beside = local.model_copy(update={"channel": "beside"})
    rows = plan_all([local, nameless, broken, remote, beside])
    states = ["fresh", "invalid", "invalid", "missing", "missing"]
    assert [row.state for row in rows] == states
    assert [row.task for row in rows] == ["fill-mask", None, None, "fill-mask", "fill-mask"]
    assert [row.error for row in rows[1:3]] == ["RequestError", "UnsupportedCheckpointError"]
    assert rows[1].commit is not None
    assert runs == ["task"]
    assert "model.safetensors" not in hub.fetched()


def test_one_task_that_can_not_be_found_out_stops_no_other(monkeypatch, tmp_path):
    def strange(folder: Path) -> str:
        if folder.name == "strange":
            raise TypeError("of a library")
        return "fill-mask"

    monkeypatch.setattr(default_tasks, "default_task", strange)
    error, task = default_tasks.name_tasks([tmp_path / "strange", tmp_path / "good"])
    assert "TypeError: of a library" in str(error)
    assert task == "fill-mask"


def test_a_checkpoint_that_breaks_the_child_breaks_no_other(monkeypatch, tmp_path):
    def run(function: Any, folders: list[Path], **_: Any) -> Any:
        if any(folder.name == "deadly" for folder in folders):
            raise ConversionCrashedError("task: got signal SIGSEGV", reason="signal SIGSEGV")
        return child.Outcome(value=[folder.name for folder in folders], seconds=0, peak_bytes=0)

    monkeypatch.setattr(child, "run", run)
    found = default_tasks._name_in_child(
        [tmp_path / name for name in ("a", "b", "deadly", "c", "d")]
    )
    assert [one if isinstance(one, str) else type(one) for one in found] == [
        "a", "b", ConversionCrashedError, "c", "d",
    ]  # fmt: skip


def test_a_plan_with_named_tasks_imports_no_framework(wanted, store):
    publish(store, wanted)
    fields = wanted.model_dump(mode="json")
    text = f"""
import sys
from tasks.plan.fleet import plan
from tasks.request.conversion import ConversionRequest, make_request
assert plan({{"entry": make_request({fields!r})}})[0].state == "fresh"
print([name for name in ("torch", "transformers", "prefect", "boto3") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# Backends of other machines


@pytest.fixture
def _no_neuron(monkeypatch):
    def nowhere(name: str) -> None:
        raise BackendUnavailableError(f"no {name} here")

    monkeypatch.setattr(planning, "find_backend", nowhere)


@pytest.mark.usefixtures("_no_neuron")
def test_where_only_workers_know_the_toolchain_it_is_taken_as_published(wanted, store):
    neuron = wanted.model_copy(update={"backend": "neuronx"})
    row = plan_one(neuron)
    assert (row.state, row.key) == ("missing", None)
    theirs = Toolchain(python="3.11", torch="2.9.0", transformers="4.57.0", compiler="2.21")
    manifest = publish(store, neuron, toolchain=theirs)
    note = "toolchain not checked: no neuronx here"
    row = plan_one(neuron)
    assert (row.state, row.why, row.key) == ("fresh", (note,), manifest.key)
    row = plan_one(neuron.model_copy(update={"lengths": (8,)}))
    assert (row.state, row.why) == ("stale", ("new lengths: 8,32 -> 8", note))


# Listings and threads


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
def test_a_bounded_listing_finds_what_one_for_each_source_finds(store, monkeypatch, limit):
    sources = [f"hf://org/model{end}" for end in ("", "-a", ".b", "_c", *range(20))]
    for source in [*sources, "hf://org/other", "hf://aaa/first"]:
        for task in ("a", "b", "c"):
            log = channel_folder(source, Variant(task=task), "latest")
            for number in (1, 2):
                store.put_over(entry_path(log, number), b"")
    wanted = sources[:13]
    monkeypatch.setattr(stale, "_MANY", 1000)
    expected = stale.newest_numbers(store, wanted)
    assert len(expected) == 3 * len(wanted)
    assert set(expected.values()) == {2}
    monkeypatch.setattr(stale, "_MANY", 1)
    monkeypatch.setattr(stale, "_CHANNELS_A_SOURCE", limit)
    found = stale.newest_numbers(store, wanted)
    assert {folder: found[folder] for folder in expected} == expected


@pytest.mark.parametrize("store_url", ["swift"], indirect=True)
def test_a_fleet_on_s3_is_planned_in_parallel(store_url, tmp_path):
    store = open_writable(store_url, check=False)
    folder = save(tmp_path / "tiny", whole())
    entries = []
    for index in range(24):
        copy = tmp_path / f"copy-{index}"
        copy.symlink_to(folder)
        entries.append(make_wanted(copy, store))
        if index % 8:
            publish(store, entries[-1], **({"lengths": (8,)} if index % 8 == 1 else {}))
    rows = plan_all(entries)
    assert [row.request for row in rows] == entries
    assert summary_line(rows) == "24 entries: 18 fresh, 3 stale, 3 missing, 0 invalid"
    assert [row.state for row in plan_all(entries[:3])] == ["missing", "stale", "fresh"]


def test_a_piece_of_work_that_fails_ends_the_others():
    started: list[int] = []
    go = threading.Event()

    def work(item: int) -> int:
        if item == 1:
            go.set()
            raise StoreUnavailableError("gone")
        started.append(item)
        return item if item == 0 or go.wait(10) else -1

    with pytest.raises(StoreUnavailableError):
        list(map_concurrently(range(5000), work, url=lambda _: "s3://bucket", what="read"))
    assert len(started) < 5000


def test_long_work_says_how_far_it_is(caplog, monkeypatch):
    monkeypatch.setattr("tasks.plan.concurrently._REPORT_SECONDS", -1)
    caplog.set_level("INFO", logger="tasks.plan.concurrently")
    assert dict(map_concurrently("ab", str.upper, url=lambda _: "file://", what="read")) == {
        "a": "A",
        "b": "B",
    }
    assert caplog.messages == ["1 of 2 read", "2 of 2 read"]


# The command


@pytest.fixture
def fleet(tmp_path: Path, wanted: ConversionRequest, store: FileStore) -> Path:
    publish(store, wanted)
    defaults = {"task": "feature-extraction", "lengths": [8, 32], "store": store.url}
    entries = {
        "good": {"source": wanted.source},
        "longer": {"source": wanted.source, "lengths": [8, 32, 64], "channel": "long"},
    }
    path = tmp_path / "fleet.yaml"
    path.write_text(json.dumps({"defaults": defaults, "entries": entries}))
    return path


def test_the_command_prints_a_table(fleet, capsys):
    assert main(["plan", str(fleet), "--quiet"]) == 0
    header, good, longer, summary = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "state", "why", "number", "commit"]
    assert good.split()[:4] == ["good", "fresh", "-", "1"]
    assert "longer" in longer
    assert "never published" in longer
    assert summary == "2 entries: 1 fresh, 0 stale, 1 missing, 0 invalid"


def test_the_command_looks_into_another_store(fleet, tmp_path, capsys):
    assert main(["plan", str(fleet), "--quiet", "--store", str(tmp_path / "empty")]) == 0
    assert "2 entries: 0 fresh, 0 stale, 2 missing, 0 invalid" in capsys.readouterr().out


def test_a_fleet_with_nothing_to_do_needs_no_run_and_no_server(
    fleet, tmp_path, capsys, monkeypatch
):
    """Started only if there is work, and never for a file that can't be meant."""
    ran: list[object] = []

    def run(options: object) -> None:
        ran.append(options)
        raise ConnectionError("started")

    monkeypatch.setattr(settings, "has_server", lambda: False)
    monkeypatch.setattr(settings, "quieten", lambda **_: None)
    monkeypatch.setattr(command, "_run", run)
    fleet.write_text(json.dumps({"guarded": ["production"], **json.loads(fleet.read_text())}))
    assert main(["fleet", str(fleet), "--only", "good", "--json"]) == 0
    assert len(list(tmp_path.rglob("guarded/production.json"))) == 1
    facts = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["ending"]) for row in facts["rows"]] == [("good", "fresh")]
    assert not ran
    assert main(["fleet", str(fleet)]) == 1  # one entry is stale
    assert len(ran) == 1
    fleet.write_text("entries: {a: {source: hf://o/a, source: hf://o/b}}")
    assert main(["fleet", str(fleet)]) == 1
    assert "a.source: expected once" in capsys.readouterr().err
    assert len(ran) == 1


def test_the_command_fails_where_a_row_is_invalid_and_says_why(fleet, tmp_path, capsys):
    (tmp_path / "tiny/config.json").unlink()
    assert main(["plan", str(fleet), "--quiet"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"good.*: UnsupportedCheckpointError: ", out)
    assert "no config.json; expected" in out


def test_the_command_prints_json(fleet, capsys, wanted):
    assert main(["plan", str(fleet), "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"fresh": 1, "stale": 0, "missing": 1, "invalid": 0, "refused": 0}
    first = found["rows"][0]
    assert (first["name"], first["state"], first["number"]) == ("good", "fresh", 1)
    assert first["wanted"]["source"] == wanted.source


def test_fresh_rows_of_long_plans_are_folded(wanted):
    fresh = PlanRow(name="entry", request=wanted, state="fresh", commit="c" * 40, number=1)
    old = dataclasses.replace(fresh, state="stale", why=("new commit",))
    rows = [fresh] * 40 + [old]
    assert len(table(rows).splitlines()) == 3
    assert len(table(rows, whole=True).splitlines()) == 43
    assert table([fresh] * 30) == "30 entries: 30 fresh, 0 stale, 0 missing, 0 invalid"
    assert table([]) == "0 entries: 0 fresh, 0 stale, 0 missing, 0 invalid"
