"""Run a sweep: build, convert and check every case, each in children of its own.

``run_sweep`` is handed the function that converts: the way through is above this package.
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
from tasks.sweep.rows import CRASHED, PUBLISHED, REFUSED, UNTESTABLE, WRONG, Row, Sweep
from tasks.sweep.tiny import Case, Untestable, build, cases
from tracefleet.manifest import Manifest

#: Carries out a request and returns an object with its ``manifest``.
Convert = Callable[[ConversionRequest], Any]

_CHANNEL = "latest"
_REASON_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How every case of a sweep is converted.

    Attributes:
        dtype: of the artifacts.
        lengths: standard lengths.
        timeout: seconds for each step of a case.
        memory_mb: resident megabytes for each child.
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
    """Try every wanted case that has no row yet, and return all rows.

    Args:
        out: the file of rows.
        types: model types; default: all.
        tasks: Hugging Face task names; default: all.
        options: how to convert.
        jobs: cases at a time, one torch thread each.
        again: statuses whose rows are tried again.
        convert: carries out one request.

    Raises:
        RequestError: an unknown type, or ``out`` is of another set-up.
    """
    options = options or SweepOptions()
    sweep = Sweep.at(out, _setup(options))
    wanted = [case for case in cases(types) if tasks is None or case.task in set(tasks)]
    tried_again = set(again)
    done = {row.name for row in sweep.rows.values() if row.status not in tried_again}
    left = [case for case in wanted if case.name not in done]
    child.warm_up()
    started = time.monotonic()
    pool = ThreadPoolExecutor(jobs)
    try:
        found = pool.map(lambda case: try_case(case, options, convert), left)
        for number, row in enumerate(found, start=1):
            sweep.add(row)
            _log_progress(row, number, len(left), time.monotonic() - started)
    finally:
        pool.shutdown(cancel_futures=True)  # interrupted: what has not begun never does
    return sweep


def try_case(case: Case, options: SweepOptions, convert: Convert) -> Row:
    """Build, convert and check one case in a place of its own that is removed afterwards."""
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
        except Exception as error:  # what no conversion may raise: that is what a sweep looks for
            found = {"status": CRASHED, "error": type(error).__name__, "reason": str(error)}
    found["reason"] = _shortened(found)
    seconds = round(time.monotonic() - started, 1)
    return Row(type=case.model_type, task=case.task, seconds=seconds, **found)


def _shortened(found: dict[str, Any]) -> str:
    """A typed error says the most at its beginning, a traceback at its end."""
    reason = str(found.get("reason", "")).strip()
    if len(reason) <= _REASON_CHARACTERS:
        return reason
    if found["status"] == CRASHED:
        return f"…{reason[-_REASON_CHARACTERS:]}"
    return f"{reason[:_REASON_CHARACTERS]}…"


class _UntestableError(Exception):
    """Eager can't run the case."""


def _setup(options: SweepOptions) -> dict[str, Any]:
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
    if untestable := _child(options, work, "build", _build, case, folder):
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
    checked = _child(
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
    return found | _gate_facts(result.manifest)


def _gate_facts(manifest: Manifest) -> dict[str, Any]:
    verdicts = manifest.validation.lengths
    return {
        "worst_gate": max(verdict.max_rel_error for verdict in verdicts),
        "same_program": manifest.same_program,
        "other_lengths": verdicts[0].other_lengths,
        "other_batches": verdicts[0].other_batches,
        "vacuous": verdicts[0].vacuous,
    }


def _build(case: Case, folder: Path) -> str:
    """Build the checkpoint; return why eager can't run it, or nothing. Runs in a child."""
    try:
        build(case, folder)
    except Untestable as reason:
        return str(reason) or "untestable"
    return ""


def _child(options: SweepOptions, work: Path, step: str, function: Any, *arguments: Any) -> Any:
    limits = child.Limits(timeout=options.timeout, memory=options.memory_mb * 1_000_000, threads=1)
    log = work / f"{step}.log"
    return child.run(function, *arguments, limits=limits, log=log, step=step).value


def _log_progress(row: Row, number: int, total: int, seconds: float) -> None:
    left = seconds / number * (total - number)
    logging.getLogger(__name__).info(
        "%4d/%d  %-11s %-55s %5.1f s  %s  (%.0f min left)",
        number,
        total,
        row.status,
        row.name,
        row.seconds,
        first_line(Exception(row.reason))[:70] if row.reason else "",
        left / 60,
    )
