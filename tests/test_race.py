"""Sixteen processes at once: one manifest for one key, and no pointer update that is lost."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from tasks.publish.conversion import publish
from tests.support import crash_child
from tests.support.reader_support import SOURCE, example_manifest
from tests.support.store_support import Watcher, conversion, normalised
from tracefleet.channel import channel_folder, read_entry, slug_folder
from tracefleet.store import Store
from tracefleet.store.folder import FileStore

RACERS = 16
ROUNDS = int(os.environ.get("TRACEFLEET_SOAK", "0")) // 20 or 1
#: Two parts, so that completions race too.
BYTES = 6_000_000


def publish_both(
    url: str, work: Path, common: int, own: int, barrier: Barrier, environment: dict[str, str]
) -> None:
    """Publish the conversion that all publish, then one's own, into the same channel."""
    os.environ.clear()
    os.environ.update(environment)
    store = crash_child.opened(url)
    same = conversion(work / f"{own}-common", common, size=BYTES)
    mine = conversion(work / f"{own}-own", own)
    barrier.wait(120)
    publish(store, *same, channel="latest", name=crash_child.NAME)
    barrier.wait(120)
    publish(store, *mine, channel="latest", name=crash_child.NAME)


def run(context: ForkServerContext, url: str, work: Path, first: int) -> None:
    barrier = context.Barrier(RACERS)
    processes = [
        context.Process(
            target=publish_both,
            args=(url, work, first, first + 1 + index, barrier, dict(os.environ)),
        )
        for index in range(RACERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * RACERS


def log_of(store: Store, folder: str) -> list[tuple[str, int | None]]:
    """Key and previous number of every entry of the channel, in order; refuses gaps."""
    newest = len(store.names(folder))
    assert store.names(folder) == [f"{number:010d}.json" for number in range(1, newest + 1)]
    entries = [read_entry(store, folder, number) for number in range(1, newest + 1)]
    return [(entry.key, entry.previous) for entry in entries]


@pytest.fixture(scope="module")
def context() -> Iterator[ForkServerContext]:
    with crash_child.server() as context:
        yield context


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("store_url", ["file", "swift", "moto"], indirect=True)
def test_of_one_key_there_is_one_manifest_and_no_update_of_the_channel_is_lost(
    store_url: str, tmp_path: Path, context: ForkServerContext
):
    store = crash_child.opened(store_url)
    calm = FileStore(root=tmp_path / "calm")
    groups: list[set[str]] = []  # in each round first the common one, then everybody's own
    for round_ in range(ROUNDS):
        first = 100 * round_
        with Watcher(crash_child.opened(store_url)) as watcher:
            run(context, store_url, tmp_path / "its", first)
        watcher.check()
        common = conversion(tmp_path / "mine", first, size=BYTES)
        publish(calm, *common, channel="latest", name=crash_child.NAME)
        own = [conversion(tmp_path / "mine", first + 1 + index) for index in range(RACERS)]
        groups += [{common[0].key}, {manifest.key for manifest, _ in own}]
    variant = example_manifest().variant
    log = log_of(store, channel_folder(SOURCE, variant, "latest"))
    assert len(log) == ROUNDS * (RACERS + 1), "an update was lost, or one was made twice"
    named = log_of(store, slug_folder(crash_child.NAME, variant.label, "latest"))
    assert {key for key, _ in named} == {key for key, _ in log}, "a name was not moved"
    assert [previous for _, previous in log] == [None, *range(1, len(log))]
    keys = iter(key for key, _ in log)
    for group in groups:
        assert set(itertools.islice(keys, len(group))) == group
    ours = normalised(store)
    common_files = {p: d for p, d in normalised(calm).items() if p.startswith("conversions/")}
    assert common_files.items() <= ours.items()
    assert len([path for path in ours if path.endswith("manifest.json")]) == len(log)
    assert list(store.uploads()) == []
    assert list(store.walk("publishing")) == []
