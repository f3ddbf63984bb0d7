"""Plan a fleet: what is fresh, stale, missing, invalid or refused, without reading weights.

``plan`` is called by ``tracefleet plan`` and by the fleet flow. It resolves each checkpoint
once, lists each store once, and compares what a channel points to with what the request asks for
(``tasks.plan.freshness``). An error of a checkpoint or a channel is a row; an error of a whole
store ends the plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from typing import Any, NamedTuple

from tasks.backends.registry import find_backend
from tasks.errors import BackendUnavailableError, ConversionError, RequestError
from tasks.fetch.checkpoint import resolve
from tasks.fetch.source import Resolved
from tasks.plan.concurrently import catching_errors, map_concurrently
from tasks.plan.default_tasks import describe, find_lengths, find_tasks
from tasks.plan.freshness import State, channel_of, judge, judge_name, newest_numbers
from tasks.plan.known import KnownRefusals
from tasks.plan.row import PlanRow
from tasks.publish.identity import Identity
from tasks.publish.refusals import is_remembered
from tasks.publish.schema_limit import read_limit
from tasks.request.attempt import make_attempt, make_early_attempt
from tasks.request.conversion import ConversionRequest
from tasks.request.identify import identify
from tracefleet.channel import slug_folder
from tracefleet.errors import ArtifactError, StoreUnavailableError
from tracefleet.manifest_types import Toolchain
from tracefleet.store import ReadableStore, open_store

__all__ = ["PlanRow", "State", "plan"]

#: Source, revision and permissions: entries that share them are resolved together.
_Checkpoint = tuple[str, str | None, bool, bool]


class _Lookup(NamedTuple):
    """A request whose checkpoint and task are known, and whose channel is still to be read."""

    row: PlanRow
    identity: Identity
    store: ReadableStore

    @property
    def channel(self) -> str:
        """Folder of the channel that should point to the conversion."""
        return channel_of(self.identity, self.row.request.channel)

    @property
    def named(self) -> str | None:
        """Folder of the same channel under the request's name; None: it has none."""
        request = self.row.request
        if request.publish_as is None:
            return None
        return slug_folder(request.publish_as, self.identity.variant.label, request.channel)


def plan(
    requests: Mapping[str, ConversionRequest],
    *,
    retry_refused: bool = False,
    on_row: Callable[[PlanRow], None] | None = None,
) -> list[PlanRow]:
    """Return one row for each request, in their order.

    Args:
        requests: Requests by the names of their entries.
        retry_refused: Whether to plan as if nothing had been refused before.
        on_row: Called by the calling thread with each row as soon as it is known.

    Raises:
        StoreUnavailableError: a store does not answer.
        StoreError: a store can't be opened or listed.
    """
    rows: dict[str, PlanRow] = {}
    urls = {request.store for request in requests.values()}
    stores = {url: open_store(url) for url in urls}
    known = {url: KnownRefusals(store=store, now=time.time()) for url, store in stores.items()}
    for found in _plan_rows(requests, stores):
        row = found if retry_refused else known[found.request.store].spare(found)
        rows[row.name] = row
        if on_row is not None:
            on_row(row)
    return [rows[name] for name in requests]


def _plan_rows(
    requests: Mapping[str, ConversionRequest], stores: Mapping[str, ReadableStore]
) -> Iterator[PlanRow]:
    """Yield each row as soon as it is known: refusals first, then those read from channels."""
    schemas = {url: read_limit(store) for url, store in stores.items()}
    lookups: list[_Lookup] = []
    movers: dict[tuple[str, str], str] = {}
    for row, identity in _identify(requests, schemas):
        if identity is None:
            yield row
            continue
        lookup = _Lookup(row, identity, stores[row.request.store])
        folders = [folder for folder in (lookup.channel, lookup.named) if folder is not None]
        firsts = {movers.setdefault((lookup.store.url, one), row.name) for one in folders}
        if others := firsts - {row.name}:
            yield _refuse_second(row, min(others))
        else:
            lookups.append(lookup)
    yield from _read_channels(lookups)


def _refuse_second(row: PlanRow, first: str) -> PlanRow:
    """Refuse a request that would move another entry's channel."""
    # Both stay stale for ever otherwise: each run takes the channel from the other.
    error = RequestError(
        f"channel: expected a channel that no other entry moves, got {row.request.channel!r}, "
        f"which {first!r} moves too, now that the checkpoint has named the task. Remove one, or "
        "give it another channel, or another name if both have one."
    )
    return _refuse(row.name, row.request, error)


