"""Plan a fleet: what is fresh, stale, missing, invalid or refused, without reading weights.

``plan`` is called by ``tracefleet plan`` and by the fleet flow. It resolves each checkpoint
once, lists each store once, and compares what a channel points to with what the request asks for
(``tasks.plan.freshness``). Whatever goes wrong is a row, of an entry or of each entry of a store
that does not answer: it stops no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError
from typing import Any, NamedTuple

from tasks.backends.registry import find_backend
from tasks.errors import BackendUnavailableError, ConversionError, may_pass
from tasks.fetch.source import Resolved
from tasks.plan.checkpoints import checkpoint_of, list_unnamed, resolve_all
from tasks.plan.concurrently import catching_errors, map_concurrently
from tasks.plan.contradictions import Mover, find_contradictions
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


class _Lookup(NamedTuple):
    """A request whose checkpoint and task are known, and whose channel is still to be read."""

    row: PlanRow
    request: ConversionRequest
    identity: Identity
    store: ReadableStore

    @property
    def channel(self) -> str:
        """Folder of the channel that should point to the conversion."""
        return channel_of(self.identity, self.request.channel)

    @property
    def named(self) -> str | None:
        """Folder of the same channel under the request's name; None: it has none."""
        request = self.request
        if request.publish_as is None:
            return None
        return slug_folder(request.publish_as, self.identity.variant.label, request.channel)

    @property
    def mover(self) -> Mover:
        """The channels that its conversion would move."""
        folders = [folder for folder in (self.channel, self.named) if folder is not None]
        return Mover(
            name=self.row.name,
            channel=self.request.channel,
            identity=self.identity,
            folders=tuple((self.store.url, folder) for folder in folders),
        )


class _Place(NamedTuple):
    """A store, and the newest schema of manifests that may be written to it."""

    store: ReadableStore
    schema: int


def plan(
    requests: Mapping[str, ConversionRequest | Exception],
    *,
    retry_refused: bool = False,
    on_row: Callable[[PlanRow], None] | None = None,
) -> list[PlanRow]:
    """Return one row for each request, in their order.

    Args:
        requests: Requests by the names of their entries; an error: why there is none.
        retry_refused: Whether to plan as if nothing had been refused before.
        on_row: Called by the calling thread with each row as soon as it is known.
    """
    rows: dict[str, PlanRow] = {}
    urls = {one.store for one in requests.values() if not isinstance(one, Exception)}
    places = {url: catching_errors(_open)(url) for url in urls}
    known = {} if retry_refused else _find_known(places)
    for found in _plan_rows(requests, places):
        row = _spare(found, known)
        rows[row.name] = row
        if on_row is not None:
            on_row(row)
    return [rows[name] for name in requests]


def _find_known(places: Mapping[str, _Place | Exception]) -> dict[str, KnownRefusals]:
    """Return what is remembered in each store that answers."""
    known = {}
    for url, place in places.items():
        if isinstance(place, _Place):
            known[url] = KnownRefusals(store=place.store, now=time.time())
    return known


def _spare(row: PlanRow, known: Mapping[str, KnownRefusals]) -> PlanRow:
    """Return a row, ``refused`` if the very same was refused before."""
    held = None if row.request is None else known.get(row.request.store)
    if held is None:
        return row
    try:
        return held.spare(row)
    except StoreUnavailableError as error:
        return _refuse(row.name, row.request, error, commit=row.commit, task=row.task)


def _plan_rows(
    requests: Mapping[str, ConversionRequest | Exception],
    places: Mapping[str, _Place | Exception],
) -> Iterator[PlanRow]:
    """Yield each row as soon as it is known: refusals first, then those read from channels."""
    right: dict[str, ConversionRequest] = {}
    for name, request in requests.items():
        if isinstance(request, Exception):
            yield _refuse(name, None, request)
        else:
            right[name] = request
    schemas = {url: place.schema for url, place in places.items() if isinstance(place, _Place)}
    for name, request in list(right.items()):
        if isinstance(error := places[request.store], Exception):
            yield _refuse(name, request, error)
            del right[name]
    lookups: list[_Lookup] = []
    for row, request, identity in _identify(right, schemas):
        place = places[request.store]
        if identity is None or isinstance(place, Exception):
            yield row
        else:
            lookups.append(_Lookup(row, request, identity, place.store))
    refused = find_contradictions([lookup.mover for lookup in lookups])
    for lookup in lookups:
        if lookup.row.name in refused:
            yield _refuse(lookup.row.name, lookup.request, refused[lookup.row.name])
    yield from _read_channels([one for one in lookups if one.row.name not in refused])


def _open(url: str) -> _Place:
    store = open_store(url)
    return _Place(store, read_limit(store))


def _identify(
    requests: Mapping[str, ConversionRequest], schemas: Mapping[str, int]
) -> Iterator[tuple[PlanRow, ConversionRequest, Identity | None]]:
    """Yield each row with its identity, or with None if it is refused already."""
    resolved = resolve_all(requests.values())
    described = describe(list_unnamed(requests.values(), resolved, ("task", "lengths")))
    without_task = list_unnamed(requests.values(), resolved, ("task",))
    tasks = find_tasks({found: described[found] for found in without_task})
    backends = {request.backend for request in requests.values()}
    toolchains = {backend: _find_toolchain(backend) for backend in backends}
    for name, request in requests.items():
        found = resolved[checkpoint_of(request)]
        if isinstance(found, Exception):
            yield _refuse_early(name, request, found, None), request, None
            continue
        task = request.task or tasks[found]
        if isinstance(task, Exception):
            yield _refuse_early(name, request, task, found), request, None
            continue
        lengths = request.lengths or find_lengths(described[found], task)
        if isinstance(lengths, Exception):
            yield _refuse_early(name, request, lengths, found, task), request, None
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
        yield row, request, identity


def _find_toolchain(backend: str) -> Toolchain | None:
    """Return this machine's versions; None: only the backend's workers have its packages."""
    try:
        return find_backend(backend).toolchain()
    except (BackendUnavailableError, PackageNotFoundError):
        return None


def _refuse(
    name: str, request: ConversionRequest | None, error: Exception, **known: Any
) -> PlanRow:
    return PlanRow(
        name=name,
        request=request,
        state="invalid",
        error=type(error).__name__,
        message=str(error) or repr(error),
        transient=may_pass(error),
        **{"task": request and request.task, **known},
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
    numbers: dict[str, dict[str, int] | Exception] = {}
    for url, store in stores.items():
        numbers[url] = catching_errors(partial(newest_numbers, store))(sources[url])

    def read(lookup: _Lookup) -> PlanRow:
        newest, number = numbers[lookup.store.url], None
        try:
            if isinstance(newest, Exception):
                raise newest
            number = newest.get(lookup.channel)
            return _read_channel(lookup, number)
        except (ArtifactError, ConversionError) as error:
            if isinstance(error, StoreUnavailableError):
                # A thousand entries need not wait for it one after another.
                numbers[lookup.store.url] = error
            known = {"commit": lookup.row.commit, "task": lookup.row.task, "number": number}
            return _refuse(lookup.row.name, lookup.request, error, **known)

    found = map_concurrently(
        lookups, read, url=lambda lookup: lookup.store.url, what="channels read"
    )
    for _, row in found:
        yield row


def _read_channel(lookup: _Lookup, number: int | None) -> PlanRow:
    found = judge(lookup.store, lookup.identity, lookup.channel, number)
    if found.state == "fresh" and lookup.named is not None:
        found = judge_name(lookup.store, lookup.identity, found, lookup.named)
    return replace(lookup.row, number=number, state=found.state, why=found.why, key=found.key)
