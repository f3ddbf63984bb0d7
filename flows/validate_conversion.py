"""The Prefect flow that runs a candidate on a device host, and publishes it if it is right."""

from __future__ import annotations

from typing import cast

from prefect import flow
from prefect.runtime import flow_run

from flows.convert import validate
from flows.engine import settings
from flows.engine.cancelled import RunCancelledError, end_cancelled
from flows.engine.failures import telling_failures
from flows.engine.prefect_steps import PrefectSteps
from flows.engine.record import Conversion
from flows.engine.release import RELEASE
from tasks.child import Limits


def _run_name() -> str:
    conversion: str = flow_run.parameters["conversion"]
    source, _, key = conversion.rstrip("/").rpartition("/")
    return f"{source.rpartition('/')[2]} {key[:12]}"


@flow(
    name="validate-conversion", flow_run_name=_run_name, version=RELEASE, validate_parameters=True
)
def validate_conversion(
    conversion: str,
    backend: str | None = None,
    channel: str = "latest",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    timeout_seconds: float = 3600,
) -> Conversion:
    """Run a candidate's programs on this host's device; nothing wrong is ever published.

    Args:
        conversion: URL of the candidate's folder, as the conversion told it.
        backend: The one that this deployment's workers have; set by the deployment.
        channel: Channel that will point to the conversion once it is validated.
        allow_pickle: As for convert-checkpoint: read pickled weights.
        trust_remote_code: As for convert-checkpoint: run the checkpoint's code.
        timeout_seconds: Wall seconds for each step in a child process.

    Returns:
        What came of it, with the conversion's URL and manifest.
    """
    settings.show_progress()
    with telling_failures():
        steps = PrefectSteps(limits=Limits(timeout=timeout_seconds), run_id=str(flow_run.id))
        try:
            return validate(
                conversion,
                steps,
                backend=backend,
                channel=channel,
                allow_pickle=allow_pickle,
                trust_remote_code=trust_remote_code,
                timeout_seconds=timeout_seconds,
            )
        except RunCancelledError as error:
            return cast("Conversion", end_cancelled(error))
