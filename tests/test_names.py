"""Names that conversions are published under: every reader and every upkeep follows them."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

import tracefleet
from flows.__main__ import main
from flows.judge_current import Choice, _find_all, _is_judged
from tasks.errors import RequestError
from tasks.fleet.spec import FleetSpec
from tasks.plan.freshness import Judgement, judge_name
from tasks.publish import point as pointing
from tasks.publish.channels import promote, rollback
from tasks.publish.gc import collect
from tasks.publish.identity import Identity
from tasks.publish.point import point_channel
from tasks.publish.schema_limit import refuse_name
from tasks.publish.withdraw import reinstate, withdraw, withdraw_everywhere
from tasks.request.conversion import make_request
from tests.support.reader_support import SOURCE, example_manifest, publish
from tracefleet.canonical import canonical_json
from tracefleet.channel import (
    ChannelEntry,
    advance,
    append,
    channel_folder,
    entry_path,
    read_current,
    slug_folder,
    source_slug,
)
from tracefleet.cli import main as read_command
from tracefleet.errors import ManifestError, NoSuchVariantError, StoreError, WithdrawnError
from tracefleet.finding import Selection, find, find_only_source
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import Variant
from tracefleet.names import alias_bytes, alias_path, check_name, is_name
from tracefleet.published import load_manifest, select
from tracefleet.store.folder import FileStore

NAME = "support-classifier"
OTHER = "hf://acme/other"
BUNDLE = b"no model, but bytes"
LABEL = Variant(task="feature-extraction").label


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(root=tmp_path / "store")


def put(
    store: FileStore,
    option: str = "a",
    *,
    source: str = SOURCE,
    name: str | None = NAME,
    channel: str = "latest",
) -> Manifest:
    """Publish a conversion as the pipeline does, under a name."""
    options = {"name": option}
    variant = Variant(task="feature-extraction")
    like = example_manifest(options=options, source=source, variant=variant)
    manifest = publish(
        store,
        source=source,
        variant=variant,
        bundle=BUNDLE,
        channel=channel,
        key=Identity.of(like).key,
        options=options,
    )
    point_channel(store, manifest, channel=channel, name=name)
    return manifest


def named(store: Any, name: str = NAME, channel: str = "latest") -> str:
    """The option of what a name opens."""
    return load_manifest(store, select(store, name, channel=channel)).options["name"]


def name_log(channel: str = "latest") -> str:
    return slug_folder(NAME, LABEL, channel)


# --- what a name may be --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "support-classifier", "gpt2", "v1.2_b", "bert-20240101x"])
def test_a_name_is_one_plain_word(name: str):
    assert check_name(name) == name
    assert is_name(name)
    assert make_request({"source": SOURCE, "lengths": [8], "publish_as": name}).publish_as == name


@pytest.mark.parametrize(
    "name",
    [
        "", "A", "a b", "a/b", "../a", ".a", "a.", "-a", "a-", "hf://a", "é", "a\n", "x" * 81,
        "hf", "s3", "file", "bert-20240101", source_slug(SOURCE),
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused_and_told_why(name: str):
    with pytest.raises(ValueError, match=r"^name: expected"):
        check_name(name)
    with pytest.raises(RequestError, match="publish_as: "):
        make_request({"source": SOURCE, "lengths": [8], "publish_as": name})
    assert not is_name(name)


def test_an_entry_without_a_source_has_the_bytes_that_it_always_had():
    plain = ChannelEntry(manifest="a" * 64, key="b" * 64, previous=None, nonce="c" * 32)
    before = {"key": "b" * 64, "manifest": "a" * 64, "nonce": "c" * 32, "previous": None}
    assert plain.to_bytes() == canonical_json(before)


# --- readers -------------------------------------------------------------------------------------


def test_a_name_opens_what_its_source_opens(store: FileStore, tmp_path: Path):
    manifest = publish(store)
    point_with(store, manifest)
    opened = tracefleet.open(store, NAME)
    assert opened.manifest == manifest == tracefleet.load_manifest(store, NAME)
    assert tracefleet.pull(store, select(store, NAME), tmp_path / "pulled") == manifest
    with tracefleet.watch(store, NAME, every=60) as watched:
        assert watched.manifest == manifest
    [by_name] = tracefleet.find(store, NAME)
    assert all(check.ok for check in tracefleet.verify(store, by_name))


def point_with(store: FileStore, manifest: Manifest) -> None:
    advance(
        store,
        slug_folder(NAME, manifest.variant.label, "latest"),
        manifest_digest=manifest.digest,
        key=manifest.key,
        source=manifest.source,
    )


def test_a_name_comes_before_a_source_and_a_source_before_an_alias(store: FileStore):
    one = put(store, "one", source="hf://gpt2", name=None)
    two = put(store, "two", source="hf://openai-community/gpt2", name=None)
    store.put_over(alias_path("hf://gpt2"), alias_bytes("hf://gpt2", two.source))
    assert named(store, "gpt2") == "one", "the source"
    put(store, "three", source=OTHER, name="gpt2")
    assert named(store, "gpt2") == "three", "the name"
    assert named(store, "hf://gpt2") == "one", "with its scheme it is the source"
    store.remove([entry_path(channel_folder(one.source, one.variant, "latest"), 1)])
    assert named(store, "hf://gpt2") == "two", "the alias"


@pytest.mark.parametrize(
    "data", [b"{", b"[]", alias_bytes("hf://other", SOURCE), alias_bytes("hf://gpt2", "file:///x")]
)
def test_an_alias_that_was_moved_or_edited_is_refused(store: FileStore, data: bytes):
    put(store, name=None)
    store.put_over(alias_path("hf://gpt2"), alias_bytes("hf://gpt2", SOURCE))
    assert named(store, "gpt2") == "a", "the control"
    store.put_over(alias_path("hf://gpt2"), data)
    with pytest.raises(ManifestError, match=r"aliases/hf\.gpt2-"):
        select(store, "gpt2")


def test_a_forged_entry_of_a_name_is_refused(store: FileStore):
    manifest = put(store)
    put(store, "other", source=OTHER, name=None)
    current = read_current(store, name_log())
    assert current is not None
    number, entry = current
    path = store.root / entry_path(name_log(), number)
    other = dataclasses.replace(entry, source=OTHER)
    broken = entry.to_bytes().replace(SOURCE.encode(), b"no-scheme")
    for match, forged in (
        ("conversions/.*missing", other.to_bytes()),
        (f"conversions/{NAME}/.*missing", dataclasses.replace(entry, source=None).to_bytes()),
        ("source expected one with its scheme", broken),
    ):
        path.write_bytes(forged)
        with pytest.raises(ManifestError, match=match):
            load_manifest(store, select(store, NAME))
    planted = store.root / f"conversions/{source_slug(OTHER)}/{manifest.key}"
    planted.mkdir()
    (planted / "manifest.json").write_bytes(manifest.to_bytes())
    path.write_bytes(other.to_bytes())
    with pytest.raises(ManifestError, match=f"source that the name stands for expected {OTHER}"):
        load_manifest(store, select(store, NAME))
    path.write_bytes(entry.to_bytes())
    assert named(store) == "a", "the control"


def test_a_source_of_its_own_never_leads_to_another_one(store: FileStore):
    put(store, "victim", name=None)
    evil = put(store, "evil", source=OTHER, name=None)
    folder = channel_folder(SOURCE, evil.variant, "latest")
    digest = evil.digest
    advance(store, folder, manifest_digest=digest, key=evil.key, source=OTHER)
    with pytest.raises(ManifestError, match="channel entry of a source expected none of another"):
        load_manifest(store, select(store, SOURCE))


def test_a_store_of_one_source_needs_none(store: FileStore, capsys: pytest.CaptureFixture[str]):
    put(store, "one")
    put(store, "candidate", channel="candidate", name=None)
    assert load_manifest(store, select(store)).options["name"] == "one"
    assert find_only_source(store) == source_slug(SOURCE)
    assert read_command(["show", str(store.root)]) == 0
    assert f"name       {NAME}" not in capsys.readouterr().out, "it is chosen by its source"
    put(store, "two", source=OTHER, name=None)
    with pytest.raises(NoSuchVariantError, match=f"several .*{source_slug(OTHER)}.*Give one"):
        select(store)
    assert load_manifest(store, select(store, channel="candidate")).options["name"] == "candidate"
    with pytest.raises(NoSuchVariantError, match="nothing that fits is published"):
        select(store, channel="absent")
    assert read_command(["show", str(store.root)]) == 1


def test_what_watches_the_only_source_stays_with_it(store: FileStore):
    manifest = publish(store)
    with tracefleet.watch(store, every=60) as watched:
        publish(store, source=OTHER)
        assert watched.look() is None
        assert watched.manifest == manifest


def test_the_command_line_follows_names(store: FileStore, capsys: pytest.CaptureFixture[str]):
    put(store)
    where = str(store.root)
    assert read_command(["list", where]) == 0
    assert f"{NAME} = {SOURCE}" in capsys.readouterr().out
    assert read_command(["list", where, "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == {None, NAME}
    assert read_command(["show", where, NAME]) == 0
    assert f"name       {NAME}" in capsys.readouterr().out
    assert read_command(["verify", where, NAME]) == 0
    capsys.readouterr()
    assert read_command(["verify", where]) == 0
    assert "5 files checked in 2 channels, 0 damaged" in capsys.readouterr().out, "each once"
    assert main(["promote", "--store", where, "--source", NAME, "--channel", "latest",
                 "--to", "stable"]) == 0  # fmt: skip
    assert named(store, channel="stable") == "a"


# --- publishing ----------------------------------------------------------------------------------


def test_publishing_moves_the_source_and_the_name_and_a_repeat_writes_nothing(store: FileStore):
    manifest = put(store)
    before = sorted(file.path for file in store.walk(""))
    again = point_channel(store, manifest, channel="latest", name=NAME)
    assert (again.number, again.address) == (1, NAME)
    assert sorted(file.path for file in store.walk("")) == before
    put(store, "b")
    assert named(store) == named(store, SOURCE) == "b"


def test_a_name_moves_to_another_source_and_the_move_is_told(store: FileStore):
    put(store)
    other = put(store, "b", source=OTHER, name=None)
    moved = point_channel(store, other, channel="latest", name=NAME)
    assert moved.named is not None
    assert (moved.named.number, moved.named.moved_from) == (2, SOURCE)
    assert named(store) == "b"
    rollback(store, select(store, NAME))
    assert named(store) == "a", "a rollback of the name leads back to the other source"


def test_two_sources_with_the_same_files_are_two_conversions(store: FileStore):
    put(store, "same")
    twin = put(store, "same", source=OTHER, name=None)
    moved = point_channel(store, twin, channel="latest", name=NAME)
    assert moved.named is not None
    assert moved.named.number == 2
    assert load_manifest(store, select(store, NAME)).source == OTHER


def test_a_crash_between_the_two_channels_is_completed_by_a_rerun(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
):
    manifest = put(store, name=None)
    real = append

    def dies(store: Any, folder: str, **more: Any) -> int | None:
        if folder == name_log():
            raise KeyboardInterrupt
        return real(store, folder, **more)

    monkeypatch.setattr(pointing, "append", dies)
    with pytest.raises(KeyboardInterrupt):
        point_channel(store, manifest, channel="latest", name=NAME)
    assert named(store, SOURCE) == "a"
    with pytest.raises(NoSuchVariantError):
        select(store, NAME)
    monkeypatch.undo()
    point_channel(store, manifest, channel="latest", name=NAME)
    assert named(store) == "a"


def test_promotion_and_rollback_move_the_address_that_is_given(store: FileStore):
    put(store, "a")
    put(store, "b", channel="candidate")
    promote(store, select(store, NAME, channel="candidate"))
    assert (named(store), named(store, SOURCE)) == ("b", "a")
    rollback(store, select(store, NAME))
    assert named(store) == "a"


# --- withdrawing ---------------------------------------------------------------------------------


def test_a_withdrawal_holds_wherever_the_conversion_is_current(store: FileStore):
    manifest = put(store)
    point_channel(store, manifest, channel="stable", name="second-name")
    put(store, "other", source=OTHER, name="bystander")
    done = withdraw_everywhere(store, select(store, SOURCE), "wrong numbers")
    assert {(one.slug, one.channel) for one in done} == {
        (source_slug(SOURCE), "latest"),
        (source_slug(SOURCE), "stable"),
        (NAME, "latest"),
        ("second-name", "stable"),
    }
    for name, channel in ((SOURCE, "latest"), (NAME, "latest"), ("second-name", "stable")):
        with pytest.raises(WithdrawnError, match="wrong numbers"):
            load_manifest(store, select(store, name, channel=channel))
    assert named(store, "bystander") == "other", "the control"
    again = withdraw_everywhere(store, select(store, SOURCE), "again")
    assert list(again.values()) == list(done.values()), "a repeat writes nothing"


def test_a_channel_that_denies_it_does_not_keep_the_others_from_a_withdrawal(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
):
    """As a publisher's rights do in a guarded channel."""
    manifest = put(store)
    point_channel(store, manifest, channel="stable", name="second-name")
    guarded = select(store, SOURCE, channel="stable").published

    def deny(store: FileStore, selection: Selection, reason: str) -> Any:
        if selection.published == guarded:
            raise StoreError("AccessDenied")
        return withdraw(store, selection, reason)

    monkeypatch.setattr("tasks.publish.withdraw.withdraw", deny)
    with pytest.raises(StoreError, match=r"1 that still point to it: .*AccessDenied"):
        withdraw_everywhere(store, select(store, SOURCE), "wrong numbers")
    for name, channel in ((SOURCE, "latest"), (NAME, "latest"), ("second-name", "stable")):
        with pytest.raises(WithdrawnError, match="wrong numbers"):
            load_manifest(store, select(store, name, channel=channel))


