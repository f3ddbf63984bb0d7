"""What a command prints of a conversion: a table for a person, or one JSON document."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.engine.record import Conversion


def print_result(options: argparse.Namespace, result: Conversion) -> int:
    """Print what came of a request, and return the exit code: 1 for what readers refuse."""
    if options.json:
        print(json.dumps(_as_json(result), indent=2))
    else:
        from flows.commands.summary import summarise

        print(summarise(result))
    return 0 if result.publication.withdrawal is None else 1


def _status(result: Conversion) -> str:
    if not result.validated:
        return "compiled before" if result.fresh else "compiled"
    if result.publication.withdrawal is not None:
        return "withdrawn"
    return "already published" if result.fresh else "published"


def _as_json(result: Conversion) -> dict[str, Any]:
    from flows.commands.use import list_uses

    withdrawal, named = result.publication.withdrawal, result.publication.named
    number, reason = withdrawal or (None, None)
    return {
        "status": _status(result),
        "url": result.publication.url,
        "channel": result.publication.channel,
        "number": result.publication.number,
        "rolled_back_number": result.publication.rolled_back_number,
        "withdrawn": reason,
        "withdrawn_number": number,
        "manifest_digest": result.publication.manifest_digest,
        "report": result.report_url,
        "name": result.publication.name,
        "name_number": named and named.number,
        "name_moved_from": named and named.moved_from,
        "use": list_uses(result),
        "manifest": json.loads(result.manifest.to_bytes()),
    }
