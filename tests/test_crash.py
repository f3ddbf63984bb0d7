"""Publishers that are killed: at any moment, at every step; and readers that watch all the while.

``make test`` kills a few; ``make soak`` sets TRACEFLEET_SOAK, which kills hundreds.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tasks.publish.conversion import publish
from tasks.publish.gc import collect
from tests.support import crash_child
from tests.support.crash_child import BUNDLE_BYTES, NAME, Death
from tests.support.store_support import Watcher, check_never_half, conversion, look, normalised
from tracefleet.published import select
from tracefleet.store import Store
from tracefleet.store.folder import FileStore

SOAK = int(os.environ.get("TRACEFLEET_SOAK", "0"))
MOMENTS = SOAK or 12
#: Every nth step is a place to die; all of them in the soak.
EVERY = 1 if SOAK else 5
KILLED = -signal.SIGKILL

pytestmark = [
    pytest.mark.timeout(3600 if SOAK else 600),
    pytest.mark.usefixtures("small_parts"),
]
ON_BOTH = pytest.mark.parametrize("store_url", ["file", "swift"], indirect=True)


@dataclass(kw_only=True)
class Trial:
    """One store through many deaths; the nth publishes the nth conversion."""

    url: str
    work: Path
    store: Store
    context: ForkServerContext
    killed: int = 0
    number: int = 0

    def run(self, death: Death | None = None, *, seconds: float | None = None) -> None:
        """Publish the next conversion, die on the way, look, publish it again."""
        self.number += 1
        manifest, _ = conversion(self.work / "mine", self.number, size=BUNDLE_BYTES)
        process = crash_child.start(self.context, self.url, self.work / "its", self.number, death)
        if seconds is not None:
            time.sleep(seconds)
            process.kill()
        process.join()
        self.killed += process.exitcode == KILLED
        assert process.exitcode in (0, KILLED)
        check_never_half(self.store, manifest)
        again = crash_child.start(self.context, self.url, self.work / "its", self.number)
        again.join()
        assert again.exitcode == 0, "the rerun failed"
        assert check_never_half(self.store, manifest), "the rerun did not complete it"
        assert look(self.store).key == manifest.key
        assert select(self.store, NAME).entry.key == manifest.key, "its name was left behind"

    def check_end(self, undisturbed: Path) -> None:
        """The store has to be what it would be without any death."""
        calm = FileStore(root=undisturbed)
        for number in range(1, self.number + 1):
            manifest, files = conversion(self.work / "calm", number, size=BUNDLE_BYTES)
            publish(calm, manifest, files, channel="latest", name=NAME)
        assert normalised(self.store) == normalised(calm)
        now = time.time() + 7 * 86400
        collect(self.store, before=now - 86400, now=now)
        roots = {file.path.split("/")[0] for file in self.store.walk("")}
        assert roots <= {"conversions", "channels", "probe"}, "a death left something for good"
        assert normalised(self.store) == normalised(calm), "gc took what is referenced"
        assert list(self.store.uploads()) == []


@pytest.fixture(scope="module")
def context() -> Iterator[ForkServerContext]:
    with crash_child.server() as context:
        yield context


@pytest.fixture
def trial(store_url: str, tmp_path: Path, context: ForkServerContext) -> Trial:
    store = crash_child.opened(store_url)
    return Trial(url=store_url, work=tmp_path / "work", store=store, context=context)


def how_long(trial: Trial) -> float:
    """Measure an undisturbed publish, start of the process included."""
    trial.run()  # the first one starts the fork server
    started = time.monotonic()
    trial.number += 1
    process = crash_child.start(trial.context, trial.url, trial.work / "its", trial.number)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - started


@ON_BOTH
def test_death_at_any_moment_is_never_seen_and_a_rerun_completes(trial: Trial, tmp_path: Path):
    seed = random.SystemRandom().randrange(1 << 32)
    moments = random.Random(seed)
    with Watcher(crash_child.opened(trial.url)) as watcher:
        whole = how_long(trial)
        trials = 0
        while trial.killed < MOMENTS and (trials := trials + 1) <= 6 * MOMENTS:
            trial.run(seconds=moments.uniform(0.0, 1.1 * whole))
            if trials % 20 == 0:
                print(
                    f"{trial.killed} of {trials} killed, {len(watcher.trouble)} troubles",
                    flush=True,
                )
    watcher.check()
    print(f"seed {seed}: {trial.killed} of {trials} killed within {whole:.2f} s")
    assert trial.killed == MOMENTS, f"seed {seed}: most came to their end"
    trial.check_end(tmp_path / "undisturbed")


@ON_BOTH
def test_death_at_every_step_is_never_seen_and_a_rerun_completes(
    trial: Trial, tmp_path: Path, store_url: str
):
    count = (Path(store_url) if not store_url.startswith("s3://") else tmp_path) / "count"
    count.parent.mkdir(parents=True, exist_ok=True)
    trial.run()  # later ones find the folders there
    trial.run(Death(step=-1, after=False, count=count))
    steps = int(count.read_text())
    count.unlink()
    assert steps >= 20, "a publish has more steps than that: nothing was watched"
    deaths = [
        Death(step=step, after=after, count=count)
        for step in range(0, steps, EVERY)
        for after in ([False, True] if store_url.startswith("s3://") else [False])
    ]
    with Watcher(crash_child.opened(trial.url)) as watcher:
        for death in deaths:
            trial.run(death)
    watcher.check()
    print(f"{trial.killed} deaths at {steps} steps")
    assert trial.killed == len(deaths)
    count.unlink(missing_ok=True)
    trial.check_end(tmp_path / "undisturbed")


@ON_BOTH
def test_the_watcher_sees_a_conversion_that_is_half_there(store_url: str, tmp_path: Path):
    """The negative control: a publisher that points the channel before the files are there."""
    store = crash_child.opened(store_url)
    manifest, files = conversion(tmp_path / "work", 1)
    publish(store, manifest, files, channel="latest")
    with Watcher(store) as watcher:
        bundle = next(file.path for file in store.walk("") if file.path.endswith("model.pt"))
        whole = store.read(bundle)
        time.sleep(0.3)
        store.put_over(bundle, whole[:-1])
        time.sleep(0.5)
    with pytest.raises(AssertionError):
        watcher.check()
