"""Reports that nobody needs any more: old, and of no conversion that is still there.

Reports are pages for people, one for each run, and a nightly fleet writes one each night. The
report that proves a conversion stays as long as the conversion. Called by ``tasks.publish.gc``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tracefleet.store import Store, Stored

#: Parts of a path: ``reports/<run>/<file>``, ``conversions/<slug>/<key>/<file>`` and
#: ``attestations/<slug>/<key>/<run>.json``.
_REPORT, _CONVERSION, _ATTESTATION = 3, 4, 4


def find_old_reports(store: Store, before: float) -> Iterator[tuple[str, list[Stored]]]:
    """Yield the folder and the files of each report that may go.

    Args:
        store: Store of the reports.
        before: Seconds since the epoch: what is newer stays.
    """
    needed: set[str] | None = None
    for run, found in itertools.groupby(_walk(store, "reports", _REPORT), key=_second):
        files = list(found)
        if all(file.modified < before for file in files):
            # Only now: a store without old reports is not listed twice.
            needed = _find_attested_runs(store) if needed is None else needed
            if run not in needed:
                yield f"reports/{run}", files


def _find_attested_runs(store: Store) -> set[str]:
    """Return the runs that made the conversions that are there."""
    there = set()
    for file in _walk(store, "conversions", _CONVERSION):
        there.add(tuple(file.path.split("/")[1:3]))
    runs = set()
    for attestation in _walk(store, "attestations", _ATTESTATION):
        _, slug, key, name = attestation.path.split("/")
        if (slug, key) in there:
            runs.add(name.removesuffix(".json"))
    return runs


def _walk(store: Store, folder: str, parts: int) -> Iterator[Stored]:
    for file in store.walk(folder):
        if len(file.path.split("/", parts - 1)) == parts:
            yield file


def _second(file: Stored) -> str:
    return file.path.split("/")[1]
