"""Find what a plan's requests were refused for before; used by ``tasks.plan.fleet``.

A record spares an attempt that would be refused again (``tasks.publish.refusals``). It is looked
for where there is work to do alone: what is fresh costs nothing, and a conversion that is published
makes every record about it meaningless.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from functools import cached_property

from tasks.errors import ConversionError
from tasks.plan.freshness import describe_unchecked
from tasks.plan.row import PlanRow
from tasks.publish.find import find_published
from tasks.publish.refusals import Attempt, Refusal, is_aged, list_records, one_line, read
from tracefleet.channel import conversion_folder
from tracefleet.errors import ArtifactError, StoreUnavailableError
from tracefleet.manifest import CANDIDATE
from tracefleet.store import ReadableStore, Stored

logger = logging.getLogger(__name__)
#: Records of one source that are read where the toolchain is not known here, the newest first.
_MOST_READ = 50
_NOTE = 400


@dataclass(frozen=True, kw_only=True)
class Known:
    """A refusal that an attempt would meet again.

    Attributes:
        refusal: The record.
        tried: When it was refused last, in seconds since the epoch by the store's clock.
    """

    refusal: Refusal
    tried: float


@dataclass(frozen=True, kw_only=True)
class KnownRefusals:
    """What is remembered in one store.

    Attributes:
        store: The store.
        now: Seconds since the epoch.
    """

    store: ReadableStore
    now: float

    def spare(self, row: PlanRow) -> PlanRow:
        """Return a row of the plan, ``refused`` if the very same was refused before.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        if row.attempt is None or row.state == "fresh":
            return row
        try:
            known = self.find(row.attempt)
        except StoreUnavailableError:
            raise
        except (ArtifactError, ConversionError) as error:
            note = f"a record of a refusal counts for nothing: {one_line(str(error))[:_NOTE]}"
            logger.warning("%s: %s", row.name, note)
            return dataclasses.replace(row, why=(*row.why, note))
        return row if known is None else _refuse(row, known, row.attempt)

    def find(self, attempt: Attempt) -> Known | None:
        """Return the refusal that an attempt would meet again, None where it should be tried.

        Where the toolchain is not known here, it is taken for that of the last refusal.

        Raises:
            StoreUnavailableError: the store does not answer.
            ArtifactError: the record is damaged or forged, or the conversion is.
            NumericsMismatchError: a conversion is published that was not validated.
        """
        if attempt.toolchain is not None or not attempt.is_whole:
            record = self._listed.get(attempt.path)
            return None if record is None else self._check(record)
        for record in self._list_of_source(attempt):
            refusal = self._read(record)
            if refusal is not None and self._is_of(refusal, attempt):
                return self._check(record)
        return None

    def _check(self, record: Stored) -> Known | None:
        """Return a record unless the attempt has succeeded since, wherever it was made."""
        refusal = self._read(record)
        if refusal is None:
            return None
        key, source = refusal.attempt.key, refusal.attempt.source
        if key is not None and find_published(self.store, source, key) is not None:
            return None
        if key is not None and self._has_candidate_since(record, source, key):
            return None
        return Known(refusal=refusal, tried=record.modified)

    def _read(self, record: Stored) -> Refusal | None:
        try:
            return read(self.store, record, self.now)
        except FileNotFoundError:
            return None  # gc has removed it meanwhile

    def _has_candidate_since(self, record: Stored, source: str, key: str) -> bool:
        """Whether it was compiled since it was refused: a device may prove it by now."""
        path = f"{conversion_folder(source, key)}/{CANDIDATE}"
        files = self.store.walk(conversion_folder(source, key))
        return any(file.path == path and file.modified > record.modified for file in files)

    @staticmethod
    def _is_of(refusal: Refusal, attempt: Attempt) -> bool:
        return dataclasses.replace(refusal.attempt, toolchain=None) == attempt

    def _list_of_source(self, attempt: Attempt) -> list[Stored]:
        prefix = f"{attempt.folder}/"
        found = [record for path, record in self._listed.items() if path.startswith(prefix)]
        return sorted(found, key=lambda record: -record.modified)[:_MOST_READ]

    @cached_property
    def _listed(self) -> dict[str, Stored]:
        """List the records that count, by their path: once for a whole plan."""
        try:
            listed = list(list_records(self.store))
        except StoreUnavailableError:
            raise
        except ArtifactError:
            logger.warning("what was refused before is not known", exc_info=True)
            return {}
        return {record.path: record for record in listed if not is_aged(record, self.now)}


def _refuse(row: PlanRow, known: Known, attempt: Attempt) -> PlanRow:
    """Return the row as refused, unless a plan has found something else to be wrong."""
    refusal = known.refusal
    now = (row.error, one_line(row.message))
    if row.state == "invalid" and now != (refusal.error, refusal.message):
        return row
    why = list(row.why)
    if refusal.attempt.toolchain != attempt.toolchain:
        why.append(describe_unchecked(attempt.backend))
    return dataclasses.replace(
        row,
        state="refused",
        why=tuple(dict.fromkeys(why)),
        error=refusal.error,
        message=refusal.message,
        since=refusal.since,
        tried=known.tried,
    )
