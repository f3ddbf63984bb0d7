"""The way through: request → fetch → trace → reference → validate → publish.

``convert`` is the one order of things. It is handed its steps as callables: plain functions for
the command line and the benchmarks, Prefect tasks over the very same functions for the flow
(``flows.convert_checkpoint``). Only plain data and paths go from step to step.
"""

from __future__ import annotations

import logging
import secrets
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flows.candidates import CandidateConversion, candidate_at
from flows.conversion import ConversionResult, Steps
from tasks import child
from tasks.backends.base import Compiler
from tasks.fetch.checkpoint import Resolved
from tasks.model.feeds import input_specs
from tasks.model.heads import default_task
from tasks.publish.conversion import unvalidated, validation_of
from tasks.publish.files import collect_files, describe_files, triton_config
from tasks.publish.find import find_candidate, find_published
from tasks.publish.identity import RECIPE, conversion_key
from tasks.request.conversion import ConversionRequest
from tasks.trace.record import TraceResult
from tracefleet.manifest import Manifest, Toolchain

__all__ = ["ConversionResult", "Steps", "convert", "validate"]

logger = logging.getLogger(__name__)


def convert(
    request: ConversionRequest, steps: Steps | None = None, *, run_id: str | None = None
) -> ConversionResult:
    """Carry out one request, or find that it was carried out before.

    Args:
        request: what to convert.
        steps: how each step is called; plain functions by default.
        run_id: names the attestation and the report; drawn if there is none.

    Raises:
        ConversionError: refused or failed; nothing was published.
        ArtifactError: the store can't serve.
    """
    return _FromRequest(request, steps or Steps(), run_id or _new_run_id()).carry_out()


def validate(
    conversion: str,
    steps: Steps | None = None,
    *,
    run_id: str | None = None,
    backend: str | None = None,
    **more: Any,
) -> ConversionResult:
    """Run a candidate on this host's device, and publish it if the gate passes it.

    Args:
        conversion: URL of its folder, as ``convert`` tells it.
        steps: how each step is called; plain functions by default.
        run_id: names the attestation and the report; drawn if there is none.
        backend: the only one that can be run here; None: whatever it was compiled for.
        more: fields of the request that are no part of its identity: ``channel``,
            ``allow_pickle``, ``trust_remote_code``, ``timeout_seconds`` and the like.

    Raises:
        ConversionError: it is refused, or there is no device here; it stays a candidate.
        ArtifactError: the store can't serve, or there is no such conversion.
    """
    found, request = candidate_at(conversion, backend=backend, **more)
    made = CandidateConversion(request, steps or Steps(), run_id or _new_run_id())
    return made.carry_out_candidate(found)


class _FromRequest(CandidateConversion):
    """A whole conversion, or the half of it that is left."""

    def carry_out(self) -> ConversionResult:
        toolchain = self.backend.toolchain()
        resolved = self.resolve(self.request.revision)
        if self.request.task is None:
            self.request = self._with_task(resolved)
        request = self.request
        key = conversion_key(
            commit=resolved.commit,
            variant=request.variant,
            lengths=request.lengths,
            options=request.identity_options,
            toolchain=toolchain,
        )
        if (manifest := find_published(self.store, resolved.source, key)) is not None:
            logger.info("already published: %s; no weights were read", key[:12])
            return self.already(manifest, request.channel)
        candidate = None
        if isinstance(self.backend, Compiler):
            candidate = find_candidate(self.store, resolved.source, key)
        child.warm_up()
        with tempfile.TemporaryDirectory(prefix="tracefleet-") as work:
            if candidate is not None:
                return self.take_up(Path(work), candidate, resolved)
            return self._convert(Path(work), toolchain, resolved, key)

    def _with_task(self, resolved: Resolved) -> ConversionRequest:
        """Ask the checkpoint's own files which task it was made for."""
        folder = self.describe(resolved)
        with tempfile.TemporaryDirectory(prefix="tracefleet-") as work:
            task = self.children.child(Path(work), "task", default_task, folder)
        logger.info("task: %s, as the checkpoint's files name it", task)
        return self.request.model_copy(update={"task": task})

    def _convert(
        self, work: Path, toolchain: Toolchain, resolved: Resolved, key: str
    ) -> ConversionResult:
        request = self.request
        facts, checkpoint = self.fetched(work, resolved)
        proved = self.proving(work, checkpoint, toolchain).prove(self.backend, facts)
        self.confirm(resolved)
        specs, traced = input_specs(proved.facts), proved.traced
        files = collect_files(traced.files, checkpoint.folder, self._triton(work, specs, traced))
        report = proved.report
        manifest = Manifest(
            key=key,
            source=checkpoint.source,
            commit=checkpoint.commit,
            license=checkpoint.license,
            variant=request.variant,
            lengths=request.lengths,
            options=request.identity_options,
            inputs=specs,
            outputs=traced.outputs,
            tied_groups=traced.tied_groups,
            same_program=traced.same_program,
            files=describe_files(files, traced.files),
            toolchain=toolchain,
            recipe=RECIPE,
            validation=unvalidated(request.tolerance) if report is None else validation_of(report),
        )
        return self.publish(manifest, files, proved, toolchain)

    def _triton(self, work: Path, specs: Any, traced: TraceResult) -> Path | None:
        """Write Triton's config; its PyTorch backend runs nothing of Neuron's."""
        if isinstance(self.backend, Compiler):
            return None
        path = work / "config.pbtxt"
        path.write_bytes(triton_config(specs, traced.outputs))
        return path


def _new_run_id() -> str:
    # Not datetime.UTC: Inf1's Python 3.10 has none.
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"  # noqa: UP017
