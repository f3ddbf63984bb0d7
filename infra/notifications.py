"""Who is told what: automations that post to a webhook, made by ``infra.provision``.

The webhook's URL comes from ``TRACEFLEET_NOTIFY_URL`` and not from the command line: it is often a
secret. It is kept in a block of the Prefect server, encrypted. What is posted is
``{"text": …}``, as Slack and Mattermost take it, with the run's name, page and message beside it.

* A run of a fleet ended ``Failed``: there are new failures. (A lost run is ``Crashed`` and begun
  again; one that ends ``Completed`` has none, or known ones alone.)
* A promotion is ``Suspended``: it waits for a person.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from infra.automations import match_tag

URL_VARIABLE = "TRACEFLEET_NOTIFY_URL"
BLOCK = "tracefleet-notify"
#: Of the JSON that is posted: templates of Prefect's (docs, "Automations", "Actions").
_PAYLOAD = """\
{"text": {{ (TEXT ~ flow_run.name ~ ": " ~ (flow_run|ui_url)) | tojson }},
 "run": {{ flow_run.name | tojson }},
 "state": {{ flow_run.state.name | tojson }},
 "url": {{ flow_run|ui_url | tojson }},
 "message": {{ (flow_run.state.message or "") | tojson }}}"""


def make_notifications() -> Iterator[AutomationCore]:
    """Save the webhook's block, and yield the automations that post to it; none without a URL."""
    url = os.environ.get(URL_VARIABLE)
    if url:
        webhook = save_webhook(url)
        yield new_failures(webhook)
        yield waiting_promotions(webhook)


def save_webhook(url: str) -> UUID:
    """Create or replace the block with the webhook's URL; return its identifier."""
    headers = {"content-type": "application/json"}
    block = Webhook(url=url, headers=headers)  # type: ignore[arg-type]  # pydantic makes the secret
    return UUID(str(block.save(BLOCK, overwrite=True)))


def new_failures(webhook: UUID) -> AutomationCore:
    """Return the automation that tells of a fleet whose run failed."""
    return _notify(
        "tracefleet: a fleet has new failures",
        webhook,
        tag="fleet",
        state="Failed",
        text="New failures in fleet ",
    )


def waiting_promotions(webhook: UUID) -> AutomationCore:
    """Return the automation that tells of a promotion that waits for a person."""
    return _notify(
        "tracefleet: a promotion waits for a person",
        webhook,
        tag="promotion",
        state="Suspended",
        text="Your word is wanted: ",
    )


def _notify(name: str, webhook: UUID, *, tag: str, state: str, text: str) -> AutomationCore:
    return AutomationCore(
        name=name,
        description=f"Posts to the webhook block {BLOCK} when a run tagged {tag} is {state}.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={f"prefect.flow-run.{state}"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=match_tag(tag),
            for_each={"prefect.resource.id"},
            threshold=1,
        ),
        actions=[
            CallWebhook(
                block_document_id=webhook,
                payload=_PAYLOAD.replace("TEXT", f'"{text}"'),
            )
        ],
    )
