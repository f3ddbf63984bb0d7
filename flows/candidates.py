"""Candidates: what was compiled where no device could run it, found again and put to the gate."""

from __future__ import annotations

import dataclasses
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

from flows.children import log_of
from flows.conversion import Conversion, ConversionResult
from flows.proving import Proved
from tasks import child
from tasks.backends import programs
from tasks.backends.base import Compiler
from tasks.errors import BackendUnavailableError, NumericsMismatchError, RequestError
from tasks.fetch.checkpoint import Resolved
from tasks.model.feeds import input_specs
from tasks.publish.conversion import validation_of
from tasks.publish.find import CANDIDATE_CHANNEL, find_candidate, find_published
from tasks.request.conversion import ConversionRequest, make_request
from tasks.trace.bundle import TracedFile
from tasks.trace.record import TraceResult
from tracefleet.channel import conversion_folder
from tracefleet.errors import NoSuchVariantError
from tracefleet.manifest import CANDIDATE, JIT, Manifest, parse
from tracefleet.store import ReadableStore, open_store

logger = logging.getLogger(__name__)

_CONVERSION = re.compile(r"(?P<store>.+)/(?P<folder>conversions/[^/]+/(?P<key>[0-9a-f]{64}))/?")


def candidate_at(
    conversion: str, *, backend: str | None = None, **more: Any
) -> tuple[Manifest, ConversionRequest]:
    """Return the candidate in a conversion's folder, and the request that it answers.

    Args:
        conversion: URL of the folder.
        backend: the only one that can be run here; None: any.
        more: fields of the request that are no part of its identity: channel, trust, limits.

    Raises:
        RequestError: that is no conversion's URL, or one of another backend.
        NoSuchVariantError: there is no candidate.
        ManifestError: it can't be trusted.
    """
    found = _CONVERSION.fullmatch(conversion)
    if found is None:
        raise RequestError(
            "conversion: expected STORE/conversions/SOURCE/KEY, as `python -m flows convert` tells "
            f"it, got {conversion!r}"
        )
    store = open_store(found["store"])
    manifest = _read(store, found["folder"], found["key"])
    variant = manifest.variant
    if variant.backend == JIT or backend not in (None, variant.backend):
        raise RequestError(
            f"conversion: expected one of backend {backend or 'neuronx or neuron'}, got one of "
            f"{variant.backend}. Validate it on a worker of pool {variant.backend!r}."
        )
    return manifest, make_request({**_fields(manifest), "store": store.url, **more})


def _read(store: ReadableStore, folder: str, key: str) -> Manifest:
    path = f"{folder}/{CANDIDATE}"
    try:
        source = parse(store.read(path)).source
    except FileNotFoundError:
        raise NoSuchVariantError(
            f"{store.url}/{path}: expected a candidate, got no such file. What was validated where "
            "it was compiled never was one: see `tracefleet list`."
        ) from None
    found = find_candidate(store, source, key)
    if found is None:
        raise NoSuchVariantError(f"{store.url}/{path}: it names another source: {source}")
    return found


def _fields(manifest: Manifest) -> dict[str, Any]:
    """Return the request's fields: its identity, read back from the options."""
    variant, options = manifest.variant, dict(manifest.options)
    prefix = f"{variant.backend}."
    chosen = {
        name.removeprefix(prefix): None if value == "none" and "separate" in name else value
        for name, value in options.items()
        if name.startswith(prefix) and not name.endswith(".compiler_args")
    }
    return {
        "source": manifest.source,
        "revision": manifest.commit if manifest.source.startswith("hf://") else None,
        "task": variant.task,
        "lengths": manifest.lengths,
        "backend": variant.backend,
        "dtype": variant.dtype,
        "batch": variant.batch,
        variant.backend: chosen,
        "rtol": options.get("rtol"),
        "accept_tolerance_risk": options.get("accept_tolerance_risk") == "true",
    }


