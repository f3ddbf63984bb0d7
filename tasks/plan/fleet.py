"""Plan: what of a fleet is fresh, stale, missing or invalid, without a byte of weights.

``plan`` is called by ``python -m flows plan`` and by the fleet flow. Each checkpoint is resolved
once, each store is listed once, and what a channel points to is compared with what is wanted now
(``tasks.plan.freshness``). A checkpoint or a channel that is wrong is a row, never the end of the
plan; a store that can't be listed or does not answer is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from typing import Any, NamedTuple

from tasks.backends.registry import find_backend
from tasks.errors import BackendUnavailableError, ConversionError, RequestError
from tasks.fetch.checkpoint import resolve
from tasks.fetch.source import Resolved
from tasks.plan.concurrently import catching_errors, map_concurrently
from tasks.plan.default_tasks import find_tasks
from tasks.plan.freshness import State, channel_of, judge, newest_numbers
from tasks.publish.identity import Identity
from tasks.request.conversion import ConversionRequest
from tasks.request.identify import identify
from tracefleet.errors import ArtifactError, StoreUnavailableError
from tracefleet.manifest_types import Toolchain
from tracefleet.store import ReadableStore, open_store

__all__ = ["PlanRow", "State", "plan"]

#: Source, revision and permissions: entries that share them are resolved together.
_Checkpoint = tuple[str, str | None, bool, bool]


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """What the plan found out about one request.

    Attributes:
        name: Name of the entry in the fleet file.
        request: The request.
        state: ``fresh``: nothing to do; ``stale``, ``missing``: to be converted; ``invalid``: it
            was refused, or what is published is damaged.
        why: What makes it stale or missing, or what to know of a fresh one.
        commit: What the revision resolved to; None: it was refused before.
        task: The request's, or the one of the checkpoint's own files.
        weight_bytes: Size of the checkpoint's weights; None: it was refused before.
        key: The conversion key. Where only workers know the toolchain it is the key with that of
            the current conversion, None if there is none.
        number: The channel's current number; None: nothing is published in it.
        error: Type name of what refused it.
        message: Message of that error.
        transient: Whether it was the network that refused, so that another try may help.
    """

    name: str
    request: ConversionRequest
    state: State
    why: tuple[str, ...] = ()
    commit: str | None = None
    task: str | None = None
    weight_bytes: int | None = None
    key: str | None = None
    number: int | None = None
    error: str | None = None
    message: str = ""
    transient: bool = False


class _Look(NamedTuple):
    """A request whose checkpoint and task are known: what is left is to look at its channel."""

    row: PlanRow
    identity: Identity
    store: ReadableStore

    @property
    def channel(self) -> str:
        return channel_of(self.identity, self.row.request.channel)


def plan(
    requests: Mapping[str, ConversionRequest], *, on_row: Callable[[PlanRow], None] | None = None
) -> list[PlanRow]:
    """Return one row for each request, in their order.

    Args:
        requests: Requests by the names of their entries.
        on_row: Called by the calling thread with each row as soon as it is known.

    Raises:
        StoreUnavailableError: a store does not answer.
        StoreError: a store can't be opened or listed.
    """
    rows: dict[str, PlanRow] = {}
    for row in _plan_rows(requests):
        rows[row.name] = row
        if on_row is not None:
            on_row(row)
    return [rows[name] for name in requests]


def _plan_rows(requests: Mapping[str, ConversionRequest]) -> Iterator[PlanRow]:
    """Yield each row as soon as it is known: refusals first, then what the channels say."""
    stores = {url: open_store(url) for url in {one.store for one in requests.values()}}
    looks: list[_Look] = []
    movers: dict[tuple[str, str], str] = {}
    for row, identity in _identify(requests):
        if identity is None:
            yield row
            continue
        look = _Look(row, identity, stores[row.request.store])
        first = movers.setdefault((look.store.url, look.channel), row.name)
        if first == row.name:
            looks.append(look)
        else:
            yield _refuse_second(row, first)
    yield from _look_at_all(looks)


def _refuse_second(row: PlanRow, first: str) -> PlanRow:
    """Refuse what would move another entry's channel: each run would take it from the other."""
    error = RequestError(
        f"channel: expected a channel that no other entry moves, got {row.request.channel!r}, "
        f"which {first!r} moves too, now that the checkpoint has named the task. Remove one, or "
        "give it another channel."
    )
    return _refused(row.name, row.request, error)