def test_what_is_withdrawn_does_not_come_back_by_a_new_name(store: FileStore):
    manifest = put(store, name=None)
    withdraw_everywhere(store, select(store, SOURCE), "wrong numbers")
    found = point_channel(store, manifest, channel="latest", name=NAME)
    assert (found.named, found.address) == (None, None)
    assert list(find(store, NAME)) == []


def test_a_name_is_withdrawn_and_reinstated_by_itself_too(
    store: FileStore, capsys: pytest.CaptureFixture[str]
):
    put(store)
    where = ["--store", str(store.root), "--source"]
    assert main(["withdraw", *where, NAME, "--reason", "wrong"]) == 0
    assert f"also     {source_slug(SOURCE)} latest #2" in capsys.readouterr().out
    reinstate(store, select(store, NAME))
    assert named(store) == "a"
    with pytest.raises(WithdrawnError):
        load_manifest(store, select(store, SOURCE))
    assert main(["reinstate", *where, SOURCE]) == 0
    assert named(store, SOURCE) == "a"


def test_a_reinstatement_says_where_the_conversion_is_withdrawn_still(
    store: FileStore, capsys: pytest.CaptureFixture[str]
):
    put(store)
    where = ["--store", str(store.root), "--source"]
    main(["withdraw", *where, SOURCE, "--reason", "wrong"])
    capsys.readouterr()
    assert main(["reinstate", *where, SOURCE]) == 0
    assert f"withdrawn in {NAME} latest #2" in capsys.readouterr().out