class CandidateConversion(Conversion):
    """The second half of a conversion that was compiled before, maybe elsewhere."""

    def carry_out_candidate(self, candidate: Manifest) -> ConversionResult:
        """Judge a candidate; this host has to have the device.

        Raises:
            RequestError: the checkpoint is another one by now.
            ConversionError: there is no device, or the gate refuses it.
        """
        found = find_published(self.store, candidate.source, candidate.key)
        if found is not None:
            return self.already(found, self.request.channel)
        resolved = self.resolve(self.request.revision)
        if resolved.commit != candidate.commit:
            raise RequestError(
                f"{candidate.source}: expected commit {candidate.commit}, which was compiled, got "
                f"{resolved.commit}. Without its weights the candidate can't be judged: convert "
                "the checkpoint as it is now."
            )
        child.warm_up()
        with tempfile.TemporaryDirectory(prefix="tracefleet-") as work:
            if not self._has_device(Path(work)):
                raise BackendUnavailableError(
                    f"{candidate.variant.backend}: expected a Neuron device to validate on, got "
                    "none here. Run on such an instance; the log has what the runtime said. The "
                    "conversion stays a candidate."
                )
            return self._judge(Path(work), candidate, resolved)

    def _has_device(self, work: Path) -> bool:
        assert isinstance(self.backend, Compiler)
        found: bool = self.children.child(work, "device", self.backend.has_device)
        return found

    def take_up(self, work: Path, candidate: Manifest, resolved: Resolved) -> ConversionResult:
        """Go on with what was compiled before: validate it, if there is a device here by now."""
        if self._has_device(work):
            return self._judge(work, candidate, resolved)
        logger.info("compiled already: %s; it waits for a device", candidate.key[:12])
        return self.already(candidate, CANDIDATE_CHANNEL)

    def _judge(self, work: Path, candidate: Manifest, resolved: Resolved) -> ConversionResult:
        """Run a candidate's own files through the gate, on this host's device."""
        assert isinstance(self.backend, Compiler)
        facts, checkpoint = self.fetched(work, resolved)
        files = self._place(work, candidate)
        proving = self.proving(work, checkpoint, candidate.toolchain)
        job = proving.job(facts, device=True)
        log = log_of(work, "prepare")
        prepared = self.children.child(work, "prepare", programs.prepare, job, log)
        facts, reference = proving.reference_of_programs(facts, prepared.selects)
        if (input_specs(facts), reference.outputs) != (candidate.inputs, candidate.outputs):
            raise NumericsMismatchError(
                f"{candidate.key}: expected the inputs and outputs that were compiled, got others "
                "from eager. Convert the checkpoint again with these versions.",
                None,
            )
        traced = _traced(candidate, files, prepared)
        local = {n: files[file.path] for n, file in candidate.programs.items()}
        report = proving.judge_programs(
            self.backend, local, reference, traced, facts, candidate.toolchain
        )
        self.confirm(resolved)
        manifest = dataclasses.replace(candidate, validation=validation_of(report))
        proved = Proved(facts=facts, traced=traced, report=report)
        return self.publish(manifest, files, proved, candidate.toolchain)

    def _place(self, work: Path, candidate: Manifest) -> dict[str, Path]:
        """Download a candidate's files, every byte checked."""
        folder = conversion_folder(candidate.source, candidate.key)
        files = {file.path: work / "candidate" / file.path for file in candidate.files}
        for file in candidate.files:
            files[file.path].parent.mkdir(parents=True, exist_ok=True)
            self.store.download_to(
                f"{folder}/{file.path}", files[file.path], size=file.size, sha256=file.sha256
            )
        return files


def _traced(
    candidate: Manifest, files: dict[str, Path], prepared: programs.Prepared
) -> TraceResult:
    """Return what tracing would have told of a candidate's files."""
    archives = tuple(
        TracedFile(
            path=files[file.path],
            size=file.size,
            sha256=file.sha256,
            weight_bytes=0,
            published=file.path,
        )
        for file in candidate.archives
    )
    return TraceResult(
        files=archives,
        outputs=candidate.outputs,
        tied_groups=candidate.tied_groups,
        same_program=False,
        shared=False,
        selects=prepared.selects,
    )
