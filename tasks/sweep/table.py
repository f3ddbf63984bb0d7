"""Make the Markdown page on support by architecture from a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.sweep.rows import (
    CRASHED,
    PROVED,
    PUBLISHED,
    REFUSED,
    UNTESTABLE,
    WRONG,
    Row,
    compute_share,
    count_statuses,
)

#: What no case of the sweep has; `tests/test_rotary.py` shows it.
_ROTARY = """\
Rotary embeddings that take other frequencies for a whole call, by its longest row, are beside the
sweep, whose checkpoints have the default ones. `longrope` (Phi-3, Phi-4, PhiMoE): standard lengths
up to `original_max_position_embeddings` are published like any other model's; with a longer one
among them no row is ever padded, each runs at its own length. `dynamic`: lengths over
`max_position_embeddings` are refused."""

_MARKS = {PUBLISHED: "yes", REFUSED: "refused", CRASHED: "crashed", WRONG: "wrong"}
_SHORT = {
    "feature-extraction": "features",
    "fill-mask": "fill-mask",
    "text-classification": "text-cls",
    "token-classification": "token-cls",
    "question-answering": "qa",
    "multiple-choice": "choice",
    "text-generation": "text-gen",
    "text2text-generation": "text2text",
}


def make_support_page(setup: dict[str, Any], rows: Sequence[Row]) -> str:
    """Return the page: totals, one line for each model type, and the reasons of refusals.

    Args:
        setup: Set-up of the sweep.
        rows: All rows; types with nothing but untestable cases are left out of the table.
    """
    ran = [row for row in rows if row.status != UNTESTABLE]
    return "\n".join(
        [
            "# Support by architecture",
            "",
            "Made by `make sweep`; do not edit. Tiny random checkpoints of every text model type "
            "of the installed transformers went through the whole conversion, gate included, and "
            "what was published was compared once more by an independent program.",
            "",
            *_describe_totals(setup, rows),
            "",
            _ROTARY,
            "",
            *_make_table(ran),
            "",
            *_list_refusals(ran),
            "",
            *_list_generation(ran),
            "",
        ]
    )


def _describe_totals(setup: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    counted = count_statuses(rows)
    versions = ", ".join(f"{name} {value}" for name, value in setup["toolchain"].items() if value)
    types = {row.type for row in rows if row.status == PUBLISHED}
    return [
        f"{versions}; dtype {setup['dtype']}, lengths {setup['lengths']}.",
        "",
        f"**{counted[PUBLISHED]} of {len(rows) - counted[UNTESTABLE]} cases published "
        f"({compute_share(rows):.1%}), {len(types)} model types;** {counted[REFUSED]} refused "
        f"with a typed reason, {counted[CRASHED]} crashed, {counted[WRONG]} wrong. "
        f"{counted[UNTESTABLE]} cases can't be tried: they need images or sounds, a package that "
        "is not installed, or can't be made tiny.",
    ]


def _make_table(rows: Sequence[Row]) -> list[str]:
    present = {row.task for row in rows}
    tasks = [task for task in _SHORT if task in present]
    by_type: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_type.setdefault(row.type, {})[row.task] = row
    header = "| model type | " + " | ".join(_SHORT[task] for task in tasks) + " | graph | note |"
    lines = [header, "|" + "---|" * (len(tasks) + 3)]
    for model_type, found in sorted(by_type.items()):
        marks = {task: _MARKS[row.status] for task, row in found.items()}
        cells = [marks.get(task, "") for task in tasks]
        cells += _describe_graphs(list(found.values()))
        lines.append(f"| {model_type} | " + " | ".join(cells) + " |")
    return lines


def _describe_graphs(rows: Sequence[Row]) -> tuple[str, str]:
    """Return the cells of columns ``graph`` and ``note``; empty if nothing is published."""
    published = [row for row in rows if row.status == PUBLISHED]
    if not published:
        return "", ""
    shared = all(row.same_program for row in rows)
    wrong = any(row.other_lengths == "differs" for row in published)
    note = "silently wrong at other lengths without the guard" if wrong else ""
    return "one" if shared else "each length", note


def _list_generation(rows: Sequence[Row]) -> list[str]:
    """Return what became of ``generate``, for each encoder-decoder that was published."""
    told = sorted((row.type, row.generation) for row in rows if row.generation)
    proved = [model_type for model_type, found in told if found == PROVED]
    lines = [
        "## Generation",
        "",
        f"`generate` was proved, greedy and with 4 beams, for {len(proved)} of {len(told)}: "
        f"{', '.join(proved) or 'none'}. The others have one forward:",
        "",
        "| model type | why |",
        "|---|---|",
    ]
    for model_type, found in told:
        if found != PROVED:
            lines.append(f"| {model_type} | {found.replace('|', chr(92) + '|')} |")
    return lines if told else []


def _list_refusals(rows: Sequence[Row]) -> list[str]:
    refused = [row for row in rows if row.status in (REFUSED, CRASHED, WRONG)]
    if not refused:
        return ["Nothing that eager runs was refused."]
    lines = ["## What is not published, and why", "", "| case | error | reason |", "|---|---|---|"]
    for row in sorted(refused, key=lambda row: row.name):
        reason = row.reason.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {row.name} | {row.error} | {reason} |")
    return lines
