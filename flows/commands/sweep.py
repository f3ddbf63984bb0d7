"""``python -m flows sweep``: the whole conversion over every architecture, one row for each case.

Tiny random checkpoints stand in for real ones: architectures differ in their code, not in their
weights. Each case is built, converted and compared once more by an independent program, every step
in a child process of its own, so that no case can hurt another. A sweep that was stopped goes on
where it was.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ConversionCrashedError, ConversionError, first_line

if TYPE_CHECKING:
    from flows.engine.record import Conversion
    from tasks.sweep.rows import Row, Sweep
    from tasks.sweep.tiny import Case

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


def add_command(commands: Any) -> None:
    """Add ``sweep`` to the command line."""
    parser = commands.add_parser(
        "sweep",
        help="try every architecture of the installed transformers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tiny", action="store_true", required=True, help="build tiny random checkpoints")
    add("--out", type=Path, required=True, help="JSON file of rows; a sweep that stopped goes on")
    add("--types", help="model types, such as bert,t5 (default: all)")
    add("--tasks", help="tasks, such as fill-mask,question-answering (default: all)")
    dtypes = ("float32", "float16", "bfloat16")
    add("--dtype", default="float32", choices=dtypes, help="of the artifacts (default: float32)")
    add("--jobs", type=int, default=2, help="cases at a time (default: 2)")
    add("--again", help="statuses to try again, such as crashed,refused")
    add("--table", type=Path, help="write the support table of all rows as Markdown")
    add("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(command=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    from tasks.sweep.rows import CRASHED, WRONG
    from tasks.sweep.table import support_page

    types = options.types.split(",") if options.types else None
    tasks = options.tasks.split(",") if options.tasks else None
    again = options.again.split(",") if options.again else ()
    with _conversions_silent():
        sweep = run_sweep(
            options.out,
            types=types,
            tasks=tasks,
            options=SweepOptions(dtype=options.dtype),
            jobs=options.jobs,
            again=again,
        )
    rows = list(sweep.rows.values())
    print(summary(rows))
    if options.table:
        options.table.write_text(support_page(sweep.setup, rows))
    return int(any(row.status in (CRASHED, WRONG) for row in rows))


@contextmanager
def _conversions_silent() -> Iterator[None]:
    """A conversion's own progress would drown the sweep's."""
    loggers = [logging.getLogger(name) for name in ("tasks", "flows.convert", "tracefleet")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def run_sweep(
    out: Path,
    *,
    types: Iterable[str] | None = None,
    tasks: Iterable[str] | None = None,
    options: SweepOptions | None = None,
    jobs: int = 2,
    again: Iterable[str] = (),
) -> Sweep:
    """Try every wanted case that has no row yet, and return all rows.

    Args:
        out: the file of rows.
        types: model types; default: all.
        tasks: Hugging Face task names; default: all.
        options: how to convert.
        jobs: cases at a time, one torch thread each.
        again: statuses whose rows are tried again.

    Raises:
        RequestError: an unknown type, or ``out`` is of another set-up.
    """
    from tasks import child
    from tasks.sweep.rows import Sweep
    from tasks.sweep.tiny import cases

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
        found = pool.map(lambda case: try_case(case, options), left)
        for number, row in enumerate(found, start=1):
            sweep.add(row)
            _say(row, number, len(left), time.monotonic() - started)
    finally:
        pool.shutdown(cancel_futures=True)  # interrupted: what has not begun never does
    return sweep


def try_case(case: Case, options: SweepOptions) -> Row:
    """Build, convert and check one case in a place of its own that is removed afterwards."""
    from tasks.sweep.rows import CRASHED, REFUSED, UNTESTABLE, Row

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tracefleet-sweep-") as work:
        try:
            found = _tried(case, options, Path(work))
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
    from tasks.sweep.rows import CRASHED

    reason = str(found.get("reason", "")).strip()
    if len(reason) <= _REASON_CHARACTERS:
        return reason
    if found["status"] == CRASHED:
        return f"…{reason[-_REASON_CHARACTERS:]}"
    return f"{reason[:_REASON_CHARACTERS]}…"


def summary(rows: Iterable[Row]) -> str:
    """Return the totals for a terminal."""
    from tasks.sweep.rows import UNTESTABLE, counts, share_published

    rows = list(rows)
    counted = counts(rows)
    types = {row.type for row in rows if row.status != UNTESTABLE}
    shown = ", ".join(f"{number} {status}" for status, number in counted.items() if number)
    return (
        f"{len(rows)} cases: {shown or 'none'}\n"
        f"{share_published(rows):.1%} of what eager runs is published ({len(types)} model types)"
    )


class _UntestableError(Exception):
    """Eager can't run the case."""


def _setup(options: SweepOptions) -> dict[str, Any]:
    import dataclasses

    from tasks.backends.registry import find_backend
    from tasks.publish.identity import RECIPE

    return {
        "toolchain": dataclasses.asdict(find_backend("jit").toolchain()),
        "recipe": RECIPE,
        "dtype": options.dtype,
        "lengths": list(options.lengths),
    }


def _tried(case: Case, options: SweepOptions, work: Path) -> dict[str, Any]:
    from flows.convert import convert
    from tasks.request.conversion import make_request
    from tasks.sweep.check import check_published
    from tasks.sweep.rows import PUBLISHED, WRONG

    folder, store = work / case.model_type, (work / "store").as_uri()
    if untestable := _child(options, work, "build", _built, case, folder):
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
    return found | _gate_facts(result)


def _gate_facts(result: Conversion) -> dict[str, Any]:
    verdicts = result.manifest.validation.lengths
    return {
        "worst_gate": max(verdict.max_rel_error for verdict in verdicts),
        "same_program": result.manifest.same_program,
        "other_lengths": verdicts[0].other_lengths,
        "other_batches": verdicts[0].other_batches,
        "vacuous": verdicts[0].vacuous,
    }


def _built(case: Case, folder: Path) -> str:
    """Build the checkpoint; return why eager can't run it, or nothing. Runs in a child."""
    from tasks.sweep.tiny import Untestable, build

    try:
        build(case, folder)
    except Untestable as reason:
        return str(reason) or "untestable"
    return ""


def _child(options: SweepOptions, work: Path, step: str, function: Any, *arguments: Any) -> Any:
    from tasks import child

    limits = child.Limits(timeout=options.timeout, memory=options.memory_mb * 1_000_000, threads=1)
    log = work / f"{step}.log"
    return child.run(function, *arguments, limits=limits, log=log, step=step).value


def _say(row: Row, number: int, total: int, seconds: float) -> None:
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
