"""Plan: what of a fleet is fresh, stale, missing or invalid, without a byte of weights.

``plan`` is called by ``python -m flows plan`` and by the fleet flow. Each checkpoint is resolved
once, each store is listed once, and what a channel points to is compared with what is wanted now
(``tasks.plan.freshness``). A checkpoint or a channel that is wrong is a row, never the end of the
plan; a store that can't be listed or does not answer is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from typing import Any, NamedTuple

from tasks.backends.registry import find_backend
from tasks.errors import BackendUnavailableError, ConversionError, RequestError
from tasks.fetch.checkpoint import Resolved, resolve
from tasks.plan.concurrently import each, tried
from tasks.plan.default_tasks import tasks_of
from tasks.plan.freshness import Identity, State, judge, newest_numbers
from tracefleet.errors import ArtifactError, StoreUnavailableError
from tracefleet.manifest import Toolchain, Variant
from tracefleet.store import ReadableStore, open_store

__all__ = ["PlanRow", "State", "Wanted", "plan"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a plan has to know of one request.

    Attributes:
        name: of the entry in the fleet file.
        source: where the checkpoint is.
        revision: branch, tag or commit of a hub source.
        task: Hugging Face task name; None: what the checkpoint's own files name.
        backend: what runs the artifact.
        dtype: of the weights in the artifact.
        batch: rows in one traced call.
        lengths: standard lengths, ascending.
        options: what else the request chose that is part of the conversion key.
        store: root URL.
        channel: that shall point to the conversion.
        allow_pickle: take pickle weights if there are no others.
        trust_remote_code: take the checkpoint's own Python files.
    """

    name: str
    source: str
    revision: str | None
    task: str | None
    backend: str
    dtype: str
    batch: int
    lengths: tuple[int, ...]
    options: dict[str, str]
    store: str
    channel: str
    allow_pickle: bool
    trust_remote_code: bool


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """What the plan found out about one request.

    Attributes:
        wanted: the request.
        state: ``fresh``: nothing to do; ``stale``, ``missing``: to be converted; ``invalid``: it
            was refused, or what is published is damaged.
        why: what makes it stale or missing, or what to know of a fresh one.
        commit: what the revision resolved to; None: it was refused before.
        task: asked for, or found out.
        key: the conversion key. Where only workers know the toolchain it is the key with that of
            the current conversion, None if there is none.
        number: the channel's current number; None: nothing is published in it.
        error: type name of what refused it.
        message: what that said.
        transient: it was the network that refused, and another try may help.
    """

    wanted: Wanted
    state: State
    why: tuple[str, ...] = ()
    commit: str | None = None
    task: str | None = None
    key: str | None = None
    number: int | None = None
    error: str | None = None
    message: str = ""
    transient: bool = False


class _Ask(NamedTuple):
    """What a checkpoint is resolved by: entries that share it are resolved together."""

    source: str
    revision: str | None
    allow_pickle: bool
    trust_remote_code: bool

    @classmethod
    def of(cls, wanted: Wanted) -> _Ask:
        return cls(wanted.source, wanted.revision, wanted.allow_pickle, wanted.trust_remote_code)


class _Look(NamedTuple):
    """A request whose checkpoint and task are known: what is left is to look at its channel."""

    position: int
    wanted: Wanted
    identity: Identity
    store: ReadableStore


def plan(
    wanted: Sequence[Wanted], *, on_row: Callable[[PlanRow], None] | None = None
) -> list[PlanRow]:
    """Return one row for each request, in their order.

    Args:
        wanted: the requests.
        on_row: called by the calling thread with each row as soon as it is known.

    Raises:
        StoreUnavailableError: a store does not answer.
        StoreError: a store can't be opened or listed.
    """
    stores = {url: open_store(url) for url in {one.store for one in wanted}}
    rows: dict[int, PlanRow] = {}
    looks: list[_Look] = []
    movers: dict[tuple[str, str], Wanted] = {}
    for position, found in enumerate(_identify(wanted)):
        one = wanted[position]
        if isinstance(found, Identity):
            first = movers.setdefault((stores[one.store].url, found.log), one)
            found = found if first is one else _second(first, one)
        if isinstance(found, PlanRow):
            rows[position] = _told(found, on_row)
        else:
            looks.append(_Look(position, one, found, stores[one.store]))
    for look, row in _look_at_all(looks):
        rows[look.position] = _told(row, on_row)
    return [rows[position] for position in range(len(wanted))]


