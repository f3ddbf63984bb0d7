"""What a fleet hands out: one entry with work to do, and how its run is identified."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from flows.engine.names import TAG
from tasks.fleet.spec import LIMITS
from tasks.plan.fleet import PlanRow
from tasks.request.conversion import ConversionRequest
from tracefleet.canonical import canonical_json
from tracefleet.store import open_store

_SHORT = 16


@dataclass(frozen=True, kw_only=True)
class Handout:
    """One entry of a fleet that has work to do.

    Attributes:
        request: as the fleet file has it.
        planned: what the plan found.
        fleet: identifier of the fleet's flow run.
    """

    request: ConversionRequest
    planned: PlanRow
    fleet: str

    @property
    def name(self) -> str:
        """Name of the entry."""
        return self.planned.name

    @property
    def pinned(self) -> ConversionRequest:
        """The request with the very commit and task that were planned, and an absolute store.

        A worker's working directory is another one.
        """
        found: dict[str, str | None] = {
            "task": self.planned.task,
            "store": open_store(self.request.store).url,
        }
        if self.request.source.startswith("hf://"):
            source, _, _ = self.request.source.partition("@")
            found |= {"source": source, "revision": self.planned.commit}
        return self.request.model_copy(update=found)

    @property
    def identity(self) -> str:
        """What makes two runs the same: the conversion key, and where its result goes."""
        asked = self.pinned.model_dump(mode="json", exclude=set(LIMITS))
        planned = {"commit": self.planned.commit, "key": self.planned.key}
        return hashlib.sha256(canonical_json({**asked, **planned})).hexdigest()

    @property
    def tag(self) -> str:
        """Tag of every run of this conversion."""
        return f"{TAG}{self.identity[:_SHORT]}"

    @property
    def fleet_tag(self) -> str:
        """Tag of the runs that this fleet run started."""
        return fleet_tag(self.fleet)


def fleet_tag(fleet: str) -> str:
    """Return the tag of a fleet's runs, from the part of its identifier that is no clock."""
    return f"fleet:{fleet.rpartition('-')[2]}"
