"""Run the gate again on what channels point to, and withdraw what fails it if that is asked for.

Nothing is traced and nothing is published; what passes changes nothing in the store. Called by
``tracefleet validate --current`` and the Prefect flow ``validate-current``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from flows.engine.clock import now
from flows.prepare_gate import prepare_gate
from tasks.backends.registry import find_backend
from tasks.errors import (
    ConversionError,
    NumericsMismatchError,
    RequestError,
    TraceError,
    UnsafeCheckpointError,
    first_line,
)
from tasks.publish.identity import RECIPE
from tasks.publish.withdraw import fit_reason, withdraw_everywhere
from tasks.report.current import CurrentRow
from tasks.request.proof import request_proof
from tasks.steps import Steps
from tasks.validate.gate import validate_bundle
from tracefleet.channel import Published
from tracefleet.errors import ArtifactError, NoSuchVariantError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import JIT
from tracefleet.published import Selection, find, load_manifest, resolve
from tracefleet.store import ReadableStore, open_store, open_writable

logger = logging.getLogger(__name__)
_FAULTS = (NumericsMismatchError, TraceError, UnsafeCheckpointError)
_SHOWN_FAILURES = 3


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which current conversions are put through the gate, and what becomes of those that fail.

    Attributes:
        store: Root URL of their store.
        sources: Names of their sources; none: every one.
        task: Only this task.
        dtype: Only this dtype.
        channel: Channel whose newest numbers are tried.
        withdraw: Whether to withdraw what fails.
        more: Fields of their requests that are no part of an identity: trust, limits.
    """

    store: str
    sources: tuple[str, ...] = ()
    task: str | None = None
    dtype: str | None = None
    channel: str = "latest"
    withdraw: bool = False
    more: dict[str, Any] = field(default_factory=dict)


def judge_current(choice: Choice, make_steps: Callable[..., Steps]) -> Iterator[CurrentRow]:
    """Yield what the gate says of each current conversion; one that fails stops no other.

    Args:
        choice: Which ones.
        make_steps: Makes the steps of one conversion, with its limits.

    Raises:
        NoSuchVariantError: Nothing is published that fits.
        StoreError: The store can't be listed, or to withdraw, not be written.
    """
    store = open_writable(choice.store) if choice.withdraw else open_store(choice.store)
    seen: set[tuple[str, bool]] = set()
    for published in _find_all(store, choice):
        if _is_judged(store, published, seen):
            continue
        logger.info("%s %s: the gate, once more", published.slug, published.variant)
        started = time.monotonic()
        row = _judge(store, published, choice, make_steps)
        yield replace(row, seconds=time.monotonic() - started)


def _is_judged(store: ReadableStore, published: Published, seen: set[tuple[str, bool]]) -> bool:
    """Whether another address led to the same conversion; one that can't be read did not."""
    try:
        selection = resolve(store, published)
    except ArtifactError:
        return False
    what = (selection.folder, selection.entry.withdrawn is None)
    judged = what in seen
    seen.add(what)
    return judged


def _find_all(store: ReadableStore, choice: Choice) -> Iterable[Published]:
    found: list[Published] = []
    for source in choice.sources or (None,):
        fitting = list(
            find(store, source, task=choice.task, dtype=choice.dtype, channel=choice.channel)
        )
        if not fitting:
            raise NoSuchVariantError(
                f"{store.url}: expected a conversion of {source or 'any source'} in channel "
                f"{choice.channel!r} that fits, got none: nothing to validate. See "
                "`tracefleet list`."
            )
        found += fitting
    return dict.fromkeys(found)  # each once, if a source was named twice


def _judge(
    store: Any, published: Published, choice: Choice, make_steps: Callable[..., Steps]
) -> CurrentRow:
    row = _begin_row(published)
    try:
        selection = resolve(store, published)
        row = replace(row, key=selection.entry.key)
        if skipped := _explain_skip(selection):
            return replace(row, why=skipped)
        manifest = load_manifest(store, selection)
        row = replace(row, source=manifest.source)
        request = request_proof(store, manifest, **choice.more)
        with make_steps(limits=request.limits) as steps:
            fault = _find_fault(store, manifest, steps, request)
            if fault is None:
                return replace(row, state="passed")
            row = replace(row, state="failed", error=type(fault).__name__, why=_describe(fault))
            return _withdraw(store, selection, row, steps) if choice.withdraw else row
    except Exception as error:  # network errors keep their library's type
        logger.debug("not tried", exc_info=True)
        return replace(row, state="untried", error=type(error).__name__, why=first_line(error))


def _begin_row(published: Published) -> CurrentRow:
    return CurrentRow(
        source=published.slug,
        variant=published.variant,
        channel=published.channel,
        number=published.number,
        state="skipped",
    )


def _explain_skip(selection: Selection) -> str | None:
    if selection.entry.withdrawn is not None:
        return f"withdrawn already: {selection.entry.withdrawn}"
    _, backend, *_ = selection.published.variant.split(".")
    if backend != JIT:
        return f"backend {backend}: its programs were put through the gate on their own device"
    return None


def _find_fault(
    store: ReadableStore, manifest: Manifest, steps: Steps, request: Any
) -> ConversionError | None:
    """Return the gate's error; None: it passed. Whatever keeps the gate from running is raised."""
    if manifest.recipe != RECIPE:
        raise RequestError(
            f"recipe: expected {RECIPE}, whose gate this is, got {manifest.recipe}: it compares "
            "with what that recipe did not promise. Convert the checkpoint again."
        )
    try:
        bundle, reference = prepare_gate(store, manifest, request, steps)
    except NumericsMismatchError as error:
        return error
    try:
        steps.child("validate", validate_bundle, bundle, reference)
    except UnsafeCheckpointError as error:
        # The bundle's bytes are as published: another transformers may name its weights otherwise.
        if find_backend(JIT).toolchain().transformers != manifest.toolchain.transformers:
            raise
        return error
    except _FAULTS as error:
        return error
    return None


def _describe(fault: ConversionError) -> str:
    report = getattr(fault, "report", None)
    failures = report.failures if report is not None else ()
    return "; ".join(failures[:_SHOWN_FAILURES]) or first_line(fault)


def _withdraw(store: Any, selection: Selection, row: CurrentRow, steps: Steps) -> CurrentRow:
    """Withdraw a conversion that failed; that it failed stays true if that can't be done."""
    versions = find_backend(JIT).toolchain()
    reason = fit_reason(
        f"gate failed with torch {versions.torch}, transformers {versions.transformers} on "
        f"{now():%Y-%m-%d}: {row.why}"
    )
    try:
        found = steps.here("withdraw", withdraw_everywhere, store, selection, reason)
    except Exception as error:
        logger.warning("%s could not be withdrawn", selection.published.folder, exc_info=True)
        return replace(row, why=f"{row.why}; not withdrawn: {first_line(error)}")
    return replace(row, withdrawn=found[selection.published].number)
