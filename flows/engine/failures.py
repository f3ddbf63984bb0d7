"""The reason of a failure as an event, where ``prefect deployment run --watch`` shows it.

Beside events it prints the name of the last state alone, and logs only from a server that streams
them. The event comes before that state, behind which nobody looks any further.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.events import Event, Resource
from prefect.runtime import flow_run

logger = logging.getLogger(__name__)

EVENT = "tracefleet.failed"
_LONGEST = 600


@contextmanager
def telling_failures() -> Iterator[None]:
    """Make an event of the reason of what is raised inside."""
    try:
        yield
    except Exception as error:
        if flow_run.id is not None:
            _emit(str(flow_run.id), f"{type(error).__name__}: {error}"[:_LONGEST])
        raise


def _emit(run: str, reason: str) -> None:
    named = {"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.name": reason}
    event = Event(event=EVENT, resource=Resource(named), payload={"run": flow_run.name})
    try:
        with get_client(sync_client=True) as client:
            # At once: what `emit_event` queues may come behind the state.
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
    except Exception:
        logger.warning("the reason could not be told as an event", exc_info=True)
