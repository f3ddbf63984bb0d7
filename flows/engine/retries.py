"""Tasks that talk to a network: retried with jitter for transient errors, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.assets import Asset, materialize
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from tasks.errors import may_pass


class IncompleteError(Exception):
    """The network hid a part of an answer.

    Attributes:
        found: the answer as far as it is known.
    """

    def __init__(self, message: str, found: Any) -> None:
        self.found = found
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        """Carry the answer across the process boundary."""
        return IncompleteError, (str(self), self.found)


def ask_again(function: Callable[..., Any], *arguments: Any, name: str, **options: Any) -> Any:
    """Call a step that raises `IncompleteError` as a task, until its answer is whole.

    Returns:
        The answer; after the last try, as far as it is known.
    """
    task = network_task(function, name=name, **options)
    answer = task(*arguments, return_state=True).result(raise_on_failure=False)
    if isinstance(answer, IncompleteError):
        return answer.found
    if isinstance(answer, Exception):
        raise answer
    return answer


def network_task(
    function: Callable[..., Any], *, asset: Asset | None = None, **options: Any
) -> Any:
    """Return a task over a step; where there is an asset it materialises it.

    Paths and plain data only, and no caching by Prefect: the conversion key is the cache.
    """
    options = {
        "cache_policy": NO_CACHE,
        "retries": 3,
        "retry_delay_seconds": exponential_backoff(2),
        "retry_jitter_factor": 0.5,
        "retry_condition_fn": is_transient,
        **options,
    }
    wrap: Any = task(**options) if asset is None else materialize(asset, **options)
    return wrap(function)


def is_transient(_task: Task[..., object], _run: TaskRun, state: State[object]) -> bool:
    """Network and capacity errors are worth another try; a verdict or a refusal never is."""
    try:
        state.result()
    except Exception as error:
        return may_pass(error)
    return False