def test_the_gate_judges_a_conversion_once_whatever_its_addresses(store: FileStore):
    put(store, "a")
    put(store, "b", source=OTHER, name="only-name")
    seen: set[tuple[str, bool]] = set()
    choice = Choice(store=str(store.root))
    judged = [one for one in _find_all(store, choice) if not _is_judged(store, one, seen)]
    assert len(list(_find_all(store, choice))) == 4
    assert len(judged) == 2


# --- collecting ----------------------------------------------------------------------------------


def later(store: FileStore, **more: Any) -> Any:
    now = time.time() + 7 * 86400
    return collect(store, before=now - 86400, now=now, **more)


def test_what_only_a_name_points_to_is_never_collected(store: FileStore):
    kept = put(store, "a")
    store.remove([entry_path(channel_folder(SOURCE, kept.variant, "latest"), 1)])
    assert later(store) == later(store, dry_run=True)
    assert named(store) == "a"
    store.remove([entry_path(name_log(), 1)])
    assert [one.kind for one in later(store).removed] == ["conversion"], "the control"


def test_keep_counts_the_numbers_of_a_name_too(store: FileStore):
    for option in "abc":
        put(store, option)
    assert len(later(store, keep=1).removed) == 2
    assert named(store) == "c"


def test_a_name_that_appears_while_the_collector_works_keeps_its_conversion(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
):
    manifest = put(store, name=None)
    store.remove([entry_path(channel_folder(SOURCE, manifest.variant, "latest"), 1)])
    real = FileStore.put_new

    def names_it_first(self: FileStore, path: str, data: bytes) -> bool:
        if path.startswith("collecting/"):
            point_with(store, manifest)
        return real(self, path, data)

    monkeypatch.setattr(FileStore, "put_new", names_it_first)
    found = later(store)
    assert (found.removed, len(found.kept)) == ((), 1)
    assert "a channel names it by now" in found.kept[0]


