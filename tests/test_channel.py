"""Channels: numbers without gaps, no update lost, names that can't collide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.reader_support import commit_rounds, race
from tracefleet.channel import (
    Published,
    advance,
    channel_folder,
    conversion_folder,
    find_variants,
    parse_label,
    read_current,
    source_slug,
)
from tracefleet.errors import ManifestError
from tracefleet.manifest_types import Variant
from tracefleet.store.folder import FileStore

FOLDER = "channels/a"
ONE, TWO, KEY = "1" * 64, "2" * 64, "a" * 64


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(root=tmp_path)


def test_an_empty_channel_has_no_current_entry(store: FileStore):
    assert read_current(store, FOLDER) is None


def test_each_new_manifest_gets_the_next_number_and_names_the_one_before(store: FileStore):
    numbers = [advance(store, FOLDER, manifest_digest=m, key=KEY) for m in (ONE, TWO, ONE)]
    assert numbers == [1, 2, 3], "pointing back to an older manifest is a new number"
    assert store.names(FOLDER) == ["0000000001.json", "0000000002.json", "0000000003.json"]
    newest = read_current(store, FOLDER)
    assert newest is not None
    number, entry = newest
    assert (number, entry.manifest, entry.key, entry.previous) == (3, ONE, KEY, 2)


def test_the_current_manifest_again_takes_no_new_number(store: FileStore):
    assert advance(store, FOLDER, manifest_digest=ONE, key=KEY) == 1
    before = store.read(f"{FOLDER}/0000000001.json")
    assert advance(store, FOLDER, manifest_digest=ONE, key=KEY) == 1
    assert store.names(FOLDER) == ["0000000001.json"]
    assert store.read(f"{FOLDER}/0000000001.json") == before


def test_two_entries_never_have_the_same_bytes(store: FileStore):
    for folder in ("a", "b"):
        advance(store, folder, manifest_digest=ONE, key=KEY)
    assert store.read("a/0000000001.json") != store.read("b/0000000001.json")


def test_eight_racing_publishers_lose_nothing_and_leave_no_gap(tmp_path: Path):
    rounds = 5
    numbers = [n for taken in race(commit_rounds, tmp_path, rounds) for n in taken]
    assert sorted(numbers) == list(range(1, 8 * rounds + 1))
    entries = [json.loads(p.read_bytes()) for p in sorted((tmp_path / FOLDER).iterdir())]
    assert len({entry["manifest"] for entry in entries}) == 8 * rounds
    assert [entry["previous"] for entry in entries] == [None, *range(1, 8 * rounds)]


def test_other_names_in_the_folder_are_no_entries(store: FileStore):
    advance(store, FOLDER, manifest_digest=ONE, key=KEY)
    for stray in ("notes.txt", "9.json", "00000000099.json", "0000000009.json.bak"):
        store.put_new(f"{FOLDER}/{stray}", b"{}")
    newest = read_current(store, FOLDER)
    assert newest is not None
    assert newest[0] == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected JSON"),
        (b"[]", "expected an object"),
        (b"{}", "missing fields"),
        ({"key": "../../../etc"}, "key expected 64 hex digits"),
        ({"manifest": "x"}, "manifest expected 64 hex digits"),
        ({"previous": "1"}, "previous: expected int"),
        ({"extra": 1}, "unknown fields"),
    ],
)
def test_a_damaged_entry_is_refused_with_its_path(
    store: FileStore, data: bytes | dict[str, object], message: str
):
    whole = {"manifest": ONE, "key": KEY, "previous": None, "nonce": "n"}
    raw = data if isinstance(data, bytes) else json.dumps({**whole, **data}).encode()
    store.put_new(f"{FOLDER}/0000000001.json", raw)
    with pytest.raises(ManifestError, match=message):
        read_current(store, FOLDER)


def test_the_control_an_undamaged_entry_written_by_hand_is_read(store: FileStore):
    raw = {"manifest": ONE, "key": KEY, "previous": None, "nonce": "n"}
    store.put_new(f"{FOLDER}/0000000001.json", json.dumps(raw).encode())
    assert read_current(store, FOLDER) is not None


@pytest.mark.parametrize(
    ("source", "readable"),
    [
        ("hf://org/name", "hf.org.name"),
        ("hf://Org/Name_v1.5", "hf.org.name_v1.5"),
        ("file:///home/me/models/all-minilm", "file.all-minilm"),
        ("file:///home/me/models/all-minilm/", "file.all-minilm"),
        ("s3://bucket/prefix/bert", "s3.bert"),
        ("file:///日本", "file"),
        ("hf://org/" + "x" * 300, "x" * 80),
    ],
)
def test_slugs_can_be_read_and_are_one_safe_segment(source: str, readable: str):
    slug = source_slug(source)
    assert slug.rpartition("-")[0] == readable
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert not slug.startswith(".")


def test_sources_that_look_alike_get_different_slugs():
    alike = ["hf://a/b", "hf://a.b", "hf://A/b", "hf://a/b/", "file:///x/b", "file:///y/b"]
    assert len({source_slug(source) for source in alike}) == len(alike)
    assert source_slug("hf://a/b") == source_slug("hf://a/b")


def test_folders_are_where_the_design_says():
    slug = source_slug("hf://org/name")
    assert conversion_folder("hf://org/name", KEY) == f"conversions/{slug}/{KEY}"
    variant = Variant(task="fill-mask", batch=2)
    assert channel_folder("hf://org/name", variant, "latest") == (
        f"channels/{slug}/fill-mask.jit.float32.b2/latest"
    )


@pytest.mark.parametrize("channel", ["", "Latest", "a/b", "..", "-a", "a b", "a.b"])
def test_a_channel_name_that_is_no_path_segment_is_refused(channel: str):
    with pytest.raises(ValueError, match="channel: expected lower-case"):
        channel_folder("hf://a/b", Variant(task="fill-mask"), channel)


def test_labels_and_variants_convert_both_ways():
    variant = Variant(task="text2text-generation", backend="neuronx", dtype="bfloat16", batch=16)
    assert parse_label(variant.label) == variant
    for stray in ("notes.txt", "fill-mask.jit.float32", "fill-mask.jit.float32.b0", "a.b.c.d.b1"):
        assert parse_label(stray) is None


def test_everything_published_is_found_and_strays_are_not(store: FileStore):
    places = [
        ("hf://a/b", Variant(task="fill-mask"), "latest"),
        ("hf://a/b", Variant(task="fill-mask"), "candidate"),
        ("hf://a/b", Variant(task="fill-mask", dtype="float16"), "latest"),
        ("hf://c/d", Variant(task="fill-mask"), "latest"),
    ]
    assert list(find_variants(store)) == []
    for source, variant, channel in places:
        folder = channel_folder(source, variant, channel)
        advance(store, folder, manifest_digest=ONE, key=KEY)
    store.put_new("channels/README", b"a stray file")
    store.put_new(f"channels/{source_slug('hf://a/b')}/notes/x", b"a stray folder")
    expected = sorted(Published(source_slug(s), v.label, c, 1) for s, v, c in places)
    assert list(find_variants(store)) == expected
    only = [one for one in expected if one.slug == source_slug("hf://c/d")]
    assert list(find_variants(store, "hf://c/d")) == only
    assert list(find_variants(store, source_slug("hf://c/d"))) == only
    assert list(find_variants(store, "hf://absent/x")) == []