def _identify(
    requests: Mapping[str, ConversionRequest], schemas: Mapping[str, int]
) -> Iterator[tuple[PlanRow, Identity | None]]:
    """Yield each row with its identity, or with None if it is refused already."""
    resolved = _resolve_all(requests.values())
    described = describe(_list_unnamed(requests.values(), resolved, ("task", "lengths")))
    without_task = _list_unnamed(requests.values(), resolved, ("task",))
    tasks = find_tasks({found: described[found] for found in without_task})
    backends = {request.backend for request in requests.values()}
    toolchains = {backend: _find_toolchain(backend) for backend in backends}
    for name, request in requests.items():
        found = resolved[_checkpoint_of(request)]
        if isinstance(found, Exception):
            yield _refuse_early(name, request, found, None), None
            continue
        task = request.task or tasks[found]
        if isinstance(task, Exception):
            yield _refuse_early(name, request, task, found), None
            continue
        lengths = request.lengths or find_lengths(described[found], task)
        if isinstance(lengths, Exception):
            yield _refuse_early(name, request, lengths, found, task), None
            continue
        whole = request.model_copy(update={"task": task, "lengths": lengths})
        schema = schemas[request.store]
        identity = identify(whole, found, toolchains[request.backend], schema=schema)
        row = PlanRow(
            name=name,
            request=request,
            state="missing",
            source=found.source,
            commit=found.commit,
            task=task,
            lengths=lengths,
            weight_bytes=found.weight_bytes,
            attempt=make_attempt(request, identity),
        )
        yield row, identity


def _list_unnamed(
    requests: Iterable[ConversionRequest],
    resolved: Mapping[_Checkpoint, Resolved | Exception],
    fields: Iterable[str],
) -> set[Resolved]:
    """Return the checkpoints of requests that leave out one of the fields."""
    unnamed = set()
    for request in requests:
        found = resolved[_checkpoint_of(request)]
        left_out = None in [getattr(request, name) for name in fields]
        if left_out and isinstance(found, Resolved):
            unnamed.add(found)
    return unnamed


def _checkpoint_of(request: ConversionRequest) -> _Checkpoint:
    return request.source, request.revision, request.allow_pickle, request.trust_remote_code


def _resolve_all(
    requests: Iterable[ConversionRequest],
) -> dict[_Checkpoint, Resolved | Exception]:
    checkpoints = dict.fromkeys(map(_checkpoint_of, requests))
    found = map_concurrently(
        checkpoints, catching_errors(_resolve), url=lambda one: one[0], what="checkpoints resolved"
    )
    return dict(found)


def _resolve(checkpoint: _Checkpoint) -> Resolved:
    source, revision, allow_pickle, trust_remote_code = checkpoint
    return resolve(
        source,
        revision=revision,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )


def _find_toolchain(backend: str) -> Toolchain | None:
    """Return this machine's versions; None: only the backend's workers have its packages."""
    try:
        return find_backend(backend).toolchain()
    except (BackendUnavailableError, PackageNotFoundError):
        return None


def _refuse(name: str, request: ConversionRequest, error: Exception, **known: Any) -> PlanRow:
    return PlanRow(
        name=name,
        request=request,
        state="invalid",
        error=type(error).__name__,
        message=str(error) or repr(error),
        transient=not isinstance(error, ConversionError | ArtifactError),
        **{"task": request.task, **known},
    )


def _refuse_early(
    name: str,
    request: ConversionRequest,
    error: Exception,
    found: Resolved | None,
    task: str | None = None,
) -> PlanRow:
    """Refuse a request whose checkpoint, task or lengths can't be found out."""
    attempt = None
    if isinstance(error, ConversionError) and is_remembered(error):
        attempt = make_early_attempt(request, found, task)
    known = {"commit": found and found.commit, "task": request.task or task}
    return _refuse(name, request, error, attempt=attempt, **known)


def _read_channels(lookups: list[_Lookup]) -> Iterator[PlanRow]:
    sources: dict[str, list[str]] = {}
    stores = {lookup.store.url: lookup.store for lookup in lookups}
    for lookup in lookups:
        sources.setdefault(lookup.store.url, []).append(lookup.identity.source)
    numbers = {url: newest_numbers(store, sources[url]) for url, store in stores.items()}
    found = map_concurrently(
        lookups,
        lambda lookup: _read_channel(lookup, numbers[lookup.store.url].get(lookup.channel)),
        url=lambda lookup: lookup.store.url,
        what="channels read",
    )
    for _, row in found:
        yield row


def _read_channel(lookup: _Lookup, number: int | None) -> PlanRow:
    row = replace(lookup.row, number=number)
    try:
        found = judge(lookup.store, lookup.identity, lookup.channel, number)
        if found.state == "fresh" and lookup.named is not None:
            found = judge_name(lookup.store, lookup.identity, found, lookup.named)
    except StoreUnavailableError:
        raise  # an error of the store, not of this request
    except (ArtifactError, ConversionError) as error:
        known = {"commit": row.commit, "task": row.task, "number": number}
        return _refuse(row.name, row.request, error, **known)
    return replace(row, state=found.state, why=found.why, key=found.key)
