"""What a comparison found, as plain data: for the table, the plot, and as JSON."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from typing import Any

from tracefleet.bench.machine import Machine


@dataclass(frozen=True, kw_only=True)
class PeerFacts:
    """What is measured, or is compared with what is.

    Attributes:
        name: under which it is shown.
        details: its version, or its key in short.
        key: conversion key, if it is a conversion.
    """

    name: str
    details: str
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A peer that can't take part.

    Attributes:
        name: under which it would be shown.
        reason: why, and what can be done.
    """

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What one peer did in one case.

    Attributes:
        threads: number of threads.
        length: tokens of each row; None: texts as they come.
        rows: rows of a call.
        peer: name of the peer.
        rates: rows a second, one for each round; empty: it failed.
        difference: largest relative difference of its outputs from the reference's.
        failed: why it failed; None: it did not.
    """

    threads: int
    length: int | None
    rows: int
    peer: str
    rates: tuple[float, ...] = ()
    difference: float | None = None
    failed: str | None = None

    @property
    def case(self) -> tuple[int, int | None, int]:
        """Threads, length and rows: what peers have in common."""
        return self.threads, self.length, self.rows

    @property
    def median(self) -> float:
        """Rows a second of the median round."""
        return statistics.median(self.rates)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole comparison.

    Attributes:
        source: the checkpoint.
        commit: its commit.
        task: the conversions' task.
        inputs: what was computed, in words.
        rounds: how often each peer had its turn.
        machine: where, as it was before.
        peers: who was measured, the reference first.
        absent: who could not take part.
        unmixed: why rows of unequal lengths were not measured; None: they were.
        figures: by case, and in each case by peer.
    """

    source: str
    commit: str
    task: str
    inputs: str
    rounds: int
    machine: Machine
    peers: tuple[PeerFacts, ...]
    absent: tuple[Absent, ...]
    unmixed: str | None
    figures: tuple[Figure, ...]

    @property
    def reference(self) -> str:
        """Name of the peer that the others are compared with."""
        return self.peers[0].name

    @property
    def cases(self) -> dict[tuple[int, int | None, int], dict[str, Figure]]:
        """The figures of each case, by peer."""
        found: dict[tuple[int, int | None, int], dict[str, Figure]] = {}
        for figure in self.figures:
            found.setdefault(figure.case, {})[figure.peer] = figure
        return found

    def ratio(self, figure: Figure) -> float | None:
        """Return how many times as fast a peer was as the reference, if neither failed."""
        reference = self.cases[figure.case][self.reference]
        if not figure.rates or not reference.rates:
            return None
        return figure.median / reference.median

    def difference(self, peer: str) -> float | None:
        """Return a peer's largest relative difference from the reference, over all cases."""
        found = [one.difference for one in self.figures if one.peer == peer]
        return max((one for one in found if one is not None), default=None)


def describe(report: Report) -> dict[str, Any]:
    """Return a comparison as JSON's types."""
    described = dataclasses.asdict(report)
    described["reference"] = report.reference
    for peer in described["peers"]:
        peer["difference"] = _finite(report.difference(peer["name"]))
    described["figures"] = [_describe_figure(report, one) for one in report.figures]
    return described


def _describe_figure(report: Report, figure: Figure) -> dict[str, Any]:
    described = dataclasses.asdict(figure)
    described["difference"] = _finite(figure.difference)
    if figure.rates:
        described["median"] = figure.median
    return {**described, "ratio": report.ratio(figure)}


def _finite(value: float | None) -> float | str | None:
    """Return a number that JSON has; a peer that returned no number at all differs by "inf"."""
    return value if value is None or math.isfinite(value) else "inf"
