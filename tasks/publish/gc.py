"""Collect what nothing references: conversions, files of crashed publishes, unfinished uploads.

What a channel names stays, and so does what a running publish claims (``tasks.publish.claim``) or
what is younger than the grace time. Channels, attestations and reports are never touched: they are
the trail. Called by ``python -m flows gc``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from tasks.publish.claim import COLLECTING, PUBLISHING, marked, prefix_of
from tracefleet.channel import parse_entry_path, read_entry
from tracefleet.errors import ArtifactError, ManifestError
from tracefleet.manifest import CANDIDATE, MANIFEST
from tracefleet.store import Store, Stored, Upload

#: A mark that is older was left by a collector that was killed: deleting takes seconds.
ABANDONED_SECONDS = 3600.0
_READERS = 16


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """One thing that was, or would be, collected.

    Attributes:
        kind: an unreferenced ``conversion``, the ``files`` of a publish that crashed before its
            manifest, an unfinished ``upload`` or an abandoned ``claim``.
        path: relative to the store's root.
        files: how many.
        size: their bytes; 0 for uploads, whose size no server tells.
    """

    kind: Literal["conversion", "files", "upload", "claim"]
    path: str
    files: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What one run found.

    Attributes:
        removed: what was removed, or with ``dry_run`` would be.
        kept: conversions that turned out to be wanted after all, with why.
        damaged: what could not be judged or removed, with why; it was kept.
    """

    removed: tuple[Garbage, ...]
    kept: tuple[str, ...]
    damaged: tuple[str, ...]


def collect(
    store: Store, *, before: float, now: float, keep: int | None = None, dry_run: bool = False
) -> Collection:
    """Remove what nothing references and nobody has touched since ``before``.

    Args:
        store: what to clean.
        before: seconds since the epoch; what was modified later stays (the grace time).
        now: seconds since the epoch.
        keep: how many of a channel's newest numbers hold their conversion; None: all of them.
        dry_run: only say what would be removed.

    What goes wrong with one thing is in the result and stops nothing else.
    """
    run = _Run(store=store, before=before, now=now, keep=keep, dry_run=dry_run)
    for step in (run.collect_conversions, run.collect_uploads, run.collect_claims):
        with run.reporting("gc"):
            step()
    return Collection(removed=tuple(run.removed), kept=tuple(run.kept), damaged=tuple(run.damaged))


