"""Refusals that are remembered: records of what would be refused again, so that fleets don't try.

``refusals/<source>/<digest>.json`` says why an attempt was refused: the digest is that of all that
the refusal depends on. A record is replaced when the attempt is refused again, and counts for a
month from then on by the store's own clock. It only spares work: nobody takes its word for anything
else, one that is damaged or forged costs a conversion that is spared or repeated, and what is
published never asks for it. Written by ``flows.engine.remembering``, read by ``tasks.plan.known``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from tasks.errors import ConversionError, settle_lasting
from tasks.publish.identity import RECIPE, Identity
from tracefleet.canonical import canonical_json
from tracefleet.channel import source_slug
from tracefleet.decode import decode
from tracefleet.errors import ArtifactError, ManifestError
from tracefleet.manifest_types import Toolchain, Variant
from tracefleet.store import ReadableStore, Store, Stored

FOLDER = "refusals"
#: A record is of no use for longer: what is refused is tried once a month all the same.
MONTH_SECONDS = 30 * 86400.0
MOST_BYTES = 16 << 10
#: So many are looked at in one store: a writer can leave any number of them.
MOST_RECORDS = 20_000
_LONGEST_MESSAGE = 2000
#: How far clocks may differ.
_CLOCKS = timedelta(days=1)
_TYPES = frozenset(
    {
        "CompilationError",
        "NumericsMismatchError",
        "PaddingChangesError",
        "RequestError",
        "TiedWeightsError",
        "TraceError",
        "UnsafeCheckpointError",
        "UnsupportedCheckpointError",
    }
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Everything that a refusal depends on: a change of any part makes it another attempt.

    Attributes:
        source: Source as resolved, or as asked for where it could not be.
        revision: Revision that was asked for, where it could not be resolved; else None.
        commit: Commit that it resolved to; None: it could not be.
        task: Task; None: the checkpoint's files name none.
        backend: Backend.
        dtype: Dtype of the weights.
        batch: Rows of one traced call.
        lengths: Standard lengths; None: the checkpoint's files tell none.
        options: Options outside the variant, as in ``Identity``.
        allow_pickle: Permission to read pickled weights.
        trust_remote_code: Permission to run the checkpoint's code.
        timeout_seconds: Limit of each child.
        memory_limit_mb: Limit of each child; None: no limit.
        threads: Torch threads.
        toolchain: Versions; None: not known here, or nothing of them was asked yet.
        recipe: Version of our own semantics.
    """

    source: str
    revision: str | None
    commit: str | None
    task: str | None
    backend: str
    dtype: str
    batch: int
    lengths: tuple[int, ...] | None
    options: dict[str, str]
    allow_pickle: bool
    trust_remote_code: bool
    timeout_seconds: float
    memory_limit_mb: int | None
    threads: int
    toolchain: Toolchain | None
    recipe: int = RECIPE

    @property
    def folder(self) -> str:
        """Folder of the records of its source."""
        return f"{FOLDER}/{source_slug(self.source)}"

    @property
    def path(self) -> str:
        """Path of its record in a store."""
        digest = hashlib.sha256(canonical_json(dataclasses.asdict(self))).hexdigest()
        return f"{self.folder}/{digest}.json"

    @property
    def is_whole(self) -> bool:
        """Whether commit, task and lengths could be found out."""
        return None not in (self.commit, self.task, self.lengths)

    @property
    def key(self) -> str | None:
        """Conversion key; None: there is none yet, or only workers know it."""
        if not self.is_whole or self.toolchain is None:
            return None
        names = [field.name for field in dataclasses.fields(Identity) if field.name != "variant"]
        variant = Variant(
            task=str(self.task), backend=self.backend, dtype=self.dtype, batch=self.batch
        )
        parts = {name: getattr(self, name) for name in names}
        return Identity(variant=variant, **parts).key


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One record.

    Attributes:
        attempt: What was refused.
        error: Type of the error.
        message: Its message, in one line.
        since: When it was refused for the first time, in ISO 8601 with its offset.
    """

    attempt: Attempt
    error: str
    message: str
    since: str

    def to_bytes(self) -> bytes:
        """Return the canonical JSON."""
        return canonical_json(dataclasses.asdict(self))


def one_line(message: str) -> str:
    """Return a message as a record holds it: one line of printable characters."""
    line = " ".join(message.split())[:_LONGEST_MESSAGE].rstrip()
    for char in {*line}:
        line = line if char.isprintable() else line.replace(char, "\N{REPLACEMENT CHARACTER}")
    return line or "no message"


def parse(data: bytes, path: str, now: float) -> Refusal:
    """Return the record that a file of a store holds.

    Args:
        data: Content of the file.
        path: Its path in the store.
        now: Seconds since the epoch.

    Raises:
        ManifestError: it is none, or not one that tracefleet wrote there.
    """
    try:
        raw = json.loads(data)
        canonical = canonical_json(raw) == data
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: expected JSON, got something else") from error
    refusal = decode(Refusal, raw, where=path)
    if not canonical or refusal.attempt.path != path:
        raise ManifestError(f"{path}: expected the record of that name, got another attempt's")
    if refusal.error not in _TYPES or refusal.message != one_line(refusal.message):
        raise ManifestError(f"{path}: expected an error that is remembered, got another")
    _check_time(refusal.since, path, now)
    return refusal


def _check_time(since: str, path: str, now: float) -> None:
    latest = datetime.fromtimestamp(now, timezone.utc) + _CLOCKS  # noqa: UP017  Python 3.10
    try:
        passed = datetime.fromisoformat(since) <= latest and since == one_line(since)
    except (ValueError, TypeError):  # no time, or one without an offset
        passed = False
    if not passed:
        raise ManifestError(f"{path}: since expected a time that has passed, got another")


def list_records(store: ReadableStore, folder: str = FOLDER) -> Iterator[Stored]:
    """Yield the files of records; more of them than there should be are not looked at."""
    yield from itertools.islice(store.walk(folder), MOST_RECORDS)


def is_aged(record: Stored, now: float) -> bool:
    """Whether a record counts no more."""
    return record.modified < now - MONTH_SECONDS


def read(store: ReadableStore, record: Stored, now: float) -> Refusal:
    """Return a record that was listed.

    Raises:
        FileNotFoundError: it was removed meanwhile.
        ManifestError: it is too large, or not one that tracefleet wrote there.
    """
    # What has no size may be a pipe, which would be waited for.
    if not 0 < record.size <= MOST_BYTES:
        raise ManifestError(f"{record.path}: expected 1 to {MOST_BYTES} bytes, got {record.size}")
    return parse(store.read(record.path), record.path, now)


def remember(
    store: Store, attempt: Attempt, error: str, message: str, *, now: float
) -> Refusal | None:
    """Write the record of an attempt that was refused; what can't be written costs a repeat.

    Args:
        store: Store that it was to be published to.
        attempt: What was refused.
        error: Type of the error.
        message: Its message.
        now: Seconds since the epoch.

    Returns:
        The record; None: it is of a type that is not remembered, or could not be written.
    """
    if error not in _TYPES:
        return None
    told = datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="seconds")  # noqa: UP017
    try:
        since = _first_time(store, attempt, error, now) or told
        line = one_line(message)
        refusal = Refusal(attempt=attempt, error=error, message=line, since=since)
        store.put_over(attempt.path, refusal.to_bytes())
    except ArtifactError:
        logger.warning("the refusal could not be remembered", exc_info=True)
        return None
    return refusal


def _first_time(store: Store, attempt: Attempt, error: str, now: float) -> str | None:
    """Return since when an attempt was refused with this type of error before."""
    listed = (one for one in list_records(store, attempt.folder) if one.path == attempt.path)
    record = next(listed, None)
    try:
        before = None if record is None else read(store, record, now)
    except (FileNotFoundError, ManifestError):
        return None  # it is replaced
    return before.since if before is not None and before.error == error else None


def is_remembered(error: ConversionError) -> bool:
    """Whether an error says that the very same attempt would be refused again."""
    settle_lasting(error)
    return error.lasting and type(error).__name__ in _TYPES
