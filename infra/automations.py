"""Automations of the Prefect server, as code: what happens to runs whose host was lost.

* A run that says it runs and sends no heartbeat is ``Crashed``. Prefect sends one every 30 s
  (``PREFECT_FLOWS_HEARTBEAT_FREQUENCY``); six may be missed, as while the server is restarted.
* A run that a worker took and that never began is ``Crashed`` too.
* What a lost batch run had to make is handed out again by its fleet. A lost fleet run has nobody
  above it: it is scheduled again, plans again, and joins what its batch runs still do.

Rescheduling waits a minute: at once, it kills a worker that runs with ``--limit`` (prefect issues
10632 and 16806).
"""

from __future__ import annotations

from datetime import timedelta

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

HEARTBEAT_SECONDS = 30
#: On every run of our deployments; those of other flows may send their heartbeats as they like.
OURS = "tracefleet"
#: On every run of a deployment that is to be scheduled again when its host was lost.
RESUMES = "resumes"
MISSED = timedelta(seconds=6 * HEARTBEAT_SECONDS)
DELAY = timedelta(seconds=60)
#: A process begins within half a minute of being taken, a container once its image is there: raise
#: this where that is pulled for longer.
NEVER_BEGAN = timedelta(minutes=5)
_STATE = "prefect.flow-run."
_OVER = {_STATE + name for name in ("Completed", "Failed", "Crashed", "Cancelled")}
_TAKEN_UP = {_STATE + name for name in ("AwaitingRetry", "Scheduled", "Late", "Pending", "Running")}


def lost_runs(missed: timedelta = MISSED) -> AutomationCore:
    """Return the automation that ends runs without a heartbeat for so long."""
    return AutomationCore(
        name="tracefleet: a run without heartbeat has crashed",
        description=f"No heartbeat for {missed.seconds} s while running: its host was lost.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={_STATE + "heartbeat"},
            expect={_STATE + "heartbeat", *_OVER, _STATE + "Cancelling", _STATE + "AwaitingRetry"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=_tagged(OURS),
            for_each={"prefect.resource.id"},
            threshold=1,
            within=missed,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message=f"No heartbeat for {missed.seconds} s: the host of the run was lost.",
            )
        ],
    )


def stuck_runs(never_began: timedelta = NEVER_BEGAN) -> AutomationCore:
    """Return the automation that ends runs that a worker took and that never began.

    Heartbeats begin with the run: a host that is lost before that would never be missed.
    """
    return AutomationCore(
        name="tracefleet: a run that never began has crashed",
        description=f"Pending for {never_began.seconds // 60} minutes: its host was lost.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={_STATE + "Pending"},
            expect={*_OVER, *_TAKEN_UP - {_STATE + "Pending"}, _STATE + "Cancelling"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=_tagged(OURS),
            for_each={"prefect.resource.id"},
            threshold=1,
            within=never_began,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message="A worker took it, and it never began.",
            )
        ],
    )


def lost_fleets(delay: timedelta = DELAY) -> AutomationCore:
    """Return the automation that schedules a lost fleet run again after a while."""
    return AutomationCore(
        name="tracefleet: a lost fleet run is scheduled again",
        description="A fleet run that crashed plans again and joins what still runs.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={_STATE + "Crashed"},
            expect=_TAKEN_UP | _OVER - {_STATE + "Crashed"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=_tagged(RESUMES),
            for_each={"prefect.resource.id"},
            threshold=1,
            within=delay,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED,
                name="AwaitingRetry",
                force=False,
                message="Its host was lost.",
            )
        ],
    )


def _tagged(tag: str) -> ResourceSpecification:
    return ResourceSpecification(
        {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"}
    )


AUTOMATIONS = (lost_runs, stuck_runs, lost_fleets)
