"""Set up a Prefect server for tracefleet: ``python -m infra.provision``.

It creates work pools and queues from ``infra/pools.yaml`` and automations from
``infra.automations``, and with TRACEFLEET_NOTIFY_URL set those of ``infra.notifications``, which
post to that webhook. A second run updates only what differs; other pools and automations stay as
they are. Then ``prefect --no-prompt deploy --all --prefect-file infra/prefect.yaml`` creates the
deployments. With ``--fleet URL --store URL``, before or after that, the schedule runs on these;
without them it keeps what was set, and is paused as long as nothing was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.automations import AUTOMATIONS
from infra.notifications import make_notifications
from infra.schedule import Choice, ChoiceError, check_choice, put_choice

POOLS = Path(__file__).with_name("pools.yaml")


class Pool(BaseModel):
    """One work pool of ``pools.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str
    type: str = "process"
    template: str | None = None
    concurrency: int | None = Field(default=None, ge=1)
    queues: dict[str, int] = Field(min_length=1)


class ProvisionError(Exception):
    """The server can't be set up; the message gives the reason and the next step."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Set up the server and return the exit code; on failure 1, with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m infra.provision", description=__doc__)
    add = parser.add_argument
    add("--pools", type=Path, default=POOLS, help="the pools (default: pools.yaml)")
    add("--fleet", metavar="URL", help="fleet file of every night, as the coordinator sees it")
    add("--store", metavar="URL", help="store that it publishes to, and that upkeep looks after")
    options = parser.parse_args(arguments)
    try:
        provision(options.pools, check_choice(options.fleet, options.store))
    except (ProvisionError, ChoiceError) as error:
        print(f"provision: {error}", file=sys.stderr)
        return 1
    return 0


def provision(path: Path, choice: Choice) -> None:
    """Create or update pools, queues, automations and schedules of the configured server.

    Raises:
        ProvisionError: no server is configured or answers, or the file is wrong.
    """
    pools = read_pools(path)
    with _open_client() as client:
        problem = client.api_healthcheck()
        if problem is not None:
            raise ProvisionError(
                f"{client.api_url}: expected a Prefect server, got {problem!r}. Is it running?"
            )
        for name, pool in pools.items():
            print(f"pool {name}: {_put_pool(client, name, pool, path.parent)}")
            for queue, priority in pool.queues.items():
                print(f"queue {name}/{queue}: {_put_queue(client, name, queue, priority)}")
        for automation in (*(make() for make in AUTOMATIONS), *make_notifications()):
            print(f"automation {automation.name!r}: {put_automation(client, automation)}")
        for told in put_choice(client, choice):
            print(told)


def put_automation(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    """Create or update the automation of that name; return what was done."""
    there = client.read_automations_by_name(wanted.name)
    if not there:
        client.create_automation(wanted)
        return "made"
    if all(AutomationCore(**dict(one)) == wanted for one in there):
        return "unchanged"
    client.update_automation(there[0].id, wanted)
    return "updated"


def read_pools(path: Path) -> dict[str, Pool]:
    """Return the pools of a file.

    Raises:
        ProvisionError: it is missing, not YAML, or has fields that a pool doesn't have.
    """
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))["pools"]
        return {name: Pool.model_validate(fields) for name, fields in raw.items()}
    except (OSError, yaml.YAMLError, ValidationError, KeyError, TypeError, AttributeError) as error:
        raise ProvisionError(f"{path}: expected `pools:` with pools, got: {error}") from error


def _open_client() -> SyncPrefectClient:
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise ProvisionError("PREFECT_API_URL: expected the URL of a server, got none. Set it.")
    return get_client(sync_client=True)


def _put_pool(client: SyncPrefectClient, name: str, pool: Pool, folder: Path) -> str:
    try:
        there = client.read_work_pool(name)
    except ObjectNotFound:
        _create_pool(client, name, pool, folder)
        return "made"
    if there.type != pool.type:
        raise ProvisionError(
            f"pool {name}: expected type {pool.type}, got {there.type}, which can't be changed. "
            f"Delete it (`prefect work-pool delete {name}`) and run this again."
        )
    return _update_pool(client, name, pool, there, folder)


def _create_pool(client: SyncPrefectClient, name: str, pool: Pool, folder: Path) -> None:
    client.create_work_pool(
        WorkPoolCreate(
            name=name,
            type=pool.type,
            description=pool.description,
            concurrency_limit=pool.concurrency,
            base_job_template=_read_template(pool, folder),
        )
    )


def _update_pool(
    client: SyncPrefectClient, name: str, pool: Pool, there: WorkPool, folder: Path
) -> str:
    template = _read_template(pool, folder)
    if (pool.description, pool.concurrency, template) == (
        there.description,
        there.concurrency_limit,
        there.base_job_template,
    ):
        return "unchanged"
    client.update_work_pool(
        name,
        WorkPoolUpdate(
            description=pool.description,
            concurrency_limit=pool.concurrency,
            base_job_template=template,
        ),
    )
    return "updated"


def _read_template(pool: Pool, folder: Path) -> dict[str, Any]:
    """Return the pool's own base job template, or Prefect's for its type."""
    if pool.template is None:
        stock = asyncio.run(get_default_base_job_template_for_infrastructure_type(pool.type))
        if stock is None:
            raise ProvisionError(f"type: expected a kind of work pool, got {pool.type!r}")
        return stock
    try:
        found: dict[str, Any] = json.loads((folder / pool.template).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ProvisionError(f"{pool.template}: expected a job template, got {error}") from error
    return found


def _put_queue(client: SyncPrefectClient, pool: str, name: str, priority: int) -> str:
    try:
        there = client.read_work_queue_by_name(name, work_pool_name=pool)
    except ObjectNotFound:
        client.create_work_queue(name, work_pool_name=pool, priority=priority)
        return f"made, priority {priority}"
    if there.priority == priority:
        return "unchanged"
    client.update_work_queue(there.id, priority=priority)
    return f"updated, priority {priority}"


if __name__ == "__main__":
    sys.exit(main())
