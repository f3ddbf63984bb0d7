"""Collect what nothing references: conversions, files of crashed publishes, unfinished uploads.

It keeps what a channel names, what a running publish claims (``tasks.publish.claim``) and what is
younger than the grace time. It never touches channels and attestations: they are the record of what
was published; reports go only where an age is given (``tasks.publish.old_reports``). Of remembered
refusals it removes those that count no more. Called by
``tracefleet gc``.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from tasks.publish.claim import COLLECTING, PUBLISHING, mark_conversion, prefix_of
from tasks.publish.old_reports import find_old_reports
from tasks.publish.refusals import is_aged, list_records
from tracefleet.channel import read_entry, source_slug
from tracefleet.channel_numbers import parse_entry_path
from tracefleet.errors import ArtifactError, ManifestError
from tracefleet.manifest import CANDIDATE, MANIFEST
from tracefleet.names import is_name
from tracefleet.store import Store, Stored, Upload

#: A mark that is older was left by a collector that was killed: deleting takes seconds.
ABANDONED_SECONDS = 3600.0
_READERS = 16
#: Parts of a file's path in a conversion's folder: ``conversions/<slug>/<key>/<file>``.
_PARTS = 4

#: Files of a channel's entries by their numbers, for each channel's folder.
_Channels = dict[str, dict[int, Stored]]


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """One thing that was collected, or would be.

    Attributes:
        kind: Kind: an unreferenced ``conversion``, the ``files`` of a publish that crashed before
            its manifest, an unfinished ``upload``, an abandoned ``claim``, an aged ``refusal``, an
            old ``report``.
        path: Path relative to the store's root.
        files: Number of files.
        size: Their bytes; 0 for uploads, whose size no server reports.
    """

    kind: Literal["conversion", "files", "upload", "claim", "refusal", "report"]
    path: str
    files: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Result of one run.

    Attributes:
        removed: Things that were removed, or with ``dry_run`` would be.
        kept: Conversions that came into use while they were collected, each with the reason.
        damaged: Things that could not be judged or removed and were kept, each with the reason.
    """

    removed: tuple[Garbage, ...]
    kept: tuple[str, ...]
    damaged: tuple[str, ...]


def collect(
    store: Store,
    *,
    before: float,
    now: float,
    keep: int | None = None,
    reports_before: float | None = None,
    dry_run: bool = False,
) -> Collection:
    """Remove what nothing references and nobody has modified since ``before``.

    An error about one thing is part of the result and stops nothing else.

    Args:
        store: Store to clean.
        before: End of the grace time, in seconds since the epoch: what is newer stays.
        now: Seconds since the epoch.
        keep: Number of a channel's newest entries that keep their conversions; None: all entries.
        reports_before: Seconds since the epoch: older reports go, but for those of conversions that
            are there; None: all reports stay.
        dry_run: Whether to report only what would be removed.
    """
    run = _Run(store=store, before=before, now=now, keep=keep, dry_run=dry_run)
    steps = (run.collect_conversions, run.collect_uploads, run.collect_claims)
    for step in (*steps, run.collect_refusals):
        with run.note_errors("gc"):
            step()
    if reports_before is not None:
        with run.note_errors("reports"):
            run.collect_reports(min(reports_before, before))
    return Collection(removed=tuple(run.removed), kept=tuple(run.kept), damaged=tuple(run.damaged))


