"""One entry of a fleet that has work to do, and how its runs are known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flows.convert_batch import BatchEntry
from flows.engine.names import TAG, fleet_tag, run_name
from tasks.fleet.collisions import LIMITS
from tasks.plan.fleet import PlanRow
from tasks.request.conversion import ConversionRequest
from tracefleet.canonical import canonical_json
from tracefleet.store import open_store

_SHORT = 16


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One entry of a fleet that has work to do.

    Attributes:
        planned: Row of the plan, with the request as the fleet file has it.
        fleet: Identifier of the fleet's flow run.
    """

    planned: PlanRow
    fleet: str

    @property
    def name(self) -> str:
        """Name of the entry."""
        return self.planned.name

    @property
    def request(self) -> ConversionRequest:
        """The request as the fleet file has it."""
        request = self.planned.request
        assert request is not None, f"{self.name}: nothing is to be done for what is no request"
        return request

    @cached_property
    def pinned(self) -> ConversionRequest:
        """The request with the very commit and task that were planned, and an absolute store.

        A worker's working directory is another one.
        """
        found: dict[str, Any] = {
            "task": self.planned.task,
            "lengths": self.planned.lengths or self.request.lengths,
            "store": open_store(self.request.store).url,
        }
        if self.request.source.startswith("hf://"):
            source, _, _ = self.request.source.partition("@")
            found |= {"source": source, "revision": self.planned.commit}
        return self.request.model_copy(update=found)

    @cached_property
    def identity(self) -> str:
        """What makes two runs the same: the conversion key, and where its result goes."""
        fields = self.pinned.model_dump(mode="json", exclude=set(LIMITS))
        planned = {"commit": self.planned.commit, "key": self.planned.key}
        return hashlib.sha256(canonical_json({**fields, **planned})).hexdigest()

    @property
    def weight_bytes(self) -> int:
        """Size of the checkpoint, which tells how long its conversion takes."""
        return self.planned.weight_bytes or 0

    @property
    def tag(self) -> str:
        """Tag of every run of this conversion."""
        return f"{TAG}{self.identity[:_SHORT]}"

    @property
    def fleet_tag(self) -> str:
        """Tag of the runs that this fleet run started."""
        return fleet_tag(self.fleet)

    @property
    def entry(self) -> BatchEntry:
        """The entry as a batch run gets it."""
        pinned = self.pinned
        name = run_name(pinned, self.planned.commit)
        return BatchEntry(name=name, tag=self.tag, request=pinned, key=self.planned.key)
