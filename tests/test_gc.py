"""Collecting: everything that nothing wants, nothing that anybody wants, whatever the timing."""

from __future__ import annotations

import dataclasses
import os
import random
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from tasks.publish import claim as claiming
from tasks.publish import gc
from tasks.publish.claim import claim_conversion, prefix_of
from tasks.publish.conversion import attest
from tasks.publish.gc import Collection, collect
from tasks.publish.identity import Identity
from tasks.publish.point import point_channel
from tests.support.reader_support import SOURCE, example_manifest, publish
from tests.support.s3_servers import S3Server
from tests.test_store_contract import begin_upload
from tracefleet.channel import (
    advance,
    channel_folder,
    conversion_folder,
    find_variants,
    read_entry,
    source_slug,
)
from tracefleet.errors import StoreError, StoreUnavailableError
from tracefleet.manifest import Manifest
from tracefleet.store import Store, open_writable
from tracefleet.store.folder import FileStore
from tracefleet.store.s3 import S3Store

SLUG = source_slug(SOURCE)
HOUR = 3600.0
BUNDLE = b"no model, but bytes"


@pytest.fixture(params=["file", "swift"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, aws_env: Callable[[S3Server], S3Server]
) -> Store:
    if request.param == "file":
        return FileStore(root=tmp_path / "store")
    server = aws_env(request.getfixturevalue("swift_server"))
    return open_writable(f"s3://{server.bucket}/{uuid.uuid4().hex}", check=False)


def later(store: Store, *, hours: float = 24, keep: int | None = None) -> Collection:
    """Collect as if ``hours`` had passed, with a grace time of one hour."""
    now = time.time() + hours * HOUR
    return collect(store, before=now - HOUR, now=now, keep=keep)


def mark(store: Store, key: str) -> str:
    """What a collector that is at work, or was killed, has written."""
    path = f"collecting/{prefix_of(SLUG, key)}other.json"
    store.put_new(path, b"{}")
    return path


def put(store: Store, number: int) -> Manifest:
    """Publish the nth conversion of one channel."""
    return publish(store, bundle=BUNDLE, options={"n": str(number)})


def unreferenced(store: Store) -> Manifest:
    """A conversion that was published and that no channel names yet."""
    manifest = example_manifest(files=(), options={"n": "unreferenced"})
    path = f"{conversion_folder(SOURCE, manifest.key)}/manifest.json"
    store.put_new(path, manifest.to_bytes())
    return manifest


def there(store: Store, manifest: Manifest) -> bool:
    return bool(list(store.walk(conversion_folder(SOURCE, manifest.key))))


def test_what_a_channel_names_stays_whatever_its_age(store: Store):
    manifests = [put(store, number) for number in range(3)]
    assert later(store, hours=10_000) == Collection(removed=(), kept=(), damaged=())
    assert all(there(store, manifest) for manifest in manifests)


def test_what_no_channel_names_goes_when_it_is_old(store: Store):
    named, stray = put(store, 1), unreferenced(store)
    assert later(store, hours=0.5).removed == ()
    (removed,) = later(store).removed
    assert (removed.kind, removed.path) == ("conversion", conversion_folder(SOURCE, stray.key))
    assert removed.files == 1
    assert not there(store, stray)
    assert there(store, named)


def test_files_of_a_publish_that_crashed_go_and_a_dry_run_only_says_so(store: Store):
    store.put_new(f"conversions/{SLUG}/{'0' * 64}/model/1/model.pt", b"12345")
    now = time.time() + 24 * HOUR
    said = collect(store, before=now - HOUR, now=now, dry_run=True)
    assert [(one.kind, one.size) for one in said.removed] == [("files", 5)]
    assert list(store.walk("conversions"))
    assert later(store) == said
    assert list(store.walk("conversions")) == []


def test_with_keep_only_the_newest_numbers_hold_their_conversions(store: Store):
    manifests = [put(store, number) for number in range(4)]
    assert len(later(store, keep=2).removed) == 2
    assert [there(store, manifest) for manifest in manifests] == [False, False, True, True]


def test_a_claim_keeps_the_collector_away(store: Store, monkeypatch: pytest.MonkeyPatch):
    stray = old_conversion_young_claim(store, monkeypatch)
    now = time.time() + 2 * HOUR
    with claim_conversion(store, SLUG, stray.key):
        found = collect(store, before=time.time() - HOUR, now=now)
        assert found.removed == ()
        old_claim = collect(store, before=time.time() + 60, now=now, dry_run=True)
        assert [one.kind for one in old_claim.removed] == ["conversion", "claim"]
    assert there(store, stray)
    assert [one.kind for one in later(store).removed] == ["conversion"], "the control: unclaimed"


def age_conversions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every conversion look a day old, and nothing else."""
    real = type(store).walk

    def aged(self: Store, prefix: str, *, after: str = ""):
        for file in real(self, prefix, after=after):
            old = file.path.startswith("conversions/")
            yield dataclasses.replace(file, modified=file.modified - 86400) if old else file

    monkeypatch.setattr(type(store), "walk", aged)


def old_conversion_young_claim(store: Store, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """An unreferenced conversion that looks a day old."""
    stray = unreferenced(store)
    age_conversions(store, monkeypatch)
    return stray


def test_a_publisher_that_claims_while_the_collector_looks_wins(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    stray = old_conversion_young_claim(store, monkeypatch)
    claim = claim_conversion(store, SLUG, stray.key)
    real = gc._Run._find_referenced

    def claims_first(self: gc._Run, slug: str, named: Any) -> set[str]:
        keys = real(self, slug, named)
        monkeypatch.setattr(gc._Run, "_find_referenced", real)
        claim.__enter__()  # between the collector's first look and its mark
        return keys

    monkeypatch.setattr(gc._Run, "_find_referenced", claims_first)
    found = collect(store, before=time.time() - HOUR, now=time.time())
    assert found.removed == ()
    assert found.kept == (f"{conversion_folder(SOURCE, stray.key)}: a publish claims it",)
    claim.__exit__(None, None, None)
    assert there(store, stray)
    assert store.names("collecting") == [], "the mark was taken back"


def test_a_channel_that_names_it_after_the_first_look_saves_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    stray = old_conversion_young_claim(store, monkeypatch)
    real = gc._Run._find_referenced

    def points_first(self: gc._Run, slug: str, named: Any) -> set[str]:
        keys = real(self, slug, named)
        monkeypatch.setattr(gc._Run, "_find_referenced", real)
        folder = channel_folder(SOURCE, stray.variant, "latest")
        advance(store, folder, manifest_digest=stray.digest, key=stray.key)
        return keys

    monkeypatch.setattr(gc._Run, "_find_referenced", points_first)
    found = collect(store, before=time.time() - HOUR, now=time.time())
    assert [kept.rpartition(": ")[2] for kept in found.kept] == ["a channel names it by now"]
    assert there(store, stray)


def test_a_publisher_is_refused_while_its_conversion_is_collected(store: Store):
    stray = unreferenced(store)
    path = mark(store, stray.key)
    with pytest.raises(StoreUnavailableError, match="Run again in a minute"):
        point_channel(store, stray, channel="latest")
    assert store.names("channels") == []
    assert list(store.walk("publishing")) == [], "the claim was given back"
    store.remove([path])


def test_a_conversion_that_was_collected_since_it_was_found_is_not_pointed_to(store: Store):
    gone = example_manifest(files=(), options={"n": "gone"})
    with pytest.raises(StoreUnavailableError, match="gc has collected it"):
        point_channel(store, gone, channel="latest")
    assert store.names("channels") == []


def test_two_collectors_may_be_at_one_conversion(store: Store):
    stray = unreferenced(store)
    path = mark(store, stray.key)
    now = time.time() + 0.5 * HOUR
    found = collect(store, before=time.time() + 60, now=now)
    assert [one.kind for one in found.removed] == ["conversion"]
    assert store.names("collecting") == [path.rpartition("/")[2]], "the other's mark stays"
    assert not there(store, stray)


def test_a_publish_that_took_longer_than_the_grace_time_notices(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    """Taken for dead while it uploads: it must not point a channel at what was removed."""
    monkeypatch.setattr(claiming, "_FRESH_SECONDS", 0.0)
    with claim_conversion(store, SLUG, "0" * 64) as claim:
        assert claim.renew(), "the control: alive"
        store.put_new(f"conversions/{SLUG}/{'0' * 64}/model/1/model.pt", b"12345")
        assert [one.kind for one in later(store).removed] == ["files"]
        with pytest.raises(StoreUnavailableError, match="took it for dead"):
            claim.renew()


def test_a_publish_that_renews_its_claim_meets_a_collector_at_work(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(claiming, "_FRESH_SECONDS", 0.0)
    with claim_conversion(store, SLUG, "0" * 64) as claim:
        mark(store, "0" * 64)
        with pytest.raises(StoreUnavailableError, match="got a mark of gc"):
            claim.renew()


def test_what_was_superseded_a_moment_ago_stays_for_the_grace_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    first = put(store, 1)
    put(store, 2)
    age_conversions(store, monkeypatch)
    now = time.time()
    assert collect(store, before=now - HOUR, now=now, keep=1).removed == ()
    assert there(store, first)
    assert len(later(store, keep=1).removed) == 1, "the control: a day later it goes"


def test_a_channel_of_a_kind_that_is_not_known_keeps_everything_of_its_source(store: Store):
    stray = unreferenced(store)
    store.put_new(f"channels/{SLUG}/a/b/c/0000000001.json", b"{}")
    found = later(store)
    assert found.removed == ()
    assert "a later version" in found.damaged[0]
    assert there(store, stray)


def test_an_error_with_one_thing_stops_nothing_else(store: Store, monkeypatch: pytest.MonkeyPatch):
    unreferenced(store)

    def denied(self: Store) -> None:
        raise StoreError("ListMultipartUploads denied")

    monkeypatch.setattr(type(store), "uploads", denied)
    found = later(store)
    assert [one.kind for one in found.removed] == ["conversion"]
    assert found.damaged == ("gc: ListMultipartUploads denied",)


def test_claims_and_marks_of_the_dead_are_removed(store: Store):
    store.put_new(f"publishing/{prefix_of(SLUG, '0' * 64)}dead.json", b"{}")
    mark(store, "1" * 64)
    assert [one.kind for one in later(store).removed] == ["claim", "claim"]
    assert list(store.walk("")) == [f for f in store.walk("") if f.path.startswith("probe/")]


def test_a_channel_that_can_not_be_read_keeps_everything_of_its_source(store: Store):
    stray = unreferenced(store)
    store.put_new(f"{channel_folder(SOURCE, stray.variant, 'latest')}/0000000001.json", b"{")
    found = later(store)
    assert found.removed == ()
    assert "expected JSON" in found.damaged[0]
    assert there(store, stray)


def test_temporary_files_of_killed_writers_go_when_they_are_old(tmp_path: Path):
    store = FileStore(root=tmp_path)
    put(store, 1)
    (tmp_path / "conversions" / ".tmp-dead").write_bytes(b"half")
    assert later(store, hours=0.5).removed == ()
    assert [one.kind for one in later(store).removed] == ["upload"]
    assert not (tmp_path / "conversions" / ".tmp-dead").exists()


def test_unfinished_uploads_go_when_they_are_old(
    swift_server: S3Server, aws_env: Callable[[S3Server], S3Server]
):
    server = aws_env(swift_server)
    store = S3Store.at(f"s3://{server.bucket}/{uuid.uuid4().hex}")
    begin_upload(server, store, f"conversions/{SLUG}/{'0' * 64}/model/1/model.pt")
    assert later(store, hours=0.5).removed == ()
    assert [one.kind for one in later(store).removed] == ["upload"]
    assert list(store.uploads()) == []


def old_and_unreferenced(store: FileStore, options: dict[str, str]) -> Manifest:
    plain = example_manifest(files=(), options=options)
    manifest = dataclasses.replace(plain, key=Identity.of(plain).key)
    path = f"{conversion_folder(SOURCE, manifest.key)}/manifest.json"
    store.put_new(path, manifest.to_bytes())
    then = time.time() - 86400
    os.utime(store.root / path, (then, then))
    return manifest


def test_publishers_and_collectors_at_full_speed_never_leave_a_channel_without_its_conversion(
    tmp_path: Path,
):
    """Two collectors take what nobody claims while publishers point channels to the very same."""
    store = FileStore(root=tmp_path / "store")
    errors: list[BaseException] = []
    collected: list[str] = []
    stop = threading.Event()

    def collecting() -> None:
        while not stop.is_set():
            now = time.time()
            collected.extend(one.path for one in collect(store, before=now - HOUR, now=now).removed)

    def publishing(name: str) -> None:
        for number in range(40):
            manifest = old_and_unreferenced(store, {"n": f"{name} {number}"})
            time.sleep(random.random() / 20)
            try:
                point_channel(store, manifest, channel=name)
            except StoreUnavailableError:
                continue  # collected, or being collected: said so, and nothing points to it
            except BaseException as error:
                errors.append(error)

    collectors = [threading.Thread(target=collecting) for _ in range(2)]
    publishers = [threading.Thread(target=publishing, args=(name,)) for name in ("a", "b", "c")]
    for thread in (*collectors, *publishers):
        thread.start()
    for thread in publishers:
        thread.join()
    stop.set()
    for thread in collectors:
        thread.join()
    assert errors == []
    assert collected, "the collectors never met an unclaimed conversion: nothing was tested"
    for published in find_variants(store):
        for number in range(1, published.number + 1):
            key = read_entry(store, published.folder, number).key
            assert store.read(f"{conversion_folder(SOURCE, key)}/manifest.json")


# The command line


def age(root: Path, days: float) -> None:
    then = time.time() - days * 86400
    for path in root.rglob("*"):
        os.utime(path, (then, then))


def test_the_command_says_what_it_would_do_and_does_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    store = FileStore(root=tmp_path / "store")
    put(store, 1)
    stray = unreferenced(store)
    arguments = ["gc", "--store", str(tmp_path / "store")]
    age(tmp_path / "store", 6)
    assert main(arguments) == 0
    assert capsys.readouterr().out == "0 removed, 0.0 MB, 0 kept\n"
    age(tmp_path / "store", 8)
    assert main([*arguments, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"conversion  {conversion_folder(SOURCE, stray.key)}  1 files" in out
    assert "1 would be removed" in out
    assert there(store, stray)
    assert main([*arguments, "--json"]) == 0
    assert '"kind": "conversion"' in capsys.readouterr().out
    assert not there(store, stray)


def test_the_command_ends_with_1_where_a_channel_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    store = FileStore(root=tmp_path / "store")
    stray = unreferenced(store)
    store.put_new(f"{channel_folder(SOURCE, stray.variant, 'latest')}/0000000001.json", b"{")
    age(tmp_path / "store", 8)
    assert main(["gc", "--store", str(tmp_path / "store")]) == 1
    assert "all kept" in capsys.readouterr().err


def test_a_store_that_is_not_there_is_no_clean_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["gc", "--store", str(tmp_path / "typo")]) == 1
    assert "got no folder" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["7", "0d", "30m", "-1d", "59m", "d", ""])
def test_a_grace_time_that_is_none_or_too_short_is_refused(
    text: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        main(["gc", "--store", "x", f"--older-than={text}"])
    assert "expected an age from 1h" in capsys.readouterr().err


def test_a_store_may_be_a_word_or_an_option_and_not_both(tmp_path, capsys):
    from tracefleet.cli import main

    (tmp_path / "store").mkdir()
    store = str(tmp_path / "store")
    for arguments in (["gc", store], ["gc", "--store", store], ["gc", "--dry-run", store]):
        assert main(arguments) == 0
    for arguments, told in (
        (["gc"], "expected STORE, got none: STORE is missing"),
        (["gc", store, "--store", store], f"expected no further words, got {store}"),
        (["promote", store], f"expected STORE SOURCE, got {store}: SOURCE is missing"),
        (["promote", store, "--to", "latest", "org/name"], "words stand together"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert told in capsys.readouterr().err


def report(store: Store, run: str, of: Manifest | None = None) -> str:
    """Write a run's report, and if it made a conversion that one's attestation."""
    if of is not None:
        attest(store, of, run, {})
    store.put_over(f"reports/{run}/index.html", b"a page")
    return run


def reports_left(store: Store) -> set[str]:
    return set(store.names("reports"))


def test_old_reports_go_but_those_of_conversions_that_are_there(store: Store):
    current, lost = put(store, 0), unreferenced(store)
    kept, orphan, fleet = report(store, "a", current), report(store, "b", lost), report(store, "c")
    later(store)
    assert reports_left(store) == {kept, orphan, fleet}, "without an age all of them stay"
    now = time.time() + 24 * HOUR
    young = collect(store, before=now - HOUR, now=now, reports_before=now - 48 * HOUR)
    assert young.removed == ()
    tried = collect(store, before=now - HOUR, now=now, reports_before=now - HOUR, dry_run=True)
    assert reports_left(store) == {kept, orphan, fleet}
    done = collect(store, before=now - HOUR, now=now, reports_before=now - HOUR)
    assert done == tried
    assert [one.path for one in done.removed] == [f"reports/{orphan}", f"reports/{fleet}"]
    assert reports_left(store) == {kept}
    assert store.names("attestations"), "they are the record"


def test_reports_are_never_younger_than_what_gc_may_touch(store: Store):
    report(store, "a")
    now = time.time()
    assert collect(store, before=now - HOUR, now=now, reports_before=now + HOUR).removed == ()
    assert reports_left(store) == {"a"}


def test_the_command_line_removes_old_reports(tmp_path: Path, capsys):
    store = FileStore(root=tmp_path / "store")
    report(store, "a")
    old = time.time() - 400 * 24 * HOUR
    os.utime(tmp_path / "store" / "reports" / "a" / "index.html", (old, old))
    assert main(["gc", str(tmp_path / "store"), "--reports-older-than", "52w"]) == 0
    assert capsys.readouterr().out.startswith("report      reports/a  1 files, 6 bytes\n1 removed")
    assert reports_left(store) == set()
