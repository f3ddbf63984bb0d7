"""The conversion key: what makes two conversions the same one.

Everything that shapes the bytes is in it; nothing of who, when or where is. Weights are in it
through the commit. The same key, already published, means done.
"""

from __future__ import annotations

import dataclasses
import hashlib

from tracefleet.canonical import canonical_json
from tracefleet.manifest import Toolchain, Variant

#: Version of tracefleet's own conversion semantics: raise it when the same checkpoint and
#: toolchain give other bytes or other promises than before, and every fleet becomes stale.
RECIPE = 2


def conversion_key(
    *,
    commit: str,
    variant: Variant,
    lengths: tuple[int, ...],
    options: dict[str, str],
    toolchain: Toolchain,
    recipe: int = RECIPE,
) -> str:
    """Return the sha256 over the canonical JSON of what identifies a conversion.

    Args:
        commit: what the source's revision resolved to.
        variant: task, backend, dtype, batch.
        lengths: standard lengths, ascending.
        options: what else the request chose that changes the conversion or its gate.
        toolchain: versions that shape the bytes.
        recipe: version of our own semantics.
    """
    identity = {
        "commit": commit,
        "variant": dataclasses.asdict(variant),
        "lengths": lengths,
        "options": options,
        "toolchain": dataclasses.asdict(toolchain),
        "recipe": recipe,
    }
    return hashlib.sha256(canonical_json(identity)).hexdigest()
