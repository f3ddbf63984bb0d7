"""Carry out requests of a JSON file, then tests, with whatever is installed here.

The child's side of ``tests.test_transformers_versions``: one process for both, because importing
takes as long as either. Writes what came of each request as JSON; prints and ends as pytest does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flows.convert import convert
from tasks import child
from tasks.child import Limits
from tasks.errors import ConversionError
from tasks.request.conversion import make_request


def outcome(fields: dict[str, Any]) -> dict[str, Any]:
    try:
        result = convert(make_request(fields))
    except ConversionError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"key": result.manifest.key, "verdict": result.manifest.validation.verdict}


def run_tests(arguments: list[str]) -> int:
    """Run pytest where transformers is imported already: in a child as conversions have them."""
    import pytest

    return int(pytest.main(arguments))


if __name__ == "__main__":
    requests, answers, *tests = sys.argv[1:]
    asked = json.loads(Path(requests).read_text("utf-8"))
    done = {name: outcome(fields) for name, fields in asked.items()}
    Path(answers).write_text(json.dumps(done))
    log = Path(f"{answers}.log")
    # By its importable name: __main__ is not known to the child.
    from tests.support.convert_child import run_tests as task

    status = child.run(task, tests, limits=Limits(timeout=300, threads=1), log=log, step="tests")
    print(log.read_text("utf-8"))
    sys.exit(status.value)
