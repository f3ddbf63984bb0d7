"""Remember that a conversion was refused, so that fleets don't try the very same one again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from flows.engine.clock import now
from tasks.errors import ConversionError
from tasks.fetch.checkpoint import resolve
from tasks.fetch.source import Resolved
from tasks.plan.row import PlanRow
from tasks.publish.identity import Identity
from tasks.publish.refusals import is_remembered, remember
from tasks.request.attempt import make_attempt
from tasks.request.conversion import ConversionRequest
from tracefleet.errors import ArtifactError
from tracefleet.store import Store, open_writable

logger = logging.getLogger(__name__)


@contextmanager
def remembering(
    store: Store, request: ConversionRequest, source: Resolved, identity: Identity
) -> Iterator[None]:
    """Leave a record of a refusal that would happen again; the error goes on as it is.

    Args:
        store: Store that the conversion was to be published to.
        request: The request, complete.
        source: Its checkpoint.
        identity: Its identity.
    """
    try:
        yield
    except ConversionError as error:
        if is_remembered(error) and _is_unchanged(source, request):
            attempt, kind = make_attempt(request, identity), type(error).__name__
            if remember(store, attempt, kind, str(error), now=now().timestamp()):
                logger.info("remembered for a month: %s/%s", store.url, attempt.path)
        raise


def remember_invalid(row: PlanRow) -> None:
    """Leave a record of what a plan refused, by which the next one knows it; it looks all the same.

    Args:
        row: Of the plan; one whose mistake may be gone tomorrow leaves none.
    """
    if row.attempt is None or row.error is None or row.request is None:
        return
    try:
        store = open_writable(row.request.store, check=False)
    except ArtifactError:
        logger.warning("%s: the refusal could not be remembered", row.name, exc_info=True)
    else:
        remember(store, row.attempt, row.error, row.message, now=now().timestamp())


def _is_unchanged(source: Resolved, request: ConversionRequest) -> bool:
    """Whether the source still is what was refused: a folder is read in place."""
    if not source.is_local:
        return True
    try:
        return resolve(source.source, **request.permissions).commit == source.commit
    except (ConversionError, OSError):
        return False
