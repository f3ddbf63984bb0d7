"""Remembered refusals: what is one, what a record may do, and that it never does more."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.commands.plan import table
from flows.convert import convert
from flows.engine import remembering as writing
from flows.engine.remembering import remember_invalid, remembering
from tasks import child
from tasks.backends.jit import toolchain
from tasks.errors import (
    BackendUnavailableError,
    CompilationError,
    ConversionCrashedError,
    ConversionError,
    NumericsMismatchError,
    PaddingChangesError,
    PublishConflictError,
    RequestError,
    TiedWeightsError,
    TraceError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from tasks.fetch.checkpoint import resolve
from tasks.plan import fleet as planning
from tasks.plan.fleet import PlanRow, plan
from tasks.publish import refusals
from tasks.publish.gc import collect
from tasks.publish.refusals import (
    MONTH_SECONDS,
    MOST_BYTES,
    Attempt,
    Refusal,
    is_remembered,
    one_line,
    parse,
    remember,
)
from tasks.publish.schema_limit import write_limit
from tasks.request.attempt import make_attempt
from tasks.request.conversion import ConversionRequest
from tasks.request.identify import identify
from tests.support.fetch_support import safetensors, whole
from tests.support.reader_support import example_manifest
from tests.support.s3_servers import S3Server
from tests.test_plan import make_wanted, plan_one, publish, save
from tracefleet.canonical import canonical_json
from tracefleet.channel import conversion_folder, find_variants
from tracefleet.cli import main
from tracefleet.errors import ManifestError, StoreError, StoreUnavailableError
from tracefleet.store import Store, open_existing, open_writable
from tracefleet.store.folder import FileStore

NOW = time.time()
DAY = 86400.0
WHY = "martian: expected a model type that transformers knows. Take another."


@pytest.fixture(params=["file", "swift"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, aws_env: Callable[[S3Server], S3Server]
) -> Store:
    if request.param == "file":
        return FileStore(root=tmp_path / "store")
    server = aws_env(request.getfixturevalue("swift_server"))
    return open_writable(f"s3://{server.bucket}/{uuid.uuid4().hex}", check=False)


@pytest.fixture
def folder(tmp_path: Path) -> FileStore:
    return FileStore(root=tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "tiny", whole())


def attempt_of(wanted: ConversionRequest, **changes: Any) -> Attempt:
    found = resolve(wanted.source, **wanted.permissions)
    return dataclasses.replace(
        make_attempt(wanted, identify(wanted, found, toolchain())), **changes
    )


def refuse(store: Store, wanted: ConversionRequest, **changes: Any) -> Attempt:
    """Leave the record that a refused conversion of ``wanted`` leaves."""
    attempt = attempt_of(wanted, **changes)
    assert remember(store, attempt, "UnsupportedCheckpointError", WHY, now=time.time())
    return attempt


def write(store: Store, path: str, value: Any) -> None:
    data = value if isinstance(value, bytes) else canonical_json(value)
    store.put_over(path, data)


# Which errors are remembered


@pytest.mark.parametrize(
    "error",
    [
        UnsupportedCheckpointError("no head"),
        PaddingChangesError("padding"),
        UnsafeCheckpointError("pickle"),
        TiedWeightsError("tied"),
        TraceError("trace"),
        NumericsMismatchError("differs"),
        CompilationError("no", reason="unsupported operator"),
        RequestError("a length over the positions", lasting=True),
    ],
)
def test_what_follows_from_checkpoint_and_versions_is_remembered(error: ConversionError):
    assert is_remembered(error)
    assert is_remembered(pickle.loads(pickle.dumps(error)))


def caused(error: ConversionError, cause: BaseException) -> ConversionError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        RequestError("no such folder"),
        ConversionCrashedError("killed", reason="timeout"),
        BackendUnavailableError("no device"),
        PublishConflictError("another writer"),
        CompilationError("no", reason="device memory"),
        CompilationError("no", reason="unknown"),
        UnsafeCheckpointError("damaged on the way", lasting=False),
        UnsupportedCheckpointError("got RuntimeError: DefaultCPUAllocator: can't allocate memory"),
        NumericsMismatchError("one probe", SimpleNamespace(failures=["x: raised: out of memory"])),
        caused(UnsupportedCheckpointError("x"), MemoryError()),
        caused(UnsupportedCheckpointError("x"), ImportError("needs einops")),
        caused(TraceError("x"), OSError(errno.ENOSPC, "No space left on device")),
        caused(TraceError("x"), caused(TraceError("y"), ConnectionResetError(104, "reset"))),
    ],
)
def test_what_may_be_gone_tomorrow_is_not(error: ConversionError):
    assert not is_remembered(error)
    assert not is_remembered(pickle.loads(pickle.dumps(error)))


def test_a_library_s_own_words_about_a_file_are_no_fault_of_the_host():
    said = OSError("martian does not appear to have a file named config.json")
    assert is_remembered(caused(UnsupportedCheckpointError("x"), said))


def raise_for_want_of_memory(_: str) -> None:
    """A child runs this."""
    try:
        raise MemoryError
    except MemoryError as error:
        raise UnsupportedCheckpointError("the weights do not load") from error


def test_what_caused_an_error_is_asked_in_the_child(tmp_path):
    limits = child.Limits(timeout=100, threads=1)
    with pytest.raises(UnsupportedCheckpointError) as caught:
        child.run(raise_for_want_of_memory, "", limits=limits, log=tmp_path / "log", step="x")
    assert not caught.value.lasting


# What a plan makes of a record


def test_an_entry_that_was_refused_is_told_and_not_tried(store, source):
    wanted = make_wanted(source, store)
    attempt = refuse(store, wanted)
    row = plan_one(wanted)
    assert (row.state, row.error, row.message) == ("refused", "UnsupportedCheckpointError", WHY)
    assert row.why == ("never published",)
    assert row.since is not None
    assert row.since.startswith("20")
    assert row.key == attempt.key
    assert plan({"entry": wanted}, retry_refused=True)[0].state == "missing"
    assert open_existing(store.url).names("refusals")


@pytest.mark.parametrize(
    "changes",
    [
        {"commit": "0" * 64},
        {"toolchain": dataclasses.replace(toolchain(), torch="2.12.0")},
        {"recipe": 2},
        {"options": {"rtol": "0.5"}},
        {"lengths": (8,)},
        {"task": "fill-mask"},
        {"dtype": "float16"},
        {"batch": 2},
        {"allow_pickle": True},
        {"trust_remote_code": True},
        {"timeout_seconds": 1.0},
        {"memory_limit_mb": 1},
        {"threads": 3},
    ],
)
def test_each_thing_that_a_refusal_depends_on_makes_it_another_attempt(folder, source, changes):
    wanted = make_wanted(source, folder)
    refuse(folder, wanted, **changes)
    assert plan_one(wanted).state == "missing"


def test_nothing_else_does(folder, source):
    wanted = make_wanted(source, folder)
    refuse(folder, wanted)
    crossed = ConversionRequest.model_validate(json.loads(wanted.model_dump_json()))
    beside = wanted.model_copy(update={"channel": "beside", "publish_as": "a-name"})
    assert plan_one(crossed).state == "refused"
    assert plan_one(beside).state == "refused"


def test_what_is_published_is_never_hidden(folder, source):
    wanted = make_wanted(source, folder)
    publish(folder, wanted.model_copy(update={"channel": "other"}))
    refuse(folder, wanted)
    assert plan_one(wanted).state == "missing", "a run points the channel to it"
    publish(folder, wanted)
    assert plan_one(wanted).state == "fresh"
    publish(folder, wanted, lengths=(8,))
    assert plan_one(wanted).state == "stale", "a run moves the channel back"


def test_a_channel_keeps_what_it_has_while_what_follows_is_refused(folder, source):
    wanted = make_wanted(source, folder)
    publish(folder, wanted, commit="0" * 64)
    before = [file.path for file in folder.walk("channels")]
    refuse(folder, wanted)
    row = plan_one(wanted)
    assert (row.state, row.why, row.number) == ("refused", ("new commit",), 1)
    assert [file.path for file in folder.walk("channels")] == before


def age(store: FileStore, attempt: Attempt, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(store.root / attempt.path, (then, then))


def test_a_record_counts_for_a_month_and_gc_removes_it_then(folder, source):
    wanted = make_wanted(source, folder)
    attempt = refuse(folder, wanted)
    age(folder, attempt, 29.9)
    assert plan_one(wanted).state == "refused"
    assert collect(folder, before=NOW, now=time.time()).removed == ()
    age(folder, attempt, 30.1)
    assert plan_one(wanted).state == "missing"
    assert collect(folder, before=0, now=time.time(), dry_run=True).removed
    (removed,) = collect(folder, before=0, now=time.time()).removed
    assert (removed.kind, removed.path) == ("refusal", attempt.path)
    assert folder.names("refusals") == []


def test_on_every_store_gc_leaves_young_records_and_removes_aged_ones(store, source):
    attempt = refuse(store, make_wanted(source, store))
    assert collect(store, before=time.time() + DAY, now=time.time()).removed == ()
    later = time.time() + MONTH_SECONDS + DAY
    assert [one.path for one in collect(store, before=0, now=later).removed] == [attempt.path]
    assert list(store.walk("refusals")) == []


def test_what_is_refused_again_is_so_since_the_first_time(folder, source):
    attempt = attempt_of(make_wanted(source, folder))
    first = remember(folder, attempt, "TraceError", "one", now=NOW - 40 * DAY)
    again = remember(folder, attempt, "TraceError", "two", now=NOW)
    other = remember(folder, attempt, "TiedWeightsError", "three", now=NOW)
    assert first is not None
    assert again is not None
    assert other is not None
    assert (again.since, again.message) == (first.since, "two")
    assert other.since > first.since


def test_what_is_no_refusal_leaves_no_record(folder, source):
    attempt = attempt_of(make_wanted(source, folder))
    assert remember(folder, attempt, "ConversionCrashedError", "killed", now=NOW) is None
    assert folder.names("refusals") == []


def test_what_is_fresh_asks_for_no_records(folder, source, monkeypatch):
    wanted = make_wanted(source, folder)
    publish(folder, wanted)

    def refuse_listing(*_: object) -> None:
        raise AssertionError("listed")

    monkeypatch.setattr("tasks.plan.known.list_records", refuse_listing)
    assert plan_one(wanted).state == "fresh"


def test_records_are_listed_once_for_a_plan(folder, source, monkeypatch):
    listed: list[str] = []
    walk = FileStore.walk

    def counted(self: FileStore, prefix: str, *, after: str = ""):
        listed.append(prefix)
        return walk(self, prefix, after=after)

    refuse(folder, make_wanted(source, folder))
    monkeypatch.setattr(FileStore, "walk", counted)
    entries = {str(n): make_wanted(source, folder, batch=n) for n in range(1, 5)}
    assert [row.state for row in plan(entries)] == ["refused", *["missing"] * 3]
    assert listed.count("refusals") == 1


# A coordinator that does not know the toolchain


def test_without_the_toolchain_the_last_refusal_s_is_assumed_and_told(folder, source, monkeypatch):
    wanted = make_wanted(source, folder, backend="neuronx", lengths=(8,))

    def unavailable(_: str) -> None:
        raise BackendUnavailableError("no neuronx here")

    monkeypatch.setattr(planning, "find_backend", unavailable)
    assert plan_one(wanted).state == "missing"
    attempt = refuse(folder, wanted, toolchain=dataclasses.replace(toolchain(), compiler="c==1"))
    row = plan_one(wanted)
    assert (row.state, row.key) == ("refused", None)
    assert row.why == ("never published", "toolchain not checked: no neuronx here")
    assert plan_one(wanted.model_copy(update={"threads": 9})).state == "missing"

    key = str(attempt.key)
    candidate = f"conversions/{attempt.folder.split('/')[1]}/{key}/candidate.json"
    folder.put_new(candidate, b"{}")
    later = time.time() + 60
    os.utime(folder.root / candidate, (later, later))
    assert plan_one(wanted).state == "missing", "it was compiled since: a device may prove it"


# What a plan itself refuses


def test_what_a_plan_refuses_is_known_the_next_time_for_the_same_reason_alone(folder, tmp_path):
    bare = make_wanted(save(tmp_path / "bare", {"config.json": b"{}"}), folder)
    row = plan_one(bare)
    assert row.state == "invalid"
    remember_invalid(row)
    again = plan_one(bare)
    assert (again.state, again.error) == ("refused", "UnsupportedCheckpointError")
    (tmp_path / "bare/README.md").write_text("another listing, and so another reason")
    assert plan_one(bare).state == "invalid"
    assert plan({"entry": bare}, retry_refused=True)[0].state == "invalid"


def test_a_task_that_files_do_not_name_is_known_and_a_folder_that_is_gone_is_not(folder, tmp_path):
    weights = {"model.safetensors": safetensors({"a": b"a"})}
    nameless = make_wanted(save(tmp_path / "n", weights | {"config.json": b"{}"}), folder)
    nameless = nameless.model_copy(update={"task": None})
    gone = make_wanted(tmp_path / "gone", folder)
    for wanted, state in ((nameless, "refused"), (gone, "invalid")):
        remember_invalid(plan_one(wanted))
        assert plan_one(wanted).state == state


# Records that were damaged or forged


def forged(attempt: Attempt, **fields: Any) -> dict[str, Any]:
    refusal = Refusal(attempt=attempt, error="TraceError", message="x", since="2026-01-01T00:00Z")
    return {**dataclasses.asdict(refusal), "since": "2026-01-01T00:00:00+00:00", **fields}


FORGERIES: dict[str, Any] = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b"\xff\xfe",
    "not canonical": b'{"attempt": {}}\n',
    "nested": b"[" * 10_000,
    "a long number": b"1" * 6000,
    "surrogate": b'{"attempt":"\\ud800"}\n',
    "too large": b" " * (MOST_BYTES + 1),
    "unknown error": {"error": "ConversionCrashedError"},
    "escapes": {"message": "\x1b[2Jall is fine"},
    "two lines": {"message": "a\nb"},
    "no message": {"message": ""},
    "a long message": {"message": "x" * 5000},
    "from tomorrow's tomorrow": {"since": "2999-01-01T00:00:00+00:00"},
    "no time": {"since": "yesterday"},
    "no offset": {"since": "2026-01-01T00:00:00"},
    "another field": {"fresh": True},
    "a field of another type": {"message": 1},
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_record_that_is_broken_is_told_and_costs_a_repeat(folder, source, what):
    wanted = make_wanted(source, folder)
    attempt, forgery = attempt_of(wanted), FORGERIES[what]
    write(folder, attempt.path, forged(attempt))
    assert plan_one(wanted).state == "refused", "the control: this is a whole record"
    whole_record = isinstance(forgery, dict)
    write(folder, attempt.path, forged(attempt, **forgery) if whole_record else forgery)
    row = plan_one(wanted)
    assert row.state == "missing"
    (_, note) = row.why
    assert note.startswith(f"a record of a refusal counts for nothing: {attempt.path}")
    assert note.isprintable()
    assert remember(folder, attempt, "TraceError", "again", now=NOW)
    assert plan_one(wanted).state == "refused", "the next refusal replaces it"


def test_a_record_that_was_moved_is_broken(folder, source):
    wanted = make_wanted(source, folder)
    other = attempt_of(wanted, threads=7)
    write(folder, attempt_of(wanted).path, forged(other))
    assert "expected the record of that name" in plan_one(wanted).why[1]


def test_a_broken_record_is_told_beside_what_a_plan_refuses(folder, tmp_path, caplog):
    bare = make_wanted(save(tmp_path / "bare", {"config.json": b"{}"}), folder)
    row = plan_one(bare)
    assert row.attempt is not None
    write(folder, row.attempt.path, b"{}")
    shown = table([plan_one(bare)])
    assert "UnsupportedCheckpointError; a record of a refusal counts for nothing" in shown
    assert "counts for nothing" in caplog.text
    remember_invalid(row)
    assert "refused  UnsupportedCheckpointError since 20" in table([plan_one(bare)])


def test_a_record_hides_no_conversion_that_is_wrong(folder, source):
    """Published without a verdict: the attempt finds it and says so, whatever a record says."""
    wanted = make_wanted(source, folder)
    attempt = refuse(folder, wanted)
    assert plan_one(wanted).state == "refused", "the control"
    identity = identify(wanted, resolve(wanted.source), toolchain())
    names = [field.name for field in dataclasses.fields(identity)]
    parts = {name: getattr(identity, name) for name in names}
    manifest = example_manifest(key=attempt.key, files=(), **parts)
    unproved = dataclasses.replace(manifest.validation, negative_controls=())
    manifest = dataclasses.replace(manifest, validation=unproved)
    where = f"{conversion_folder(identity.source, identity.key)}/manifest.json"
    folder.put_new(where, manifest.to_bytes())
    row = plan_one(wanted)
    assert row.state == "missing"
    assert "a caught negative control" in row.why[1]
    folder.put_over(where, b"{}")
    assert plan_one(wanted).state == "missing"


def test_links_and_pipes_in_place_of_records_hold_up_no_plan(folder, source, tmp_path):
    wanted = make_wanted(source, folder)
    path = folder.root / attempt_of(wanted).path
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert "expected 1 to" in plan_one(wanted).why[1]
    path.unlink()
    (tmp_path / "outside").write_bytes(b"{}")
    path.symlink_to(tmp_path / "outside")
    assert "symbolic link" in plan_one(wanted).why[1]
    path.unlink()
    path.symlink_to(path)
    assert plan_one(wanted).state == "missing", "a link to itself can't even be listed"


def test_a_store_with_very_many_records_is_not_read_for_ever(folder, source, monkeypatch):
    monkeypatch.setattr(refusals, "MOST_RECORDS", 3)
    for number in range(9):
        write(folder, f"refusals/a-{number}/x.json", b"{}")
    assert len(list(refusals.list_records(folder))) == 3
    wanted = make_wanted(source, folder)
    refuse(folder, wanted)
    assert plan_one(wanted).state == "missing", "it costs a repeat"


def test_a_forged_record_publishes_and_hides_nothing(folder, source):
    wanted = make_wanted(source, folder)
    publish(folder, wanted)
    write(folder, attempt_of(wanted).path, forged(attempt_of(wanted)))
    assert plan_one(wanted).state == "fresh"
    assert len(list(find_variants(folder))) == 1


def test_a_store_that_does_not_answer_is_an_error_of_the_store(folder, source, monkeypatch):
    refuse(folder, make_wanted(source, folder))

    def unavailable(*_: object) -> None:
        raise StoreUnavailableError("file:///store: 503")

    monkeypatch.setattr("tasks.plan.known.read", unavailable)
    row = plan_one(make_wanted(source, folder))
    assert (row.state, row.error, row.transient) == ("invalid", "StoreUnavailableError", True)


# Writing


def test_two_writers_at_once_leave_one_whole_record(store, source):
    attempt = attempt_of(make_wanted(source, store))
    trouble: list[BaseException] = []

    def write_often(name: str) -> None:
        try:
            for number in range(5):
                assert remember(store, attempt, "TraceError", f"{name} {number}", now=time.time())
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=write_often, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if any(one.path == attempt.path for one in store.walk("refusals")):
            assert parse(store.read(attempt.path), attempt.path, time.time()).attempt == attempt
    for thread in threads:
        thread.join()
    assert trouble == []
    assert [one.path for one in store.walk("refusals")] == [attempt.path]


def test_what_can_not_be_written_hides_no_refusal(folder, source, monkeypatch, caplog):
    wanted = make_wanted(source, folder)
    found = resolve(wanted.source)

    def refuse_writing(*_: object, **__: object) -> None:
        raise StoreError("read-only")

    monkeypatch.setattr(FileStore, "put_over", refuse_writing)
    identity = identify(wanted, found, toolchain())
    with pytest.raises(TraceError, match="its own"), remembering(folder, wanted, found, identity):
        raise TraceError("its own")
    assert "could not be remembered" in caplog.text
    monkeypatch.setattr(writing, "open_writable", refuse_writing)
    row = PlanRow(
        name="a", request=wanted, state="invalid", error="TraceError", attempt=attempt_of(wanted)
    )
    remember_invalid(row)


def test_a_folder_that_was_written_to_meanwhile_is_not_remembered(folder, source):
    wanted = make_wanted(source, folder)
    found = resolve(wanted.source)
    identity = identify(wanted, found, toolchain())
    (source / "config.json").write_text('{"written": "meanwhile"}')
    error = UnsupportedCheckpointError("half of the new one and half of the old")
    with pytest.raises(UnsupportedCheckpointError), remembering(folder, wanted, found, identity):
        raise error
    assert folder.names("refusals") == []


def test_messages_are_one_line_of_printable_characters():
    assert (
        one_line("a\n b\t\x1b[2J‮c") == "a b \N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}c"
    )
    assert one_line("") == "no message"
    for text in ("x" * 1999 + " y" * 99, "a\n b\x1b", ""):
        assert one_line(one_line(text)) == one_line(text)


def test_a_truncated_checkpoint_is_refused_remembered_and_tried_again_when_mended(
    checkpoint, folder, tmp_path
):
    """Its commit is the digest of what is there: the truncated bytes are what is refused."""
    source = tmp_path / "cut"
    files = {path.name: path.read_bytes() for path in checkpoint("bert").iterdir()}
    weights = files["model.safetensors"]
    save(source, {**files, "model.safetensors": weights[:-100]})
    wanted = make_wanted(source, folder, lengths=(8,))
    for _ in range(2):
        with pytest.raises(UnsafeCheckpointError, match="truncated"):
            convert(wanted)  # a single conversion always tries
        assert plan_one(wanted).state == "refused"
    save(source, {"model.safetensors": weights})
    assert plan_one(wanted).state == "missing"
    convert(wanted)
    assert plan_one(wanted).state == "fresh"


def test_a_success_makes_a_record_meaningless(checkpoint, folder):
    wanted = make_wanted(checkpoint("bert"), folder, lengths=(8,))
    refuse(folder, wanted)
    assert plan_one(wanted).state == "refused"
    convert(wanted)
    assert plan_one(wanted).state == "fresh"


def test_a_store_of_an_older_schema_stays_readable(folder, source):
    write_limit(folder, "2")
    wanted = make_wanted(source, folder)
    publish(folder, wanted, options={"schema": "2"})
    refuse(folder, wanted.model_copy(update={"threads": 9}), options={"schema": "2"})
    assert plan_one(wanted).state == "fresh"
    for command in (["list"], ["verify"], ["gc", "--quiet"]):
        assert main([*command, folder.url]) == 0
    assert plan_one(wanted.model_copy(update={"lengths": (4,)})).state == "stale"
    assert len(list(find_variants(folder))) == 1


def test_a_record_says_which_attempt_it_is_of(folder, source):
    attempt = refuse(folder, make_wanted(source, folder))
    read = parse(folder.read(attempt.path), attempt.path, time.time())
    assert read.attempt == attempt
    with pytest.raises(ManifestError, match="expected the record of that name"):
        parse(folder.read(attempt.path), "refusals/a/b.json", time.time())