@dataclass(kw_only=True)
class _Run:
    """One run; entries of channels never change, so each is read once."""

    store: Store
    before: float
    now: float
    keep: int | None
    dry_run: bool
    removed: list[Garbage] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    entries: dict[tuple[str, int], str] = field(default_factory=dict)

    def collect_conversions(self) -> None:
        conversions = ((f.path.split("/", 3), f) for f in self.store.walk("conversions"))
        known = ((parts[1], parts[2], file) for parts, file in conversions if len(parts) == 4)
        for slug, of_slug in itertools.groupby(known, key=lambda one: one[0]):
            old = [
                (key, files)
                for key, of_key in itertools.groupby(of_slug, key=lambda one: one[1])
                if self._is_old(files := [file for _, _, file in of_key])
            ]
            if old:
                self._collect_old(slug, old)

    @contextmanager
    def reporting(self, what: str) -> Iterator[None]:
        """Note an error and go on with the next thing."""
        try:
            yield
        except ArtifactError as error:
            self.damaged.append(f"{what}: {error}")

    def _collect_old(self, slug: str, old: list[tuple[str, list[Stored]]]) -> None:
        with self.reporting(f"conversions/{slug}: all kept"):
            referenced = self._referenced(slug)
            for key, files in old:
                if key not in referenced:
                    with self.reporting(f"conversions/{slug}/{key}"):
                        self._collect_one(slug, key, files)

    def _collect_one(self, slug: str, key: str, files: list[Stored]) -> None:
        folder = f"conversions/{slug}/{key}"
        paths = [file.path for file in files]
        manifests = {f"{folder}/{name}" for name in (MANIFEST, CANDIDATE)} & set(paths)
        if not self.dry_run:
            with marked(self.store, slug, key):
                if why := self._wanted(slug, key):
                    self.kept.append(f"{folder}: {why}")
                    return
                # A publisher that was taken for dead and is not has to notice; then the manifest:
                # without it it is no conversion any more, whatever happens next.
                self.store.remove(claim.path for claim in self._claims(slug, key))
                self.store.remove(sorted(manifests))
                self.store.remove(path for path in paths if path not in manifests)
        self.removed.append(
            Garbage(
                kind="conversion" if manifests else "files",
                path=folder,
                files=len(files),
                size=sum(file.size for file in files),
            )
        )

    def _wanted(self, slug: str, key: str) -> str:
        """Look again, now that publishers can see the mark; return why it must stay, if so."""
        if any(claim.modified >= self.before for claim in self._claims(slug, key)):
            return "a publish claims it"
        if not self._is_old(self.store.walk(f"conversions/{slug}/{key}")):
            return "it was written to meanwhile"
        return "a channel names it by now" if key in self._referenced(slug) else ""

    def _claims(self, slug: str, key: str) -> list[Stored]:
        start = f"{PUBLISHING}/{prefix_of(slug, key)}"
        return [claim for claim in self.store.walk(PUBLISHING) if claim.path.startswith(start)]

    def collect_uploads(self) -> None:
        for upload in list(self.store.uploads()):
            if upload.started < self.before:
                with self.reporting(upload.path):
                    self._drop(upload)

    def _drop(self, upload: Upload) -> None:
        if not self.dry_run:
            self.store.abort(upload)
        self.removed.append(Garbage(kind="upload", path=upload.path, files=1, size=0))

    def collect_claims(self) -> None:
        """Remove claims of publishes that were killed, and marks of collectors that were."""
        old = [claim for claim in self.store.walk(PUBLISHING) if claim.modified < self.before]
        old += [mark for mark in self.store.walk(COLLECTING) if self._is_abandoned(mark)]
        if not self.dry_run:
            self.store.remove(claim.path for claim in old)
        self.removed += [
            Garbage(kind="claim", path=claim.path, files=1, size=claim.size) for claim in old
        ]

    def _referenced(self, slug: str) -> set[str]:
        """Return the keys that the channels of a source hold now.

        Raises:
            ManifestError: an entry is malformed or of an unknown kind: what it names is not known.
        """
        channels: dict[str, dict[int, Stored]] = {}
        for file in self.store.walk(f"channels/{slug}"):
            if (found := parse_entry_path(file.path)) is not None:
                channels.setdefault(found[0], {})[found[1]] = file
            elif file.path.endswith(".json"):
                raise ManifestError(
                    f"{file.path}: expected channels/<source>/<variant>/<channel>/<number>.json, "
                    "got something that a later version may have written. Upgrade tracefleet."
                )
        wanted = [
            (folder, number)
            for folder, numbers in channels.items()
            for number in numbers
            if self._holds(numbers, number)
        ]
        missing = [one for one in wanted if one not in self.entries]
        with ThreadPoolExecutor(_READERS) as pool:
            read = pool.map(lambda one: read_entry(self.store, *one).key, missing)
            self.entries.update(zip(missing, read, strict=True))
        return {self.entries[one] for one in wanted}

    def _holds(self, numbers: dict[int, Stored], number: int) -> bool:
        """Whether an entry holds its conversion: a recent one, or superseded within the grace."""
        if self.keep is None or number > max(numbers) - self.keep:
            return True
        successor = numbers.get(number + 1)
        return successor is not None and successor.modified >= self.before

    def _is_old(self, files: Iterable[Stored]) -> bool:
        return all(file.modified < self.before for file in files)

    def _is_abandoned(self, mark: Stored) -> bool:
        return mark.modified < self.now - ABANDONED_SECONDS
