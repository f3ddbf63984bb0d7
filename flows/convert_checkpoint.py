"""The Prefect flow of one conversion: the pipeline with its steps as Prefect tasks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.assets import Asset, AssetProperties
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from pydantic import ValidationError

from flows.engine import settings as engine
from flows.engine.names import TAG, artifact_key, run_name
from flows.engine.retries import network_task
from flows.pipeline import ConversionResult, Steps, convert
from tasks import child
from tasks.errors import RequestError
from tasks.fetch.checkpoint import Resolved, fetch, fetch_description, resolve
from tasks.publish.conversion import Publication, publish
from tasks.report.conversion.facts import ReportFacts
from tasks.report.conversion.markdown import markdown_report
from tasks.request.conversion import ConversionRequest, make_request
from tasks.validate.verdict import ValidationReport
from tracefleet.channel import conversion_folder, source_slug
from tracefleet.manifest import VALIDATED, Manifest
from tracefleet.store import Store

logger = logging.getLogger(__name__)


def _show(facts: ReportFacts, report: ValidationReport, url: str) -> None:
    """Keep the report in Prefect's UI, of a refused bundle too."""
    create_markdown_artifact(
        # One for each checkpoint and variant, so that its versions line up in the UI.
        key=artifact_key(source_slug(facts.source), facts.variant.label),
        markdown=markdown_report(facts, report, url),
        description=f"Validation of {facts.source}",
    )


def _resolve(source: str, **options: Any) -> Resolved:
    """Resolve, and name the run after what it turned out to convert."""
    resolved = resolve(source, **options)
    if "request" in flow_run.parameters:  # not of a candidate, whose run is named after it
        _rename(run_name(_asked(), resolved.commit))
    return resolved


def _asked() -> ConversionRequest:
    parameters = flow_run.parameters
    request = ConversionRequest.model_validate(parameters["request"])
    return _of(request, parameters.get("backend"))


def _rename(name: str) -> None:
    if name == flow_run.name:
        return
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(str(flow_run.id)), name=name)
    except Exception:  # a name for people must not cost a conversion
        logger.warning("the run could not be named %r", name, exc_info=True)


def _publish(
    store: Store, manifest: Manifest, files: dict[str, Path], *, channel: str
) -> Publication:
    """Publish as a Prefect asset: automations can wait for the conversion's own URL."""
    validated = manifest.validation.verdict == VALIDATED
    asset = _asset(store, manifest) if validated else None

    def publish_asset() -> Publication:
        publication = publish(store, manifest, files, channel=channel)
        if asset is not None:
            asset.add_metadata(_metadata(manifest, publication))
        return publication

    name = f"publish to {channel}"
    result: Publication = network_task(
        publish_asset, asset=asset, name="publish", task_run_name=name
    )()
    return result


def _asset(store: Store, manifest: Manifest) -> Asset | None:
    """Return the conversion as an asset; None where its URL has what Prefect's keys may not."""
    url = f"{store.url}/{conversion_folder(manifest.source, manifest.key)}"
    properties = AssetProperties(
        name=f"{manifest.source} {manifest.variant.label}",
        url=url,
        description=f"Validated conversion at lengths {', '.join(map(str, manifest.lengths))}.",
    )
    try:
        return Asset(key=url, properties=properties)
    except ValidationError:
        logger.info("no Prefect asset for %s: its URL can't be a key there", url)
        return None


def _metadata(manifest: Manifest, publication: Publication) -> dict[str, Any]:
    return {
        "manifest": manifest.digest,
        "commit": manifest.commit,
        "channel": publication.channel,
        "number": publication.number,
    }


STEPS = Steps(
    resolve=network_task(_resolve, name="resolve", task_run_name="resolve {source}"),
    describe=network_task(fetch_description, name="describe"),
    fetch=network_task(fetch, name="fetch"),
    run=task(name="child", task_run_name="{step}", cache_policy=NO_CACHE)(child.run),
    publish=_publish,
    show=_show,
)


def _run_name() -> str:
    if any(tag.startswith(TAG) for tag in flow_run.tags):
        return str(flow_run.name)  # a fleet knew its commit already
    return run_name(_asked())


@flow(name="convert-checkpoint", flow_run_name=_run_name, validate_parameters=True)
def convert_checkpoint(request: ConversionRequest, backend: str | None = None) -> ConversionResult:
    """Fetch, untie, trace, validate and publish one checkpoint; nothing wrong is ever published.

    Args:
        request: What to convert, and where to.
        backend: The one that this deployment's workers have; set by the deployment. A request that
            names another is refused, one that names none gets it.

    Returns:
        What came of it, with the conversion's URL and manifest.
    """
    engine.tell_progress()
    return convert(_of(request, backend), STEPS, run_id=flow_run.id)


def _of(request: ConversionRequest, backend: str | None) -> ConversionRequest:
    if backend in (None, request.backend):
        return request
    if "backend" in request.model_fields_set:
        raise RequestError(
            f"backend: expected {backend} of this deployment, got {request.backend}. Run the "
            f"deployment convert-checkpoint/{request.backend}, or leave the backend out."
        )
    return make_request({**request.model_dump(exclude_unset=True), "backend": backend})
