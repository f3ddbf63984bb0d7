"""What a fleet asks for, and its plan; what the network hides is asked for again, by Prefect.

The first look needs no task of its own: a fleet of which nothing is hidden costs none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

from flows.engine.retries import IncompleteError, ask_again, network_task
from flows.fan_out import progress as fleet_show
from tasks.errors import RequestError, may_pass
from tasks.fleet.entries import Asked
from tasks.fleet.patterns import Patterns
from tasks.fleet.spec import FleetSpec, read_fleet
from tasks.plan.fleet import PlanRow, plan
from tasks.request.conversion import ConversionRequest


def read_spec(fleet: str | None, spec: FleetSpec | None) -> FleetSpec:
    """Return the fleet of a run, from its file or its parameters.

    Raises:
        RequestError: neither is given, or both are, or the file is wrong.
    """
    if bool(fleet) == (spec is not None):
        got = "both" if fleet else "neither"
        raise RequestError(
            f"convert-fleet: expected either fleet or spec, got {got}. Set the schedule's with "
            "`python -m infra.provision --fleet URL --store URL`, or give a run its own (--param "
            "fleet=URL)."
        )
    if spec is not None:
        return spec
    found: FleetSpec = read_fleet_file(str(fleet)) if _is_far(fleet) else read_fleet(str(fleet))
    return found


def _is_far(fleet: str | None) -> bool:
    return str(fleet).startswith("s3://")


read_fleet_file = network_task(read_fleet, name="read fleet file")


def look_up(spec: FleetSpec) -> dict[str, Asked]:
    """Return what a fleet asks for; patterns that the network hid are looked up again.

    Raises:
        RequestError: the file can't be meant; every mistake is named.
    """
    patterns = Patterns()
    found = spec.expand(patterns)
    if not _list_hidden(found):
        return found

    def look_up_again() -> dict[str, Asked]:
        patterns.ask_again()
        asked = spec.expand(patterns)
        if hidden := _list_hidden(asked):
            raise IncompleteError(f"no answer for {', '.join(hidden)}", asked)
        return asked

    asked: dict[str, Asked] = ask_again(look_up_again, name="look up patterns")
    return asked


def _list_hidden(asked: Mapping[str, Asked]) -> list[str]:
    return [name for name, one in asked.items() if isinstance(one, Exception) and may_pass(one)]


def plan_requests(requests: Mapping[str, Asked], *, retry_refused: bool = False) -> list[PlanRow]:
    """Return the plan of a fleet; what the network hid of it is asked for again.

    Args:
        requests: Requests by the names of their entries; an error: why there is none.
        retry_refused: Whether to plan as if nothing had been refused before.
    """
    rows: list[PlanRow] = plan_fleet(requests, retry_refused=retry_refused)
    hidden = _list_rivals([row for row in rows if row.transient], requests)
    if hidden:
        ask = functools.partial(_plan_again, hidden, retry_refused=retry_refused)
        again: list[PlanRow] = ask_again(ask, name="plan again")
        known = {row.name: row for row in again}
        rows = [known.get(row.name, row) for row in rows]
    fleet_show.plan_table(rows)
    return rows


def _list_rivals(
    hidden: Iterable[PlanRow], requests: Mapping[str, Asked]
) -> dict[str, ConversionRequest]:
    """Return the requests of rows that are hidden, and those that could move their channels.

    These alone: a fleet of a thousand is not listed twice.
    """
    addresses: set[tuple[str, str]] = set()
    for row in hidden:
        if row.request is not None:
            addresses |= _list_addresses(row.request)
    rivals = {}
    for name, one in requests.items():
        if not isinstance(one, Exception) and addresses & _list_addresses(one):
            rivals[name] = one
    return rivals


def _list_addresses(request: ConversionRequest) -> set[tuple[str, str]]:
    """Return what a request's channels lie under: its source and its name, in its store."""
    named = [one for one in (request.source, request.publish_as) if one is not None]
    return {(request.store, one) for one in named}


def _plan_again(requests: Mapping[str, Asked], *, retry_refused: bool) -> list[PlanRow]:
    rows = plan(requests, retry_refused=retry_refused)
    if hidden := [f"{row.name}: {row.error}" for row in rows if row.transient]:
        raise IncompleteError("; ".join(hidden), rows)
    return rows


plan_fleet = network_task(plan, name="plan")


def list_stores(requests: Mapping[str, Asked]) -> list[str]:
    """Return the store of each entry that is a request."""
    return [one.store for one in requests.values() if not isinstance(one, Exception)]


def choose(requests: Mapping[str, Asked], only: list[str] | None) -> dict[str, Asked]:
    """Return the requests of some entries; without any, of all.

    Raises:
        RequestError: there is no such entry.
    """
    if not only:
        return dict(requests)
    unknown = [entry for entry in only if not any(_are_of(requests, entry))]
    if unknown:
        raise RequestError(
            f"only: expected entries of the fleet ({', '.join(requests)}), got {', '.join(unknown)}"
        )
    chosen = {name for entry in only for name in _are_of(requests, entry)}
    return {name: one for name, one in requests.items() if name in chosen}


def _are_of(names: Iterable[str], entry: str) -> list[str]:
    """Return the names of an entry's requests: its own, or those that it was multiplied into."""
    return [name for name in names if name == entry or name.startswith(f"{entry}/")]