@dataclass(kw_only=True)
class _Run:
    """State of one run.

    Attributes:
        entries: Slugs of sources and keys by the channel and number of their entries, which never
            change: each entry is read once.
        named: Channels of names, as they were when the run began.
    """

    store: Store
    before: float
    now: float
    keep: int | None
    dry_run: bool
    removed: list[Garbage] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    entries: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict)
    named: _Channels | None = None

    def collect_conversions(self) -> None:
        """Remove old conversions that no channel names, source by source."""
        # A store lists paths in their order: only one source's files are in memory at a time.
        for slug, files in itertools.groupby(self._walk_conversions(), key=_slug_of):
            by_key: dict[str, list[Stored]] = defaultdict(list)
            for file in files:
                by_key[file.path.split("/")[2]].append(file)
            old = {key: found for key, found in by_key.items() if self._is_old(found)}
            if old:
                self._collect_unreferenced(slug, old)

    def _walk_conversions(self) -> Iterator[Stored]:
        for file in self.store.walk("conversions"):
            if len(file.path.split("/", _PARTS - 1)) == _PARTS:
                yield file

    @contextmanager
    def note_errors(self, what: str) -> Iterator[None]:
        """Note an error and go on with the next thing."""
        try:
            yield
        except ArtifactError as error:
            self.damaged.append(f"{what}: {error}")

    def _collect_unreferenced(self, slug: str, old: dict[str, list[Stored]]) -> None:
        with self.note_errors(f"conversions/{slug}: all kept"):
            if self.named is None:
                self.named = self._list_named()
            referenced = self._find_referenced(slug, self.named)
            for key, files in old.items():
                if key not in referenced:
                    with self.note_errors(f"conversions/{slug}/{key}"):
                        self._collect_one(slug, key, files)

    def _collect_one(self, slug: str, key: str, files: list[Stored]) -> None:
        folder = f"conversions/{slug}/{key}"
        paths = [file.path for file in files]
        manifests = {f"{folder}/{MANIFEST}", f"{folder}/{CANDIDATE}"}.intersection(paths)
        if not self.dry_run:
            with mark_conversion(self.store, slug, key):
                reason = self._find_use(slug, key)
                if reason:
                    self.kept.append(f"{folder}: {reason}")
                    return
                # Claims first: a publisher that is late and not dead must notice. Then the
                # manifest: without it there is no conversion, whatever happens to the files.
                self.store.remove(claim.path for claim in self._find_claims(slug, key))
                self.store.remove(sorted(manifests))
                self.store.remove(path for path in paths if path not in manifests)
        size = sum(file.size for file in files)
        kind: Literal["conversion", "files"] = "conversion" if manifests else "files"
        self.removed.append(Garbage(kind=kind, path=folder, files=len(files), size=size))

    def _find_use(self, slug: str, key: str) -> str:
        """Check again, now that publishers can see the mark; return why it must stay, or ""."""
        if any(claim.modified >= self.before for claim in self._find_claims(slug, key)):
            return "a publish claims it"
        if not self._is_old(self.store.walk(f"conversions/{slug}/{key}")):
            return "it was written to meanwhile"
        used = key in self._find_referenced(slug, self._list_named())
        return "a channel names it by now" if used else ""

    def _find_claims(self, slug: str, key: str) -> list[Stored]:
        start = f"{PUBLISHING}/{prefix_of(slug, key)}"
        return [claim for claim in self.store.walk(PUBLISHING) if claim.path.startswith(start)]

    def collect_uploads(self) -> None:
        """Abort old uploads that nobody finished."""
        for upload in list(self.store.uploads()):
            if upload.started < self.before:
                with self.note_errors(upload.path):
                    self._abort(upload)

    def _abort(self, upload: Upload) -> None:
        if not self.dry_run:
            self.store.abort(upload)
        self.removed.append(Garbage(kind="upload", path=upload.path, files=1, size=0))

    def collect_claims(self) -> None:
        """Remove claims of publishes that were killed, and marks of collectors that were."""
        old = [claim for claim in self.store.walk(PUBLISHING) if claim.modified < self.before]
        old += [mark for mark in self.store.walk(COLLECTING) if self._is_abandoned(mark)]
        self._remove_files("claim", old)

    def collect_refusals(self) -> None:
        """Remove records of refusals that are too old to count, whatever the grace time."""
        listed = list_records(self.store)
        self._remove_files("refusal", [one for one in listed if is_aged(one, self.now)])

    def _remove_files(self, kind: Literal["claim", "refusal"], files: list[Stored]) -> None:
        if not self.dry_run:
            self.store.remove(file.path for file in files)
        for file in files:
            self.removed.append(Garbage(kind=kind, path=file.path, files=1, size=file.size))

    def collect_reports(self, before: float) -> None:
        """Remove old reports, but for those of conversions that are there."""
        for folder, files in find_old_reports(self.store, before):
            if not self.dry_run:
                self.store.remove(file.path for file in files)
            size = sum(file.size for file in files)
            self.removed.append(Garbage(kind="report", path=folder, files=len(files), size=size))

    def _find_referenced(self, slug: str, named: _Channels) -> set[str]:
        """Return the keys whose conversions the channels of a source and of names keep.

        Raises:
            ManifestError: an entry is malformed, or no entry: what it names is not known.
        """
        kept = []
        for folder, numbers in {**self._list_channels(slug), **named}.items():
            for number in numbers:
                if self._keeps(numbers, number):
                    kept.append((folder, number))
        missing = [entry for entry in kept if entry not in self.entries]
        with ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(self._read_reference, missing)
            self.entries.update(zip(missing, found, strict=True))
        references = (self.entries[entry] for entry in kept)
        return {key for source, key in references if source == slug}

    def _read_reference(self, where: tuple[str, int]) -> tuple[str, str]:
        """Return the slug of the source, and the key, that an entry names."""
        entry = read_entry(self.store, *where)
        own = where[0].split("/")[1]
        return (own if entry.source is None else source_slug(entry.source)), entry.key

    def _list_named(self) -> _Channels:
        """Return the channels of names, which may point to a conversion of any source."""
        names = [slug for slug in self.store.names("channels") if is_name(slug)]
        found: _Channels = {}
        with ThreadPoolExecutor(_READERS) as pool:
            for channels in pool.map(self._list_channels, names):
                found |= channels
        return found

    def _list_channels(self, slug: str) -> _Channels:
        channels: _Channels = defaultdict(dict)
        for file in self.store.walk(f"channels/{slug}"):
            found = parse_entry_path(file.path)
            if found is not None:
                folder, number = found
                channels[folder][number] = file
            elif file.path.endswith(".json"):
                raise ManifestError(
                    f"{file.path}: expected channels/<source>/<variant>/<channel>/<number>.json, "
                    "got something that a later version may have written. Upgrade tracefleet."
                )
        return channels

    def _keeps(self, numbers: dict[int, Stored], number: int) -> bool:
        """Return whether an entry is among the newest, or was within the grace time."""
        if self.keep is None or number > max(numbers) - self.keep:
            return True
        successor = numbers.get(number + 1)
        return successor is not None and successor.modified >= self.before

    def _is_old(self, files: Iterable[Stored]) -> bool:
        return all(file.modified < self.before for file in files)

    def _is_abandoned(self, mark: Stored) -> bool:
        return mark.modified < self.now - ABANDONED_SECONDS


def _slug_of(file: Stored) -> str:
    return file.path.split("/")[1]
