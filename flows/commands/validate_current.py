"""``tracefleet validate --current``: the gate again on what a store's channels point to."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.engine import settings
from tracefleet.spelling import option, read_dtype, read_task

if TYPE_CHECKING:
    from tasks.report.current import CurrentRow

_MORE = ("allow_pickle", "trust_remote_code", "timeout_seconds")
_ALONE = ("store", "source", "task", "dtype", "withdraw")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what chooses current conversions."""
    group = parser.add_argument_group("with --current")
    add = group.add_argument
    add("--store", help="root of the store")
    add("--source", action="append", help="only this one; repeat for more (default: every source)")
    task, dtype = option(read_task, "--task"), option(read_dtype, "--dtype")
    add("--task", type=task, help="only this task, such as fill-mask (default: every task)")
    add("--dtype", type=dtype, help="only this dtype, such as float32 (default: every dtype)")
    add("--withdraw", action="store_true", help="withdraw what fails: readers refuse it then")


def explain_misuse(options: argparse.Namespace) -> str | None:
    """Return what is wrong with the options together; None: nothing."""
    if options.current:
        if options.store is None:
            return "--current: expected --store, got none"
        return None if options.device is None else "--current runs on the CPU: leave --device out"
    alone = [f"--{name}" for name in _ALONE if getattr(options, name)]
    return f"{', '.join(alone)}: only with --current" if alone else None


def validate_current(options: argparse.Namespace) -> int:
    """Put current conversions through the gate, print what came of it, return the exit code."""
    from tasks.report.current import CurrentError, find_unproved, format_rows

    try:
        run = _run_flow if settings.wants_prefect(options.engine) else _run_here
        rows = run(options)
    except CurrentError as error:
        rows = error.rows
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print(format_rows(rows))
    return 1 if find_unproved(rows) else 0


def _run_here(options: argparse.Namespace) -> Sequence[CurrentRow]:
    from flows.judge_current import Choice, judge_current
    from tasks.steps import Steps

    more: dict[str, Any] = {name: getattr(options, name) for name in _MORE}
    choice = Choice(
        store=options.store,
        sources=tuple(options.source or ()),
        task=options.task,
        dtype=options.dtype,
        channel=options.channel,
        withdraw=options.withdraw,
        more=more,
    )
    return list(judge_current(choice, Steps))


def _run_flow(options: argparse.Namespace) -> Sequence[CurrentRow]:
    settings.prepare()
    settings.announce_server()
    from flows.validate_current import validate_current as flow

    names = ("store", "task", "dtype", "channel", "withdraw", *_MORE)
    chosen = {name: getattr(options, name) for name in names}
    rows: Sequence[CurrentRow] = flow(sources=options.source, **chosen)
    return rows
