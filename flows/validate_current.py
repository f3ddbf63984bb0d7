"""The Prefect flow that runs the gate again on current conversions, with its worker's versions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.engine import settings
from flows.engine.cancelled import RunCancelledError, end_cancelled
from flows.engine.failures import telling_failures
from flows.engine.names import artifact_key, require_store
from flows.engine.prefect_steps import PrefectSteps
from flows.engine.release import RELEASE
from flows.judge_current import Choice, judge_current
from tasks.report.current import CurrentRow, render_rows, require_proved


@flow(
    name="validate-current",
    flow_run_name="validate {store}",
    version=RELEASE,
    validate_parameters=True,
)
def validate_current(
    store: str | None = None,
    sources: list[str] | None = None,
    task: str | None = None,
    dtype: str | None = None,
    channel: str = "latest",
    withdraw: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    timeout_seconds: float = 3600,
) -> Sequence[CurrentRow]:
    """Run the whole gate on current jit conversions, without tracing; nothing is published.

    Args:
        store: Root URL of the store; none: the run is refused.
        sources: Names of checkpoints; none: every one in the store.
        task: Only this task.
        dtype: Only this dtype.
        channel: Channel whose current conversions are tried.
        withdraw: Withdraw what fails, so that readers refuse it.
        allow_pickle: As for convert-checkpoint: read pickled weights.
        trust_remote_code: As for convert-checkpoint: run the checkpoint's code.
        timeout_seconds: Wall seconds for each step in a child process.

    Returns:
        What came of each conversion.

    Raises:
        CurrentError: Some failed, or could not be tried.
        RequestError: No store is named.
    """
    settings.show_progress()
    with telling_failures():
        store = require_store(store, "validate-current")
        more = {
            "allow_pickle": allow_pickle,
            "trust_remote_code": trust_remote_code,
            "timeout_seconds": timeout_seconds,
        }
        choice = Choice(
            store=store,
            sources=tuple(sources or ()),
            task=task,
            dtype=dtype,
            channel=channel,
            withdraw=withdraw,
            more=more,
        )
        try:
            rows = list(judge_current(choice, partial(PrefectSteps, run_id=str(flow_run.id))))
        except RunCancelledError as error:
            return cast("Sequence[CurrentRow]", end_cancelled(error))
        create_markdown_artifact(
            key=artifact_key("validate-current", store),
            markdown=render_rows(rows),
            description=f"The gate on current conversions of {store}",
        )
        return require_proved(rows)