def _second(first: Wanted, wanted: Wanted) -> PlanRow:
    """Refuse what would move another entry's channel: each run would take it from the other."""
    error = RequestError(
        f"channel: expected a channel that no other entry moves, got {wanted.channel!r}, which "
        f"{first.name!r} moves too, now that the checkpoint has named the task. Remove one, or "
        "give it another channel."
    )
    return _refused(wanted, error)


def _told(row: PlanRow, on_row: Callable[[PlanRow], None] | None) -> PlanRow:
    if on_row is not None:
        on_row(row)
    return row


def _identify(wanted: Sequence[Wanted]) -> list[Identity | PlanRow]:
    """Return what is wanted by commit, task and toolchain, or the row that refuses it."""
    asks = dict.fromkeys(_Ask.of(one) for one in wanted)
    resolved = dict(each(asks, tried(_resolve), url=_source, what="checkpoints resolved"))
    unnamed = {_Ask.of(one) for one in wanted if one.task is None}
    known = [found for ask in unnamed if isinstance(found := resolved[ask], Resolved)]
    tasks = tasks_of(known)
    toolchains = {backend: _toolchain(backend) for backend in {one.backend for one in wanted}}
    identities: list[Identity | PlanRow] = []
    for one in wanted:
        found = resolved[_Ask.of(one)]
        if isinstance(found, Exception):
            identities.append(_refused(one, found))
        elif isinstance(task := one.task or tasks[found], Exception):
            identities.append(_refused(one, task, commit=found.commit))
        else:
            identities.append(_identity(one, found, task, toolchains[one.backend]))
    return identities


def _source(ask: _Ask) -> str:
    return ask.source


def _resolve(ask: _Ask) -> Resolved:
    return resolve(
        ask.source,
        revision=ask.revision,
        allow_pickle=ask.allow_pickle,
        trust_remote_code=ask.trust_remote_code,
    )


def _identity(wanted: Wanted, found: Resolved, task: str, toolchain: Toolchain | None) -> Identity:
    variant = Variant(task=task, backend=wanted.backend, dtype=wanted.dtype, batch=wanted.batch)
    return Identity(
        source=found.source,
        commit=found.commit,
        variant=variant,
        lengths=wanted.lengths,
        options=wanted.options,
        toolchain=toolchain,
        channel=wanted.channel,
    )


def _toolchain(backend: str) -> Toolchain | None:
    """Return this machine's versions; None where only the backend's workers have its packages."""
    try:
        return find_backend(backend).toolchain()
    except (BackendUnavailableError, PackageNotFoundError):
        return None


def _refused(wanted: Wanted, error: Exception, **known: Any) -> PlanRow:
    return PlanRow(
        wanted=wanted,
        state="invalid",
        error=type(error).__name__,
        message=str(error) or repr(error),
        transient=not isinstance(error, ConversionError | ArtifactError),
        **{"task": wanted.task, **known},
    )


def _look_at_all(looks: list[_Look]) -> Iterator[tuple[_Look, PlanRow]]:
    stores = {look.store.url: look.store for look in looks}
    numbers = {
        url: newest_numbers(store, (one.identity.source for one in looks if one.store.url == url))
        for url, store in stores.items()
    }
    return each(
        looks,
        lambda look: _row(look, numbers[look.store.url].get(look.identity.log)),
        url=lambda look: look.store.url,
        what="channels read",
    )


def _row(look: _Look, number: int | None) -> PlanRow:
    known: dict[str, Any] = {
        "commit": look.identity.commit,
        "task": look.identity.variant.task,
        "number": number,
    }
    try:
        found = judge(look.store, look.identity, number)
    except StoreUnavailableError:
        raise  # says something about the store, not about this request
    except (ArtifactError, ConversionError) as error:
        return _refused(look.wanted, error, **known)
    return PlanRow(wanted=look.wanted, state=found.state, why=found.why, key=found.key, **known)