def test_a_damaged_entry_of_a_name_keeps_everything(store: FileStore):
    manifest = put(store)
    store.remove([entry_path(channel_folder(SOURCE, manifest.variant, "latest"), 1)])
    (store.root / entry_path(name_log(), 1)).write_bytes(b"{")
    found = later(store)
    assert found.removed == ()
    assert any("all kept" in one for one in found.damaged)


def test_a_store_of_older_readers_takes_no_name(store: FileStore):
    refuse_name(store, 3, NAME)
    refuse_name(store, 2, None)
    with pytest.raises(RequestError, match="limited to schema 2, got 'support-classifier'"):
        refuse_name(store, 2, NAME)


# --- planning ------------------------------------------------------------------------------------


def test_a_fresh_conversion_is_stale_until_its_name_points_to_it(store: FileStore):
    manifest = put(store, name=None)
    wanted = Identity.of(manifest)
    fresh = Judgement(state="fresh", key=manifest.key, number=1)
    new = judge_name(store, wanted, fresh, name_log())
    assert (new.state, new.why) == ("stale", (f"name {NAME} is new",))
    point_channel(store, manifest, channel="latest", name=NAME)
    assert judge_name(store, wanted, fresh, name_log()) == fresh
    put(store, "b", source=OTHER)
    moved = judge_name(store, wanted, fresh, name_log())
    assert moved.why == (f"name {NAME} points to another conversion, of {OTHER}",)
    rollback(store, select(store, NAME))
    put(store, "b", source=OTHER, name=None)
    other = Identity.of(load_manifest(store, select(store, OTHER)))
    left = judge_name(store, other, Judgement(state="fresh", key=other.key, number=1), name_log())
    assert left.state == "fresh", "an operator rolled it back"


def test_a_name_that_two_entries_move_is_refused_but_not_for_two_variants():
    entries = {
        "one": {"source": "hf://a/b", "task": "fill-mask", "publish_as": NAME},
        "two": {"source": "hf://c/d", "task": "fill-mask", "publish_as": NAME},
    }
    with pytest.raises(RequestError, match=f"two.publish_as: expected a name .*{NAME}.*'one'"):
        FleetSpec(defaults={"lengths": [8]}, entries=entries).requests()
    entries["two"]["dtype"] = "float16"
    assert len(FleetSpec(defaults={"lengths": [8]}, entries=entries).requests()) == 2
