"""Whether this run, or one above it, is being cancelled: runs look for themselves.

A worker ends the process of a run that is cancelled as long as Prefect's observer tells it to, and
the observer gives up after half a minute without a server. So a run looks between its steps.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.context import SettingsContext, get_settings_context
from prefect.runtime import flow_run
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    Settings,
)
from prefect.states import Cancelled

from flows.engine import settings as engine

logger = logging.getLogger(__name__)

_ENDED_FROM_OUTSIDE = [StateType.CANCELLING, StateType.CANCELLED, StateType.CRASHED]
_ANSWER_SECONDS, _PATIENT_SECONDS = 5.0, 15.0
#: A tiny checkpoint has several steps in a second, and each look costs the server some 20 ms.
_LOOK_EVERY_SECONDS = 1.0
_above: ContextVar[tuple[UUID, ...]] = ContextVar("runs above this one", default=())
_looked: ContextVar[float] = ContextVar("when this was looked for last", default=0.0)


class RunCancelledError(BaseException):
    """This run or one above it is being cancelled.

    No ``Exception``: what catches every error of a step must not take it for one.
    """


@contextmanager
def under(*runs: UUID) -> Iterator[None]:
    """Let what runs inside end with these runs too, when they are cancelled."""
    token = _above.set((*_above.get(), *runs))
    try:
        yield
    finally:
        _above.reset(token)


def stop_if_cancelled(*, always: bool = False) -> None:
    """Look, in one request; a server that does not answer now is asked the next time.

    Args:
        always: look even if a run of this process did so a moment ago.

    Raises:
        RunCancelledError: this run or one above it is being cancelled, or this run was given up
            for lost, so that another may do its work by now.
    """
    own = flow_run.id
    # With an embedded server nobody could cancel but by ending this process.
    if own is None or not engine.has_server():
        return
    if not always and time.monotonic() - _looked.get() < _LOOK_EVERY_SECONDS:
        return
    _looked.set(time.monotonic())
    for run in _is_ended_from_outside([own, *map(str, _above.get())]):
        # A run above that crashed is begun again, and joins what its runs did meanwhile.
        if run["id"] == own or run["state_type"] != StateType.CRASHED:
            raise RunCancelledError(f"{run['name']} is {run['state_name']}")


def end_cancelled(error: RunCancelledError) -> State[Any]:
    """Return the end of a flow that stopped: what a flow returns as a state is its state."""
    return Cancelled(message=str(error))


def _is_ended_from_outside(runs: list[str]) -> list[dict[str, Any]]:
    wanted = {"id": {"any_": runs}, "state": {"type": {"any_": _ENDED_FROM_OUTSIDE}}}
    try:
        with asking_once() as client:
            # By hand: the client's own methods have no time limit for one request.
            answer = client.request(
                "POST", "/flow_runs/filter", json={"flow_runs": wanted}, timeout=_ANSWER_SECONDS
            )
            found: list[dict[str, Any]] = answer.json()
    except Exception:
        logger.debug("whether this run is being cancelled is not known", exc_info=True)
        return []
    return found


@contextmanager
def asking_once() -> Iterator[SyncPrefectClient]:
    """Open a client that asks once and waits for seconds: for whoever can't wait for a server."""
    context = get_settings_context()
    settings = _without_retries(PREFECT_API_URL.value())
    with (
        SettingsContext(profile=context.profile, settings=settings),
        get_client(sync_client=True) as client,
    ):
        yield client


@functools.cache
def _without_retries(_url: str | None) -> Settings:
    """Return the settings of this process but for retries; to copy them takes 30 ms."""
    updates: dict[Any, Any] = {
        PREFECT_CLIENT_MAX_RETRIES: 0,
        PREFECT_API_REQUEST_TIMEOUT: _PATIENT_SECONDS,
    }
    return get_settings_context().settings.copy_with_update(updates=updates)
