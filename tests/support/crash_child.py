"""A publisher that is killed: the child's side of ``tests.test_crash``.

It is forked from a server process that has imported everything and started no thread, so that two
hundred deaths cost minutes. Where it dies is either a moment (it is killed from outside) or a step:
the nth thing it does to the outside world, before or after which it kills itself.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from tasks.publish.conversion import publish
from tests.support.s3_servers import share_service_data
from tests.support.store_support import conversion
from tracefleet.store import Store, s3_client
from tracefleet.store.folder import FileStore
from tracefleet.store.s3 import S3Store

BUNDLE_BYTES = 11_000_000  # three parts of 5 MiB
#: Name that it publishes under: the last of its steps is the name's channel.
NAME = "crash-test"
#: What a publisher on a file system does to it, by the names of Python's audit events.
_FILE_EVENTS = {"open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


@dataclass(frozen=True, kw_only=True)
class Death:
    """At which step a publisher kills itself.

    Attributes:
        step: before the nth step, counted from 0.
        after: after it instead: the world has changed, the publisher does not know.
        count: where to write how many steps there were, if it does not come to its death.
    """

    step: int
    after: bool
    count: Path


@contextmanager
def server() -> Iterator[ForkServerContext]:
    """Yield what starts children in milliseconds.

    A process has one fork server, which imports what its first user asked for. With that of
    conversions each publisher would import boto3 and s3fs itself, and with this one each child of
    a conversion torch: so it is ended before and after.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["s3fs", "aiobotocore.session", "tests.support.crash_server"])
    _end_fork_server()
    yield context
    _end_fork_server()


def prepare() -> None:
    """Import and read once, in the fork server, what each publisher needs."""
    import boto3

    share_service_data()
    boto3.client("s3", region_name="us-east-1")  # nothing is sent


def _end_fork_server() -> None:
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # there is no public way


def start(
    context: ForkServerContext, url: str, work: Path, number: int, death: Death | None = None
) -> ForkServerProcess:
    """Start a publisher of the nth conversion."""
    process = context.Process(target=_publish, args=(url, work, number, death, dict(os.environ)))
    process.start()
    return process


def opened(url: str) -> Store:
    """Return the store at ``url``, with parts small enough for three of them."""
    s3_client.PART_BYTES = 5 << 20
    return S3Store.at(url) if url.startswith("s3://") else FileStore(root=Path(url))


def _publish(
    url: str, work: Path, number: int, death: Death | None, environment: dict[str, str]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    manifest, files = conversion(work, number, size=BUNDLE_BYTES)
    store = opened(url)
    steps = _Steps(death) if death else None
    if steps:
        steps.watch(store)
    publish(store, manifest, files, channel="latest", name=NAME)
    if steps:
        steps.report()


class _Steps:
    """Counts what is done to the outside world, and dies at one of them."""

    def __init__(self, death: Death) -> None:
        self._death = death
        self._begun = self._ended = 0
        self._over = False
        self._lock = threading.Lock()  # parts go in parallel

    def watch(self, store: Store) -> None:
        if isinstance(store, S3Store):
            for client in (store.root.connection.s3, store.root.connection.create_only):
                client.meta.events.register("before-send.s3", self._before)
                client.meta.events.register("response-received.s3", self._after)
        else:
            sys.addaudithook(self._audit)

    def report(self) -> None:
        self._over = True
        self._death.count.write_text(str(self._begun))

    def _before(self, **_: object) -> None:
        with self._lock:
            self._die(self._begun, after=False)
            self._begun += 1

    def _after(self, **_: object) -> None:
        with self._lock:
            self._die(self._ended, after=True)
            self._ended += 1

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        """Events come before the deed; after it is before the next."""
        inside = event in _FILE_EVENTS and str(arguments[0]).startswith(
            str(self._death.count.parent)
        )
        if inside and not self._over:
            self._before()

    def _die(self, step: int, *, after: bool) -> None:
        if (step, after) == (self._death.step, self._death.after):
            os.kill(os.getpid(), signal.SIGKILL)