def _identify(
    requests: Mapping[str, ConversionRequest],
) -> Iterator[tuple[PlanRow, Identity | None]]:
    """Yield each row with its identity, or with None if it is refused already."""
    checkpoints = {name: _checkpoint_of(request) for name, request in requests.items()}
    resolved = _resolve_all(checkpoints.values())
    unnamed = {checkpoints[name] for name, one in requests.items() if one.task is None}
    found_unnamed = [resolved[checkpoint] for checkpoint in unnamed]
    tasks = find_tasks(one for one in found_unnamed if isinstance(one, Resolved))
    toolchains = {name: _toolchain(name) for name in {one.backend for one in requests.values()}}
    for name, request in requests.items():
        found = resolved[checkpoints[name]]
        if isinstance(found, Exception):
            yield _refused(name, request, found), None
            continue
        task = request.task or tasks[found]
        if isinstance(task, Exception):
            yield _refused(name, request, task, commit=found.commit), None
            continue
        with_task = request.model_copy(update={"task": task})
        yield (
            PlanRow(
                name=name,
                request=request,
                state="missing",
                commit=found.commit,
                task=task,
                weight_bytes=found.weight_bytes,
            ),
            identify(with_task, found, toolchains[request.backend]),
        )


def _checkpoint_of(request: ConversionRequest) -> _Checkpoint:
    return request.source, request.revision, request.allow_pickle, request.trust_remote_code


def _resolve_all(checkpoints: Iterable[_Checkpoint]) -> dict[_Checkpoint, Resolved | Exception]:
    once = dict.fromkeys(checkpoints)
    found = map_concurrently(
        once, catching_errors(_resolve), url=lambda one: one[0], what="checkpoints resolved"
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


def _toolchain(backend: str) -> Toolchain | None:
    """Return this machine's versions; None where only the backend's workers have its packages."""
    try:
        return find_backend(backend).toolchain()
    except (BackendUnavailableError, PackageNotFoundError):
        return None


def _refused(name: str, request: ConversionRequest, error: Exception, **known: Any) -> PlanRow:
    return PlanRow(
        name=name,
        request=request,
        state="invalid",
        error=type(error).__name__,
        message=str(error) or repr(error),
        transient=not isinstance(error, ConversionError | ArtifactError),
        **{"task": request.task, **known},
    )


def _look_at_all(looks: list[_Look]) -> Iterator[PlanRow]:
    sources: dict[str, list[str]] = {}
    stores = {look.store.url: look.store for look in looks}
    for look in looks:
        sources.setdefault(look.store.url, []).append(look.identity.source)
    numbers = {url: newest_numbers(store, sources[url]) for url, store in stores.items()}
    found = map_concurrently(
        looks,
        lambda look: _look_at(look, numbers[look.store.url].get(look.channel)),
        url=lambda look: look.store.url,
        what="channels read",
    )
    for _, row in found:
        yield row


def _look_at(look: _Look, number: int | None) -> PlanRow:
    row = replace(look.row, number=number)
    try:
        found = judge(look.store, look.identity, look.channel, number)
    except StoreUnavailableError:
        raise  # says something about the store, not about this request
    except (ArtifactError, ConversionError) as error:
        known = {"commit": row.commit, "task": row.task, "number": number}
        return _refused(row.name, row.request, error, **known)
    return replace(row, state=found.state, why=found.why, key=found.key)
