"""A consumer that changes to a new conversion when Prefect says that its channel has moved.

``python -m examples.reload_on_event STORE SOURCE CHANNEL`` answers each line of standard input with
what the channel points to at that moment. Whoever publishes or promotes emits an asset's event;
the consumer then looks at the channel at once, instead of every half minute. The event only says
"look": what is opened, its digests and its channel, comes from the store. A server that is away
costs no call: the channel is looked at now and then all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable

from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter

import tracefleet
from tracefleet import Change
from tracefleet.errors import ArtifactError
from tracefleet.reader.watch import WatchedModel
from tracefleet.store import open_store

MOVED = "prefect.asset.materialization.succeeded"
#: Without an event: for what was moved by hand, and while the server is away.
_SECONDS = 600.0


def watch(
    store: str, source: str, channel: str, on_change: Callable[[Change], None] | None = None
) -> WatchedModel:
    """Open what a channel points to, to be looked at again when an event comes."""
    return tracefleet.watch(store, source, channel=channel, every=_SECONDS, on_change=on_change)


async def follow(model: WatchedModel, store: str, channel: str) -> None:
    """Look at the channel whenever a conversion of the store was put into it."""
    conversions = f"{open_store(store).url}/conversions/"
    wanted = EventFilter(
        event=EventNameFilter(name=[MOVED]),
        resource=EventResourceFilter(id_prefix=[conversions]),
    )
    async with get_events_subscriber(filter=wanted, reconnect_on_clean_close=True) as events:
        async for event in events:
            if event.payload.get("channel") == channel:
                # A store that is away is looked at again by the model itself.
                with contextlib.suppress(ArtifactError):
                    await asyncio.to_thread(model.look)


async def _answer(model: WatchedModel) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(model.number, model.predict(line.strip()), flush=True)


async def serve(store: str, source: str, channel: str) -> None:
    """Answer lines until there are no more."""
    with watch(store, source, channel) as model:
        following = asyncio.create_task(follow(model, store, channel))
        await _answer(model)
        following.cancel()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:4]))
