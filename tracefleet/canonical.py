"""Canonical JSON and relative paths: the forms that digests and stores depend on."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from tracefleet.errors import ManifestError


def canonical_json(value: Any) -> bytes:
    """Return the one byte form of plain data: sorted keys, no spaces, UTF-8, final newline."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode() + b"\n"


def check_relative(path: str) -> str:
    """Return ``path`` if it is relative, normalised and stays inside its folder.

    Raises:
        ManifestError: it is absolute, has ``..``, a backslash, an empty or a hidden-dot segment.
    """
    parts = path.split("/")
    bad = any(part in ("", ".", "..") for part in parts)
    if bad or "\\" in path or "\0" in path or PurePosixPath(path).is_absolute():
        raise ManifestError(
            f"path expected relative and normalised, got {path!r}. The manifest was edited or "
            "forged; do not use this conversion."
        )
    return path
