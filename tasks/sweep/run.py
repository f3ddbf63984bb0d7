"""Run a sweep: build, convert and check every case, each in children of its own.

``run_sweep`` takes the function that converts as an argument: it is in ``flows``, which imports
this package.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import child
from tasks.backends.registry import find_backend
from tasks.errors import ConversionCrashedError, ConversionError, first_line
from tasks.publish.identity import RECIPE
from tasks.request.conversion import ConversionRequest, make_request
from tasks.sweep.check import check_published
from tasks.sweep.rows import (
    CRASHED,
    PROVED,
    PUBLISHED,
    REFUSED,
    UNTESTABLE,
    WRONG,
    Row,
    Sweep,
)
from tasks.sweep.tiny import Case, Untestable, build, list_cases
from tracefleet.manifest import Manifest

#: Carries out a request and returns an object with a ``manifest``.
Convert = Callable[[ConversionRequest], Any]

_CHANNEL = "latest"
_REASON_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Options of every conversion in a sweep.

    Attributes:
        dtype: Dtype of the artifacts.
        lengths: Standard lengths.
        timeout: Seconds for each step of a case.
        memory_mb: Resident megabytes for each child.
    """

    dtype: str = "float32"
    lengths: tuple[int, ...] = (16, 48)
    timeout: float = 300.0
    memory_mb: int = 6000


def run_sweep(
    out: Path,
    *,
    types: Iterable[str] | None = None,
    tasks: Iterable[str] | None = None,
    options: SweepOptions | None = None,
    jobs: int = 2,
    again: Iterable[str] = (),
    convert: Convert,
) -> Sweep:
    """Try every case that has no row yet, and return all rows.

    Args:
        out: File of the rows.
        types: Model types; default: all.
        tasks: Hugging Face task names; default: all.
        options: Options of the conversions.
        jobs: Number of cases at a time, with one torch thread each.
        again: Statuses whose rows are tried again.
        convert: Carries out one request.

    Raises:
        RequestError: a type is unknown, or ``out`` is of another set-up.
    """
    options = options or SweepOptions()
    sweep = Sweep.at(out, _describe_setup(options))
    left = _choose_cases(sweep, types, tasks, set(again))
    child.warm_up()
    started = time.monotonic()
    pool = ThreadPoolExecutor(jobs)
    try:
        found = pool.map(lambda case: try_case(case, options, convert), left)
        for number, row in enumerate(found, start=1):
            sweep.add(row)
            _log_progress(row, number, len(left), time.monotonic() - started)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt must not wait for hundreds of cases
    return sweep


def _choose_cases(
    sweep: Sweep, types: Iterable[str] | None, tasks: Iterable[str] | None, again: set[str]
) -> list[Case]:
    """Return the cases of these types and tasks without a row, or with one to try again."""
    wanted = None if tasks is None else set(tasks)
    done = {row.name for row in sweep.rows.values() if row.status not in again}
    left = []
    for case in list_cases(types):
        if case.name not in done and (wanted is None or case.task in wanted):
            left.append(case)
    return left


def try_case(case: Case, options: SweepOptions, convert: Convert) -> Row:
    """Build, convert and check one case in a temporary folder."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tracefleet-sweep-") as work:
        try:
            found = _convert_and_check(case, options, Path(work), convert)
        except ConversionCrashedError as error:
            found = {"status": CRASHED, "error": error.reason, "reason": error.log_tail}
        except ConversionError as error:
            found = {"status": REFUSED, "error": type(error).__name__, "reason": str(error)}
        except _UntestableError as error:
            found = {"status": UNTESTABLE, "reason": str(error)}
        except Exception as error:  # no conversion may raise these: a sweep looks for them
            found = {"status": CRASHED, "error": type(error).__name__, "reason": str(error)}
    found["reason"] = _shorten_reason(found)
    seconds = round(time.monotonic() - started, 1)
    return Row(type=case.model_type, task=case.task, seconds=seconds, **found)


def _shorten_reason(found: dict[str, Any]) -> str:
    reason = str(found.get("reason", "")).strip()
    if len(reason) <= _REASON_CHARACTERS:
        return reason
    # What matters stands at the end of a traceback, and at the beginning of a typed error.
    if found["status"] == CRASHED:
        return f"…{reason[-_REASON_CHARACTERS:]}"
    return f"{reason[:_REASON_CHARACTERS]}…"


class _UntestableError(Exception):
    """Eager can't run the case."""


def _describe_setup(options: SweepOptions) -> dict[str, Any]:
    return {
        "toolchain": dataclasses.asdict(find_backend("jit").toolchain()),
        "recipe": RECIPE,
        "dtype": options.dtype,
        "lengths": list(options.lengths),
    }


def _convert_and_check(
    case: Case, options: SweepOptions, work: Path, convert: Convert
) -> dict[str, Any]:
    folder, store = work / case.model_type, (work / "store").as_uri()
    untestable = _run_child(options, work, "build", _build_case, case, folder)
    if untestable:
        raise _UntestableError(untestable)
    request = make_request(
        {
            "source": folder.as_uri(),
            "task": case.task,
            "lengths": options.lengths,
            "store": store,
            "channel": _CHANNEL,
            "dtype": options.dtype,
            "timeout_seconds": options.timeout,
            "memory_limit_mb": options.memory_mb,
            "threads": 1,
        }
    )
    result = convert(request)
    checked = _run_child(
        options,
        work,
        "check",
        check_published,
        store,
        result.manifest.source,
        case.task,
        folder,
        _CHANNEL,
    )
    found = {
        "status": WRONG if checked.failures else PUBLISHED,
        "reason": "; ".join(checked.failures),
        "worst_check": checked.worst,
    }
    return found | _read_verdict(result.manifest)


def _read_verdict(manifest: Manifest) -> dict[str, Any]:
    verdicts = manifest.validation.lengths
    lacking = manifest.without_generation or ""
    generation = PROVED if manifest.generation else lacking
    return {
        "worst_gate": max(verdict.max_rel_error for verdict in verdicts),
        "same_program": manifest.same_program,
        "other_lengths": verdicts[0].other_lengths,
        "other_batches": verdicts[0].other_batches,
        "vacuous": verdicts[0].vacuous,
        "left_padding": manifest.validation.left_padding,
        "without_samples": manifest.validation.without_samples or "",
        "generation": generation,
    }


def _build_case(case: Case, folder: Path) -> str:
    """Build the checkpoint; return why eager can't run it, or "". A child runs this."""
    try:
        build(case, folder)
    except Untestable as reason:
        return str(reason) or "untestable"
    return ""


def _run_child(options: SweepOptions, work: Path, step: str, function: Any, *arguments: Any) -> Any:
    limits = child.Limits(timeout=options.timeout, memory=options.memory_mb * 1_000_000, threads=1)
    log = work / f"{step}.log"
    return child.run(function, *arguments, limits=limits, log=log, step=step).value


def _log_progress(row: Row, number: int, total: int, seconds: float) -> None:
    left = seconds / number * (total - number)
    reason = first_line(Exception(row.reason))[:70] if row.reason else ""
    logging.getLogger(__name__).info(
        "%4d/%d  %-11s %-55s %5.1f s  %s  (%.0f min left)",
        number,
        total,
        row.status,
        row.name,
        row.seconds,
        reason,
        left / 60,
    )
