"""Measure peers case by case: compare what they return, then let them take turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tracefleet.bench.cases import Case
from tracefleet.bench.optional import first_line
from tracefleet.bench.peers import Peer, Results
from tracefleet.bench.results import Figure
from tracefleet.errors import BenchError
from tracefleet.manifest_types import OutputSpec

if TYPE_CHECKING:
    import torch

#: Shortest turn: below it one call says little.
_TURN_SECONDS = 0.1
_MOST_CALLS = 50
#: Idle threads of ONNX Runtime spin for up to 60 ms after its last call, torch's for 10 ms.
_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How turns are taken and timed.

    Attributes:
        rounds: how often each peer has its turn.
        clock: returns seconds.
        pause: waits so many seconds.
        turn_seconds: shortest turn: calls are repeated until it is over.
    """

    rounds: int
    clock: Callable[[], float] = time.perf_counter
    pause: Callable[[float], None] = time.sleep
    turn_seconds: float = _TURN_SECONDS


def measure(
    peers: Sequence[Peer],
    cases: Sequence[Case],
    threads: Sequence[int],
    outputs: Sequence[OutputSpec],
    timing: Timing,
) -> Iterator[list[Figure]]:
    """Measure every peer in every case; yield the figures of each case.

    Args:
        peers: who is measured; the first one is the reference.
        cases: what they compute.
        threads: numbers of threads.
        outputs: what they return.
        timing: how turns are taken.
    """
    for count in threads:
        with _using_threads(count):
            for peer in peers:
                peer.use_threads(count)
            for case in cases:
                yield _measure_case(peers, case, count, outputs, timing)


@contextmanager
def _using_threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure_case(
    peers: Sequence[Peer], case: Case, threads: int, outputs: Sequence[OutputSpec], timing: Timing
) -> list[Figure]:
    checked = _check(peers, case, outputs)
    calls = {}
    for peer in peers:
        if checked[peer.name].failed is None:
            calls[peer.name] = partial(peer.run, case)
    seconds = take_turns(calls, timing)
    figures = []
    for name, found in checked.items():
        figure = Figure(
            threads=threads,
            length=case.length,
            rows=case.rows,
            peer=name,
            rates=tuple(case.rows / one for one in seconds.get(name, ())),
            difference=found.difference,
            failed=found.failed,
        )
        figures.append(figure)
    return figures


def take_turns(calls: Mapping[str, Callable[[], object]], timing: Timing) -> dict[str, list[float]]:
    """Return the seconds of a call of each peer, one for each round; peers take turns in a round.

    Every call was made before: shapes are warm. A short one is repeated within its turn.

    Args:
        calls: by name of the peer.
        timing: how turns are taken.
    """
    counts = {name: _count_calls(call, timing) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(timing.rounds):
        for name, call in calls.items():
            timing.pause(_PAUSE_SECONDS)
            started = timing.clock()
            for _ in range(counts[name]):
                call()
            seconds[name].append((timing.clock() - started) / counts[name])
    return seconds


def _count_calls(call: Callable[[], object], timing: Timing) -> int:
    started = timing.clock()
    call()
    seconds = timing.clock() - started
    if seconds * _MOST_CALLS <= timing.turn_seconds:
        return _MOST_CALLS
    return max(1, math.ceil(timing.turn_seconds / seconds))


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """A peer's first call in a case: how far it is from the reference, or why it failed."""

    difference: float | None = None
    failed: str | None = None


def _check(peers: Sequence[Peer], case: Case, outputs: Sequence[OutputSpec]) -> dict[str, _Checked]:
    """Call every peer once, and compare its first and last row with the first peer's."""
    checked: dict[str, _Checked] = {}
    reference: list[torch.Tensor] = []
    for peer in peers:
        try:
            found = _take_ends(peer.run(case), outputs, case)
            difference = _compare(found, reference) if reference else None
            checked[peer.name] = _Checked(difference=difference)
        except Exception as error:  # what fails in one case may serve in the others
            checked[peer.name] = _Checked(failed=first_line(error))
            continue
        if peer is peers[0]:
            reference = found
    return checked


def _take_ends(results: Results, outputs: Sequence[OutputSpec], case: Case) -> list[torch.Tensor]:
    """Return each output of the first and last row, without padding; the rest may be large."""
    import torch

    ends = []
    for part, place in ((results[0], 0), (results[-1], -1)):
        for spec in outputs:
            # Copied, so that the results of the whole call can go.
            value = torch.as_tensor(part[spec.name])[place].clone()
            if case.texts and spec.length_axis is not None:
                value = value.narrow(spec.length_axis - 1, 0, len(case.texts[place]))
            ends.append(value.double())
    return ends


def _compare(found: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """Return the largest ``max|found - reference| / max|reference|``; inf if it is no number."""
    worst = 0.0
    for got, expected in zip(found, reference, strict=True):
        if got.shape != expected.shape:
            raise BenchError(f"shape expected {tuple(expected.shape)}, got {tuple(got.shape)}")
        largest = float(expected.abs().max()) or 1.0
        difference = float((got - expected).abs().max()) / largest
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst
