"""Make the ``Identity`` of a request and its resolved checkpoint, and later the ``Job``."""

from __future__ import annotations

import logging
from pathlib import Path

from tasks.backends.base import Job
from tasks.fetch.checkpoint import fetch_description
from tasks.fetch.source import Resolved
from tasks.model.default_lengths import check_positions, default_lengths
from tasks.model.facts import ModelFacts
from tasks.model.generation import GENERATING_TASK, Choice
from tasks.model.heads import default_task
from tasks.model.named_task import check_head, named_task
from tasks.publish.identity import Identity
from tasks.request.candidate import check_same_commit, download_programs
from tasks.request.conversion import ConversionRequest
from tasks.steps import Steps
from tracefleet.manifest import SCHEMA, Manifest
from tracefleet.manifest_types import Toolchain
from tracefleet.store import ReadableStore
from tracefleet.store.cache import cache_root

logger = logging.getLogger(__name__)


def complete(request: ConversionRequest, found: Resolved, steps: Steps) -> ConversionRequest:
    """Return the request with its task and lengths, by default those of the checkpoint's files."""
    if request.task is not None and request.lengths is not None:
        return request
    described = steps.here("describe", fetch_description, found)
    task = request.task
    if task is None:
        # Transformers takes seconds to import, and is asked only for what the table does not have.
        task = named_task(described) or steps.child("task", default_task, described)
        logger.info("task: %s, as the checkpoint's files name it", task)
    lengths = request.lengths
    if lengths is None:
        chosen = default_lengths(described, task)
        logger.info("lengths: %s", chosen)
        lengths = chosen.lengths
    return request.model_copy(update={"task": task, "lengths": lengths})


def refuse_early(described: Path, request: ConversionRequest) -> None:
    """Refuse what ``config.json`` rules out, before a child starts to import.

    Raises:
        RequestError: A length is over the positions.
        UnsupportedCheckpointError: The checkpoint has no such head, or its config is damaged.
    """
    check_positions(described, request.known_task, request.known_lengths)
    check_head(described, request.known_task)


def identify(
    request: ConversionRequest,
    found: Resolved,
    toolchain: Toolchain | None,
    candidate: Manifest | None = None,
    *,
    schema: int = SCHEMA,
) -> Identity:
    """Return the identity of a request whose checkpoint is resolved.

    Args:
        request: The request, with its task.
        found: Its checkpoint.
        toolchain: Versions of its backend; None: only the backend's workers know them.
        candidate: Candidate that is to be validated; its identity is kept.
        schema: Newest schema that the store takes.

    Raises:
        RequestError: the checkpoint is not the one that was compiled.
    """
    if candidate is not None:
        check_same_commit(candidate, found)
        return Identity.of(candidate)
    identity = Identity(
        source=found.source,
        commit=found.commit,
        variant=request.variant,
        lengths=request.known_lengths,
        options=request.identity_options,
        toolchain=toolchain,
    )
    return identity.limited_to(schema)


def make_job(
    request: ConversionRequest,
    folder: Path,
    facts: ModelFacts,
    work: Path,
    store: ReadableStore,
    candidate: Manifest | None,
    identity: Identity,
) -> Job:
    """Return the job of a backend: what it has to make and to prove.

    Args:
        request: The request, with its task.
        folder: Folder of the checkpoint.
        facts: Facts of the model.
        work: Folder of this conversion alone.
        store: Store of the candidate.
        candidate: Candidate whose programs are to be proved; None: new ones are made.
        identity: Identity of the conversion.
    """
    return Job(
        folder=folder,
        options=request.load_options,
        facts=facts,
        lengths=request.known_lengths,
        batch=request.batch,
        tolerance=request.tolerance,
        compiling=request.backend_options,
        target=request.target,
        work=work,
        failed=cache_root() / "failed-compilations",
        candidate=download_programs(store, candidate, work),
        may_be_general=identity.may_be_general,
        generation=_choose_generation(request, identity),
    )


def _choose_generation(request: ConversionRequest, identity: Identity) -> Choice:
    """Return how an artifact generates: the manifest has to say it, and the task to have it."""
    if request.task != GENERATING_TASK or not identity.may_be_general:
        return "none"
    return request.generation
