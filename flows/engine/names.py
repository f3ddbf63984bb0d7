"""How runs, their pages and their artifacts are called in Prefect's UI."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from uuid import UUID

from tasks.errors import RequestError
from tasks.request.conversion import ConversionRequest

#: What the tag of every run of one conversion begins with.
TAG = "conversion:"
#: How a fleet's state is called where all that is not current was refused before; of type
#: Completed. Automations know states by their names: infra.automations has it too.
KNOWN_REFUSALS = "KnownRefusals"
#: How a promotion ends that a person refused; of type Cancelled.
REFUSED = "Refused"
#: Event that says how a fleet run ended (``flows.fan_out.figures``).
FLEET_ENDED = "tracefleet.fleet.ended"
_COMMIT = 7


def run_name(request: ConversionRequest, commit: str | None = None) -> str:
    """Return a name that a person knows a run by: ``bert-base@86b5e09 jit fill-mask``."""
    source, _, revision = request.source.partition("@")
    known = commit or request.revision or revision
    model = PurePosixPath(source).name + (f"@{known[:_COMMIT]}" if known else "")
    return " ".join(word for word in (model, request.backend, request.task) if word)


def fleet_tag(fleet: UUID | str) -> str:
    """Return the tag of a fleet's runs, from the part of its identifier that is no clock."""
    return f"fleet:{str(fleet).rpartition('-')[2]}"


def run_url(run: UUID | str) -> str | None:
    """Return the page of a flow run in Prefect's UI, None without a server."""
    from prefect.utilities.urls import url_for

    return url_for("flow-run", obj_id=UUID(str(run)))


def require_store(store: str | None, flow: str) -> str:
    """Return the store of a scheduled run: nobody's store is looked after by default.

    Raises:
        RequestError: none is named.
    """
    if not store:
        raise RequestError(
            f"{flow}: expected a store, got none. Set the schedule's with `python -m "
            "infra.provision --store URL`, or give a run its own (--param store=URL)."
        )
    return store


def artifact_key(*words: str) -> str:
    """Return the words as a key of artifacts: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")
