"""Promote and roll back: channels move by new numbers only, and nobody's move is undone unseen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flows.__main__ import main
from tasks.errors import NumericsMismatchError, PublishConflictError, RequestError
from tasks.publish import point as publishing
from tasks.publish import withdraw as moving
from tasks.publish.channels import promote, rollback
from tasks.publish.identity import Identity
from tasks.publish.point import point_channel
from tests.support.reader_support import SOURCE, example_manifest, publish
from tracefleet.channel import append, channel_folder, conversion_folder, read_entry
from tracefleet.errors import DigestMismatchError
from tracefleet.manifest import Manifest
from tracefleet.published import Selection, load_manifest, select
from tracefleet.store.folder import FileStore
from tracefleet.verdict_types import UNVALIDATED_ON_DEVICE

BUNDLE = b"no model, but bytes"


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(root=tmp_path / "store")


def put(store: FileStore, name: str, *, channel: str = "latest") -> Manifest:
    options = {"name": name}
    key = Identity.of(example_manifest(options=options)).key
    return publish(store, bundle=BUNDLE, channel=channel, key=key, options=options)


def chosen(store: FileStore, channel: str = "latest") -> Selection:
    return select(store, SOURCE, channel=channel)


def name(store: FileStore, channel: str = "latest") -> str:
    return load_manifest(store, chosen(store, channel)).options["name"]


def back(store: FileStore, number: int | None = None) -> str:
    rollback(store, chosen(store), number=number)
    return name(store)


def test_promotion_makes_a_candidate_the_latest(store: FileStore):
    put(store, "old")
    put(store, "new", channel="candidate")
    manifest, number = promote(store, chosen(store, "candidate"))
    assert (manifest.options["name"], number) == ("new", 2)
    assert name(store) == name(store, "candidate") == "new"
    assert promote(store, chosen(store, "candidate"))[1] == 2, "the same again is no change"


def test_what_is_not_validated_is_never_promoted(store: FileStore):
    validation = dataclasses.replace(example_manifest().validation, verdict=UNVALIDATED_ON_DEVICE)
    publish(store, bundle=BUNDLE, channel="candidate", validation=validation)
    with pytest.raises(NumericsMismatchError, match="expected verdict 'validated'"):
        promote(store, chosen(store, "candidate"))
    assert store.names("channels") == [chosen(store, "candidate").published.slug]
    assert "latest" not in store.names(
        chosen(store, "candidate").published.folder.rpartition("/")[0]
    )


def test_promotion_into_itself_is_refused(store: FileStore):
    put(store, "a")
    with pytest.raises(RequestError, match="two different channels"):
        promote(store, chosen(store), to="latest")


def test_each_rollback_goes_one_further_back_and_loses_no_number(store: FileStore):
    for one in "abc":
        put(store, one)
    assert [back(store), back(store)] == ["b", "a"]
    assert chosen(store).number == 5
    with pytest.raises(RequestError, match="got nothing"):
        back(store)
    assert back(store, number=3) == "c"
    assert back(store) == "b", "what was brought back still knows what was before it"


def test_after_a_new_publication_a_rollback_goes_to_what_it_replaced(store: FileStore):
    for one in "abc":
        put(store, one)
    back(store)
    put(store, "d")
    assert back(store) == "b"
    assert back(store) == "a"


@pytest.mark.parametrize("number", [0, -1, 3, 99])
def test_a_number_that_is_not_there_is_refused(store: FileStore, number: int):
    put(store, "a")
    put(store, "b")
    with pytest.raises(RequestError, match="rollback expected a number from 1 to 2"):
        back(store, number=number)
    assert chosen(store).number == 2


def test_a_conversion_that_was_collected_or_damaged_does_not_come_back(store: FileStore):
    first = put(store, "a")
    put(store, "b")
    path = store.root / conversion_folder(SOURCE, first.key) / "manifest.json"
    data = path.read_bytes()
    path.write_bytes(data + b" ")
    with pytest.raises(DigestMismatchError):
        back(store)
    path.unlink()
    with pytest.raises(RequestError, match="number 1 can't come back"):
        back(store)
    assert name(store) == "b"
    path.write_bytes(data)
    assert back(store) == "a", "the control"


def test_a_channel_that_moved_meanwhile_is_left_to_be_looked_at(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
):
    put(store, "a")
    put(store, "b")

    def moves_first(*arguments: object, **options: object) -> int | None:
        monkeypatch.undo()
        put(store, "c")
        return append(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(moving, "append", moves_first)
    with pytest.raises(PublishConflictError, match="another writer published meanwhile"):
        back(store)
    assert name(store) == "c"


def test_a_repeat_of_what_was_rolled_back_does_not_undo_the_rollback(store: FileStore):
    manifests = {one: put(store, one) for one in "abc"}
    back(store)
    publication = point_channel(store, manifests["c"], channel="latest")
    assert (publication.rolled_back_number, publication.number) == (3, 4)
    assert name(store) == "b"
    assert point_channel(store, manifests["b"], channel="latest").rolled_back_number is None
    # What was there before, and what is new, move the channel as ever.
    assert point_channel(store, manifests["a"], channel="latest").rolled_back_number is None
    assert name(store) == "a"
    put(store, "d")
    assert name(store) == "d"


def test_what_was_rolled_back_comes_back_by_the_number_that_is_reported(store: FileStore):
    manifests = {one: put(store, one) for one in "abc"}
    point_channel(store, manifests["b"], channel="latest")
    put(store, "d")
    assert back(store, number=1) == "a"
    numbers = {
        one: point_channel(store, manifests[one], channel="latest").rolled_back_number
        for one in "abc"
    }
    assert numbers == {"a": None, "b": 4, "c": 3}, "of 2 and 4, which both hold b, the highest"
    assert back(store, number=numbers["b"]) == "b"
    assert point_channel(store, manifests["b"], channel="latest").rolled_back_number is None


def test_a_rollback_in_the_middle_of_a_repeat_is_not_undone_either(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
):
    put(store, "a")
    second = put(store, "b")
    put(store, "c")
    point = {"first": True}

    def rolls_back_first(*arguments: object, **options: object) -> int | None:
        if point.pop("first", False):  # c -> b -> a, while the repeat of b is about to write
            back(store)
            back(store)
        return append(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(publishing, "append", rolls_back_first)
    publication = point_channel(store, second, channel="latest")
    assert (publication.rolled_back_number, name(store)) == (4, "a")


def test_every_number_knows_what_a_rollback_from_it_goes_to(store: FileStore):
    for one in "abc":
        put(store, one)
    back(store)
    folder = channel_folder(SOURCE, example_manifest().variant, "latest")
    assert [read_entry(store, folder, n).previous for n in range(1, 5)] == [None, 1, 2, 1]


def test_the_command_line_promotes_and_rolls_back(
    store: FileStore, capsys: pytest.CaptureFixture[str]
):
    put(store, "old")
    new = put(store, "new", channel="candidate")
    where = ["--store", str(store.root), "--source", SOURCE]
    assert main(["promote", *where]) == 0
    assert capsys.readouterr().out == f"channel  latest #2 -> {new.key[:12]}\n"
    assert main(["rollback", *where, "--json"]) == 0
    assert '"number": 3' in capsys.readouterr().out
    assert name(store) == "old"
    assert main(["rollback", *where]) == 1
    assert "got nothing" in capsys.readouterr().err
    assert main(["promote", *where, "--channel", "absent"]) == 1
    assert "NoSuchVariantError" in capsys.readouterr().err
