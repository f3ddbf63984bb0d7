"""Check a conversion on this host before it is promoted, and tell a person what was found.

The parts of the flow ``promote-conversion``; ``tasks.publish.channels.promote`` moves the channel.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from tasks.errors import NumericsMismatchError
from tasks.publish.guard import is_guarded
from tracefleet.channel import ChannelEntry, read_current, slug_folder
from tracefleet.check import OTHER, CheckReport, check
from tracefleet.manifest import Manifest
from tracefleet.published import Selection, load_manifest, select
from tracefleet.reader.open import open_selected
from tracefleet.store import ReadableStore, open_existing


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What came of a promotion.

    Attributes:
        url: URL of the conversion's folder.
        key: Conversion key.
        channel: Channel that points to it now.
        number: Number of the channel.
        approved_by: Who approved it, as that person said; None: nobody had to.
    """

    url: str
    key: str
    channel: str
    number: int
    approved_by: str | None = None


def select_promoted(store: str, source: str, **wanted: Any) -> tuple[Selection, Manifest]:
    """Return what a channel points to now, with its checked manifest.

    Args:
        store: URL of the store.
        source: Name or source of the conversion.
        wanted: Variant and channel, as `tracefleet.published.select` takes them.

    Raises:
        NoSuchVariantError: None or several fit.
        WithdrawnError: It was withdrawn.
    """
    opened = open_existing(store)
    selection = select(opened, source, **wanted)
    return selection, load_manifest(opened, selection)


def check_here(store: str, selection: Selection, device: str | None) -> CheckReport:
    """Run a conversion's golden samples on this host; called in a child process.

    Raises:
        NoSamplesError: It was published without them.
        BackendUnavailableError: This host has no device for it.
    """
    return check(open_selected(open_existing(store), selection, device=device))


def require_right(manifest: Manifest, report: CheckReport) -> None:
    """Refuse a conversion that does not compute here what was proved.

    Raises:
        NumericsMismatchError: An output differs, or a text has other ids.
    """
    wrong = [f"{one.sample}: {one.output}" for one in report.outputs if not one.ok]
    wrong += [f"{sample}: ids" for sample, result in report.tokenizer if result == OTHER]
    if wrong:
        raise NumericsMismatchError(
            f"{manifest.source} {manifest.variant.label}: expected on {platform.node()} what eager "
            f"computed, got other values of {len(wrong)}: {', '.join(wrong[:5])}. Nothing was "
            "promoted. `tracefleet check` on that host shows every sample; other versions of torch "
            "or tokenizers than the conversion's are the usual reason."
        )


def must_ask(store: ReadableStore, selection: Selection, to: str) -> bool:
    """Return whether a person has to approve: the channel is guarded and would move.

    Raises:
        StoreError: What the store says about the guard is damaged.
    """
    return not points_there(store, selection, to) and is_guarded(store, to)


def points_there(store: ReadableStore, selection: Selection, to: str) -> bool:
    """Return whether the other channel points to the selection's conversion already."""
    entry = _read_other(store, selection, to)
    return entry is not None and entry.manifest == selection.entry.manifest


def describe_promotion(
    store: ReadableStore,
    selection: Selection,
    manifest: Manifest,
    report: CheckReport,
    to: str,
) -> str:
    """Return what a person has to know to approve, as Markdown."""
    now = _read_other(store, selection, to)
    current = "nothing" if now is None else f"`{now.key[:12]}`"
    wrong = sum(not one.ok for one in report.outputs)
    verdict = f"{wrong} DIFFER" if wrong else "all as eager computed them"
    lines = [
        f"**{manifest.source}** {manifest.variant.label}",
        f"conversion `{manifest.key[:12]}` of commit `{manifest.commit[:12]}`, lengths "
        + ", ".join(map(str, manifest.lengths)),
        f"from channel `{selection.published.channel}` (number {selection.number}) to `{to}`, "
        f"which points to {current}",
        f"golden samples on {platform.node()}: {len(report.outputs)} outputs, {verdict}; "
        f"worst error {_find_worst(report)}",
        f"{store.url}/{selection.folder}",
    ]
    return "\n\n".join(lines)


def _find_worst(report: CheckReport) -> str:
    measured = [(one.error, one.bound) for one in report.outputs if one.error is not None]
    if not measured:
        return "not measured"
    error, bound = max(measured)
    return f"{error:.1e}, allowed {bound:.1e}"


def _read_other(store: ReadableStore, selection: Selection, to: str) -> ChannelEntry | None:
    published = selection.published
    newest = read_current(store, slug_folder(published.slug, published.variant, to))
    return None if newest is None else newest[1]
