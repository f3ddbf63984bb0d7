"""Tasks that talk to a network: retried with jitter for transient errors, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.assets import Asset, materialize
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from tasks.errors import ConversionError
from tasks.plan.fleet import PlanRow
from tracefleet.errors import ArtifactError, StoreUnavailableError


class PlanIncompleteError(Exception):
    """Some checkpoints of a plan could not be reached.

    Attributes:
        rows: of the plan.
    """

    def __init__(self, rows: list[PlanRow]) -> None:
        self.rows = rows
        super().__init__("; ".join(f"{r.name}: {r.error}" for r in rows if r.transient))

    def __reduce__(self) -> tuple[object, ...]:
        """Carry the rows across the process boundary."""
        return PlanIncompleteError, (self.rows,)


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
    except StoreUnavailableError:
        return True
    except (ConversionError, ArtifactError):
        return False
    except Exception:
        return True
    return False
