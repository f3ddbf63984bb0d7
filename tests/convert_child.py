"""Carry out the requests of a JSON file, one after the other, with whatever is installed here.

The child's side of ``tests.test_transformers_versions``: prints what came of each as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flows.pipeline import convert
from flows.request import make_request
from tasks.errors import ConversionError


def outcome(fields: dict[str, Any]) -> dict[str, Any]:
    try:
        result = convert(make_request(fields))
    except ConversionError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"key": result.manifest.key, "verdict": result.manifest.validation.verdict}


if __name__ == "__main__":
    requests = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    print(json.dumps({name: outcome(fields) for name, fields in requests.items()}))
