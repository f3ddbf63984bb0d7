"""The Prefect flow that checks a conversion on its target and moves a channel to it.

Where the channel is guarded the run is suspended until a person approves: it holds no worker and
outlives all of them. Then it starts again from the beginning, on any worker of the pool. An
approval holds for one conversion: if the channel points to another one by then, that is asked for
anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Cancelled
from pydantic import Field

from flows.engine import settings
from flows.engine.cancelled import RunCancelledError, end_cancelled
from flows.engine.failures import telling_failures
from flows.engine.names import REFUSED, artifact_key
from flows.engine.prefect_steps import PrefectSteps
from flows.engine.release import RELEASE
from tasks.child import Limits
from tasks.publish.channels import promote
from tasks.publish.promotion import (
    Promotion,
    check_here,
    describe_promotion,
    must_ask,
    points_there,
    require_right,
    select_promoted,
)
from tracefleet.channel import check_channel
from tracefleet.manifest import Manifest
from tracefleet.published import Selection
from tracefleet.store import Store, open_writable

_DAY = 86400


class Approval(RunInput):
    """What a person says about a promotion; a form in Prefect's UI."""

    approve: bool = Field(description="Move the channel; else the run ends and nothing moves.")
    by: str = Field(min_length=1, description="Who says so.")


@flow(
    name="promote-conversion",
    flow_run_name="promote {source} from {channel} to {to}",
    version=RELEASE,
    validate_parameters=True,
)
def promote_conversion(
    store: str,
    source: str,
    to: str = "production",
    channel: str = "latest",
    backend: str | None = None,
    task: str | None = None,
    dtype: str | None = None,
    batch: int | None = None,
    device: str | None = None,
    approve_within_days: Annotated[float, Field(gt=0)] = 7,
    timeout_seconds: Annotated[float, Field(gt=0)] = 3600,
) -> Promotion:
    """Check a conversion on this pool's host, ask a person if need be, and move a channel to it.

    Args:
        store: Root URL of the store.
        source: Name or source of the conversion.
        to: Channel that will point to it.
        channel: Channel that points to it now.
        backend: The one that this deployment's workers have; set by the deployment.
        task: Task of the conversion; none: the only one published. So are dtype and batch.
        dtype: Its dtype.
        batch: Its rows.
        device: Device to check on, such as cuda; none: the CPU, or NeuronCores.
        approve_within_days: How long a guarded channel waits for a person.
        timeout_seconds: Wall seconds for the check.

    Returns:
        Where the channel stands.

    Raises:
        NumericsMismatchError: The host computes something else; nothing was moved.
        NoSamplesError: The conversion can't be checked; nothing was moved.
    """
    settings.show_progress()
    variant = {"task": task, "backend": backend, "dtype": dtype, "batch": batch}
    limits = Limits(timeout=timeout_seconds)
    steps = PrefectSteps(limits=limits, run_id=str(flow_run.id))
    with telling_failures():
        opened = open_writable(store)
        check_channel(to)
        try:
            with steps:
                selection, manifest = steps.here(
                    "select", select_promoted, store, source, channel=channel, **variant
                )
                _check(steps, opened, selection, manifest, to, device)
        except RunCancelledError as error:
            return cast("Promotion", end_cancelled(error))
        approval = None
        if must_ask(opened, selection, to):
            approval = _ask(manifest, to, approve_within_days)
            if not approval.approve:
                return cast("Promotion", _refuse(approval))
        return _move(steps, opened, selection, manifest, to, approval)


def _check(
    steps: PrefectSteps,
    store: Store,
    selection: Selection,
    manifest: Manifest,
    to: str,
    device: str | None,
) -> None:
    """Run the golden samples here, and show what came of them, right or not."""
    report = steps.child("check", check_here, store.url, selection, device)
    create_markdown_artifact(
        key=artifact_key("promotion", selection.slug, manifest.variant.label, to),
        markdown=describe_promotion(store, selection, manifest, report, to),
        description=f"Check of {manifest.source} before it is promoted to {to}",
    )
    require_right(manifest, report)


def _ask(manifest: Manifest, to: str, days: float) -> Approval:
    """Suspend this run until a person answers; return the answer once there is one."""
    form = Approval.with_initial_data(
        description=f"Move channel **{to}** to `{manifest.key[:12]}` of {manifest.source} "
        f"({manifest.variant.label})? Its golden samples were right on this pool's host; the "
        "run's artifact has the figures."
    )
    # The server remembers by this key what was answered: for this conversion and no other.
    key = f"approve-{manifest.key[:16]}"
    return suspend_flow_run(wait_for_input=form, key=key, timeout=int(days * _DAY))


def _refuse(approval: Approval) -> State[Any]:
    return Cancelled(name=REFUSED, message=f"{approval.by} did not approve: nothing was moved.")


def _move(
    steps: PrefectSteps,
    store: Store,
    selection: Selection,
    manifest: Manifest,
    to: str,
    approval: Approval | None,
) -> Promotion:
    # A run that died behind its move is repeated for the event that consumers wait for.
    confirmed = approval is not None or points_there(store, selection, to)

    def move(
        store: Store, manifest: Manifest, _files: dict[str, Path], *, channel: str, name: str | None
    ) -> Promotion:
        _, number = promote(store, selection, to=channel, confirmed=confirmed)
        return Promotion(
            url=f"{store.url}/{selection.folder}",
            key=manifest.key,
            channel=channel,
            number=number,
            approved_by=None if approval is None else approval.by,
        )

    return steps.publish(move, store, manifest, {}, channel=to)
