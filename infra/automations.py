"""Automations of the Prefect server, as code, for runs whose host was lost.

* A run in state ``Running`` that sends no heartbeat becomes ``Crashed``. Prefect sends one every
  30 s (``PREFECT_FLOWS_HEARTBEAT_FREQUENCY``).
* A run that a worker took and that never began becomes ``Crashed`` too.
* The fleet run assigns the requests of a lost batch run again. A lost fleet run has no parent: it
  is scheduled again, plans again, and joins the batch runs that still run.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

HEARTBEAT_SECONDS = 30
#: Tag of every run of our deployments: other flows may send heartbeats at another rate, or none.
OURS = "tracefleet"
#: Tag of every run of a deployment that is scheduled again when its host was lost.
RESUMES = "resumes"
#: Six heartbeats: while the server restarts, some are lost.
MISSED = timedelta(seconds=6 * HEARTBEAT_SECONDS)
#: Rescheduling at once kills a worker that runs with ``--limit`` (prefect issues 10632 and 16806).
DELAY = timedelta(seconds=60)
#: A process begins within half a minute, a container after its image was pulled: raise this if that
#: takes longer.
NEVER_BEGAN = timedelta(minutes=5)
_STATE = "prefect.flow-run."
#: `KnownRefusals`: how a fleet completes where all that is not current was refused before.
#: `Refused`: how a promotion is cancelled to which a person said no.
_NAMES = ("Completed", "KnownRefusals", "Failed", "Crashed", "Cancelled", "Refused")
_FINAL = {_STATE + name for name in _NAMES}
#: A run that left its host alive: it is being cancelled, handed back, or waits for a person.
_LEFT = {_STATE + name for name in ("Cancelling", "AwaitingRetry", "Suspended")}
_ALIVE = {_STATE + name for name in ("AwaitingRetry", "Scheduled", "Late", "Pending", "Running")}


def lost_runs(missed: timedelta = MISSED) -> AutomationCore:
    """Return the automation that crashes running runs without a heartbeat for so long."""
    return AutomationCore(
        name="tracefleet: a run without heartbeat has crashed",
        description=f"No heartbeat for {missed.seconds} s while running: its host was lost.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={_STATE + "heartbeat"},
            expect={_STATE + "heartbeat", *_FINAL, *_LEFT},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=match_tag(OURS),
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
    """Return the automation that crashes runs that a worker took and that never began."""
    # Heartbeats start with the run: without this, a host lost before that would go unnoticed.
    return AutomationCore(
        name="tracefleet: a run that never began has crashed",
        description=f"Pending for {never_began.seconds // 60} minutes: its host was lost.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={_STATE + "Pending"},
            expect={*_FINAL, *_ALIVE - {_STATE + "Pending"}, _STATE + "Cancelling"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=match_tag(OURS),
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
            expect=_ALIVE | _FINAL - {_STATE + "Crashed"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=match_tag(RESUMES),
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


def match_tag(tag: str) -> ResourceSpecification:
    """Return what events of runs with a tag have in common."""
    return ResourceSpecification(
        {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"}
    )


AUTOMATIONS = (lost_runs, stuck_runs, lost_fleets)
