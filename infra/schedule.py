"""What the schedule runs: a fleet file and a store that the operator chose, kept on the server.

``python -m infra.provision --fleet URL --store URL`` keeps both as Prefect variables, from which
``infra/prefect.yaml`` takes them at each ``prefect deploy``, and sets the deployments that are
there. A deployment whose variables are not set is paused, and started by hand it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.exceptions import ObjectNotFound
from prefect.variables import Variable

FLEET, STORE = "tracefleet_fleet", "tracefleet_store"


@dataclass(frozen=True, kw_only=True)
class Scheduled:
    """A deployment with a schedule.

    Attributes:
        name: Of its flow and of itself.
        parameters: Its parameters that are variables.
        needs: Variable without which it is paused.
        switch: Variable that says whether its schedule is active.
    """

    name: str
    parameters: dict[str, str]
    needs: str
    switch: str


SCHEDULED = (
    Scheduled(
        name="convert-fleet/nightly",
        parameters={"fleet": FLEET, "store": STORE},
        needs=FLEET,
        switch="tracefleet_nightly",
    ),
    Scheduled(
        name="validate-current/weekly",
        parameters={"store": STORE},
        needs=STORE,
        switch="tracefleet_weekly",
    ),
    Scheduled(
        name="gc/weekly", parameters={"store": STORE}, needs=STORE, switch="tracefleet_weekly"
    ),
)


class ChoiceError(Exception):
    """The fleet file or the store can't be what the schedule runs; the message has the reason."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the operator chose; None: as it was set before; empty: nothing, any more.

    Attributes:
        fleet: Fleet file as the coordinator's workers see it.
        store: Root URL of the store.
    """

    fleet: str | None = None
    store: str | None = None


def check_choice(fleet: str | None, store: str | None) -> Choice:
    """Return a choice with absolute addresses: a worker's working directory is another one.

    Raises:
        ChoiceError: the file has a mistake, or the store can't be opened.
    """
    from tasks.errors import ConversionError
    from tasks.fleet.patterns import Patterns
    from tasks.fleet.spec import read_fleet
    from tasks.publish.schema_limit import read_limit
    from tracefleet.errors import ArtifactError
    from tracefleet.store import open_store

    try:
        found = open_store(store) if store else None
        if found is not None:
            read_limit(found)
        if fleet:
            asked = read_fleet(fleet).with_store(store or None).expand(Patterns())
            _refuse_mistakes(asked)
    except (ConversionError, ArtifactError) as error:
        raise ChoiceError(str(error)) from error
    except Exception as error:  # of the network, whose errors keep their library's type
        raise ChoiceError(
            f"{fleet or store}: expected an answer, got {type(error).__name__}: {error}. Check the "
            "address and the network."
        ) from error
    if fleet and "://" not in fleet:
        fleet = str(Path(fleet).resolve())
    return Choice(fleet=fleet, store=store if found is None else found.url)


def _refuse_mistakes(asked: dict[str, Any]) -> None:
    """Refuse a file of which an entry is wrong: a person is at hand to correct it."""
    from tasks.errors import RequestError

    # What the network hides now says nothing about the file.
    wrong = [f"{name}: {one}" for name, one in asked.items() if isinstance(one, RequestError)]
    if wrong:
        lines = "\n".join(wrong)
        raise RequestError(f"fleet file: expected no mistakes, got {len(wrong)}:\n{lines}")


def put_choice(client: SyncPrefectClient, choice: Choice) -> Iterator[str]:
    """Keep a choice and set the deployments that are there; yield what was done."""
    for name, value in ((FLEET, choice.fleet), (STORE, choice.store)):
        if value is not None:
            yield f"variable {name}: {_put_variable(name, value)}"
    for one in SCHEDULED:
        active = _read(one.needs) is not None
        done = _put_variable(one.switch, active)
        if choice != Choice():
            done = _put_deployment(client, one, active=active)
        elif not active:
            option = one.needs.removeprefix("tracefleet_")
            done = f"paused; `python -m infra.provision --{option} URL` sets what it runs on"
        yield f"schedule of {one.name}: {done}"


def _read(name: str) -> Any:
    return Variable.get(name, default=None)


def _put_variable(name: str, value: Any) -> str:
    there = _read(name)
    if value == "":
        Variable.unset(name)
        return "unchanged" if there is None else "taken back"
    if there == value:
        return "unchanged"
    Variable.set(name, value, overwrite=True)
    return "made" if there is None else "updated"


def _put_deployment(client: SyncPrefectClient, one: Scheduled, *, active: bool) -> str:
    """Give a deployment its parameters and switch its schedule."""
    try:
        there = client.read_deployment_by_name(one.name)
    except ObjectNotFound:
        return "kept for when it is deployed"
    wanted = {name: _read(variable) or "" for name, variable in one.parameters.items()}
    parameters = {**there.parameters, **wanted}
    switched = [schedule for schedule in there.schedules if schedule.active != active]
    if parameters == there.parameters and not switched:
        return "unchanged"
    client.update_deployment(there.id, DeploymentUpdate(parameters=parameters))
    for schedule in switched:
        client.update_deployment_schedule(there.id, schedule.id, active=active)
    return "active" if active else f"paused: no {one.needs.removeprefix('tracefleet_')} is set"
