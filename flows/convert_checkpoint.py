"""The Prefect flow of one conversion: the pipeline with its steps as Prefect tasks."""

from __future__ import annotations

import functools
from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.tasks import Task, exponential_backoff

from flows.pipeline import ConversionResult, Steps, convert
from flows.request import ConversionRequest
from tasks import child
from tasks.errors import ConversionError
from tasks.fetch import fetch, fetch_description, resolve
from tasks.publish import publish
from tasks.report.facts import ReportFacts
from tasks.report.markdown import markdown_report
from tasks.verdict import ValidationReport
from tracefleet.channel import source_slug
from tracefleet.errors import ArtifactError, StoreUnavailableError


def _is_transient(_task: Task[..., object], _run: TaskRun, state: State[object]) -> bool:
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


def _show(facts: ReportFacts, report: ValidationReport, url: str) -> None:
    """Keep the report in Prefect's UI, of a refused bundle too."""
    create_markdown_artifact(
        key=_artifact_key(facts),
        markdown=markdown_report(facts, report, url),
        description=f"Validation of {facts.source}",
    )


def _artifact_key(facts: ReportFacts) -> str:
    """One key for each checkpoint and variant, so that its versions line up in the UI."""
    text = f"{source_slug(facts.source)}-{facts.variant.label}"
    return "".join(c if c.isalnum() else "-" for c in text.lower())


# Paths and plain data only, and no caching by Prefect: the conversion key is the cache.
_network = functools.partial(
    task,
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5,
    retry_condition_fn=_is_transient,
)
STEPS = Steps(
    resolve=_network(resolve, name="resolve", task_run_name="resolve {source}"),
    describe=_network(fetch_description, name="describe"),
    fetch=_network(fetch, name="fetch"),
    run=task(name="child", task_run_name="{step}", cache_policy=NO_CACHE)(child.run),
    publish=_network(publish, name="publish", task_run_name="publish to {channel}"),
    show=_show,
)


def _run_name() -> str:
    request = ConversionRequest.model_validate(flow_run.parameters["request"])
    words = (Path(request.source).name, request.task, request.backend)
    return " ".join(word for word in words if word)


@flow(name="convert-checkpoint", flow_run_name=_run_name, validate_parameters=True)
def convert_checkpoint(request: ConversionRequest) -> ConversionResult:
    """Fetch, untie, trace, validate and publish one checkpoint; nothing wrong is ever published.

    Args:
        request: What to convert, and where to.

    Returns:
        What came of it, with the conversion's URL and manifest.
    """
    return convert(request, STEPS, run_id=flow_run.id)
