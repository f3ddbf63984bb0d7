"""A conversion's steps as Prefect task runs, its report as an artifact, its result as an asset."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.assets import Asset, AssetProperties
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from pydantic import ValidationError

from flows.engine.cancelled import stop_if_cancelled
from flows.engine.names import artifact_key, run_name
from flows.engine.retries import network_task
from tasks import child
from tasks.child import Outcome
from tasks.fetch.source import Resolved
from tasks.report.conversion.facts import ReportFacts
from tasks.report.conversion.markdown import render_markdown
from tasks.request.conversion import ConversionRequest
from tasks.steps import R, Steps
from tasks.validate.verdict import ValidationReport
from tracefleet.channel import conversion_folder, source_slug
from tracefleet.manifest import Manifest
from tracefleet.store import Store
from tracefleet.verdict_types import VALIDATED

logger = logging.getLogger(__name__)
#: How a step's task runs are named, where the step's own name says too little.
_TASK_RUN_NAMES = {"resolve": "resolve {source}"}


@dataclass(kw_only=True)
class PrefectSteps(Steps):
    """Steps of the flow run that this process carries out.

    Attributes:
        request: What the run was asked for, to name it after; None: it has its name.
    """

    run: Callable[..., Outcome[Any]] = field(
        default=task(name="child", task_run_name="{step}", cache_policy=NO_CACHE)(child.run)
    )
    request: ConversionRequest | None = None

    def here(self, step: str, function: Callable[..., R], *arguments: Any, **options: Any) -> R:
        """Call a function as a task run, which is tried again for network errors."""
        # A task for each step, so that Prefect shows and tries again that one alone.
        tried = network_task(function, name=step, task_run_name=_TASK_RUN_NAMES.get(step))
        value: R = super().here(step, tried, *arguments, **options)
        # Only now the commit is known, by which people look for a run.
        if isinstance(value, Resolved) and self.request is not None:
            _rename(run_name(self.request, value.commit))
        return value

    def child(self, step: str, function: Callable[..., R], *arguments: Any) -> R:
        """Call a function in a child process, as a task run, unless this run is being cancelled.

        Raises:
            RunCancelledError: it is, or a run above it.
        """
        # Between children: one that was killed half-way would cost all of its time again.
        stop_if_cancelled()
        value: R = super().child(step, function, *arguments)
        return value

    def publish(
        self,
        function: Callable[..., R],
        store: Store,
        manifest: Manifest,
        files: dict[str, Path],
        *,
        channel: str,
        name: str | None = None,
    ) -> R:
        """Publish as a Prefect asset: automations can wait for the conversion's own URL."""
        asset = _asset(store, manifest)

        def publish_asset() -> R:
            publication = function(store, manifest, files, channel=channel, name=name)
            if asset is not None:
                asset.add_metadata(_metadata(manifest, publication))
            return publication

        told = f"publish to {channel}"
        tried = network_task(publish_asset, asset=asset, name="publish", task_run_name=told)
        published: R = super().here("publish", tried)
        return published

    def show(self, facts: ReportFacts, report: ValidationReport, url: str) -> None:
        """Keep the report in Prefect's UI, of a refused artifact too."""
        create_markdown_artifact(
            # One for each checkpoint and variant, so that its versions line up in the UI.
            key=artifact_key(source_slug(facts.source), facts.variant.label),
            markdown=render_markdown(facts, report, url),
            description=f"Validation of {facts.source}",
        )


def _rename(name: str) -> None:
    if name == flow_run.name:
        return
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(str(flow_run.id)), name=name)
    except Exception:  # a name for people must not cost a conversion
        logger.warning("the run could not be named %r", name, exc_info=True)


def _asset(store: Store, manifest: Manifest) -> Asset | None:
    """Return a validated conversion as an asset; None if its URL can't be a key of Prefect's."""
    # Who waits for the asset serves it, and a candidate was never run.
    if manifest.validation.verdict != VALIDATED:
        return None
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


def _metadata(manifest: Manifest, publication: Any) -> dict[str, Any]:
    return {
        "manifest": manifest.digest,
        "commit": manifest.commit,
        "channel": publication.channel,
        "number": publication.number,
    }
