"""Plan a fleet: what is fresh, stale, missing or invalid, without reading weights.

``plan`` is called by ``tracefleet plan`` and by the fleet flow. It resolves each checkpoint
once, lists each store once, and compares what a channel points to with what the request asks for
(``tasks.plan.freshness``). Whatever goes wrong is a row, of an entry or of each entry of a store
that does not answer: it stops no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError
from typing import Any, NamedTuple

from tasks.backends.registry import find_backend
from tasks.errors import BackendUnavailableError, ConversionError
from tasks.plan.checkpoints import checkpoint_of, list_unnamed, resolve_all
from tasks.plan.concurrently import catching_errors, map_concurrently
from tasks.plan.contradictions import Mover, find_contradictions
from tasks.plan.default_tasks import describe, find_lengths, find_tasks
from tasks.plan.freshness import State, channel_of, judge, judge_name, newest_numbers
from tasks.publish.identity import Identity
from tasks.publish.schema_limit import read_limit
from tasks.request.conversion import ConversionRequest
from tasks.request.identify import identify
from tracefleet.channel import slug_folder
from tracefleet.errors import ArtifactError, StoreUnavailableError
from tracefleet.manifest_types import Toolchain
from tracefleet.store import ReadableStore, open_store

__all__ = ["PlanRow", "State", "plan"]


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """Finding of the plan about one request.

    Attributes:
        name: Name of the entry in the fleet file.
        request: The request; None: the entry makes none.
        state: ``fresh``: nothing to do; ``stale``, ``missing``: to be converted; ``invalid``: the
            request was refused, or the published conversion is damaged or withdrawn.
        why: Reasons for being stale or missing, or notes on a fresh one.
        source: Source as the hub has it; None: refused before that.
        commit: Commit that the revision resolved to; None: refused before that.
        task: Task of the request, or the one of the checkpoint's own files.
        lengths: Standard lengths of the request, or by default; None: refused before that.
        weight_bytes: Size of the checkpoint's weights; None: refused before that.
        key: Conversion key. Where only workers know the toolchain: the key with the toolchain of
            the current conversion, None if there is none.
        number: Current number of the channel; None: nothing is published in it.
        error: Type name of the error that refused it.
        message: Message of that error.
        transient: Whether the error came from the network, so that another try may help.
    """

    name: str
    request: ConversionRequest | None
    state: State
    why: tuple[str, ...] = ()
    source: str | None = None
    commit: str | None = None
    task: str | None = None
    lengths: tuple[int, ...] | None = None
    weight_bytes: int | None = None
    key: str | None = None
    number: int | None = None
    error: str | None = None
    message: str = ""
    transient: bool = False


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
    on_row: Callable[[PlanRow], None] | None = None,
) -> list[PlanRow]:
    """Return one row for each request, in their order.

    Args:
        requests: Requests by the names of their entries; an error: why there is none.
        on_row: Called by the calling thread with each row as soon as it is known.
    """
    rows: dict[str, PlanRow] = {}
    for row in _plan_rows(requests):
        rows[row.name] = row
        if on_row is not None:
            on_row(row)
    return [rows[name] for name in requests]


def _plan_rows(requests: Mapping[str, ConversionRequest | Exception]) -> Iterator[PlanRow]:
    """Yield each row as soon as it is known: refusals first, then those read from channels."""
    right: dict[str, ConversionRequest] = {}
    for name, request in requests.items():
        if isinstance(request, Exception):
            yield _refuse(name, None, request)
        else:
            right[name] = request
    urls = {request.store for request in right.values()}
    places = {url: catching_errors(_open)(url) for url in urls}
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
            yield _refuse(name, request, found), request, None
            continue
        task = request.task or tasks[found]
        if isinstance(task, Exception):
            yield _refuse(name, request, task, commit=found.commit), request, None
            continue
        lengths = request.lengths or find_lengths(described[found], task)
        if isinstance(lengths, Exception):
            known = {"commit": found.commit, "task": task}
            yield _refuse(name, request, lengths, **known), request, None
            continue
        row = PlanRow(
            name=name,
            request=request,
            state="missing",
            source=found.source,
            commit=found.commit,
            task=task,
            lengths=lengths,
            weight_bytes=found.weight_bytes,
        )
        whole = request.model_copy(update={"task": task, "lengths": lengths})
        schema = schemas[request.store]
        yield row, request, identify(whole, found, toolchains[request.backend], schema=schema)


def _find_toolchain(backend: str) -> Toolchain | None:
    """Return this machine's versions; None: only the backend's workers have its packages."""
    try:
        return find_backend(backend).toolchain()
    except (BackendUnavailableError, PackageNotFoundError):
        return None


def is_transient(error: Exception) -> bool:
    """Whether another try may help: it came from the network, or from a store that is away."""
    if isinstance(error, StoreUnavailableError):
        return True
    return not isinstance(error, ConversionError | ArtifactError)


def _refuse(
    name: str, request: ConversionRequest | None, error: Exception, **known: Any
) -> PlanRow:
    return PlanRow(
        name=name,
        request=request,
        state="invalid",
        error=type(error).__name__,
        message=str(error) or repr(error),
        transient=is_transient(error),
        **{"task": request and request.task, **known},
    )


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
