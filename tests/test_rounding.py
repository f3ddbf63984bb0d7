"""Models that make much of the last bits get torch's own layers, and nothing else does."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import pytest

from flows.convert import convert
from tasks import child
from tasks.backends.prove import _is_rounding
from tasks.errors import NumericsMismatchError
from tasks.request.conversion import make_request
from tasks.steps import Steps
from tasks.validate.verdict import ValidationReport


def calls_onednn(store: Path) -> bool:
    """Tell whether the code in an archive names oneDNN's layer."""
    [path] = store.rglob("model.pt")
    with zipfile.ZipFile(path) as archive:
        code = [archive.read(name) for name in archive.namelist() if name.endswith(".py")]
    return any(b"mkldnn._linear_pointwise" in text for text in code)


def fail(report: ValidationReport, error: float, **more: Any) -> ValidationReport:
    """Return a report in which one probe was off by a relative error."""
    first = report.probes[0]
    wrong = dataclasses.replace(first.differences[0], max_rel=error, passed=False)
    probe = dataclasses.replace(first, differences=(wrong, *first.differences[1:]))
    failed = {"failures": (f"{first.name}: relative error {error:.3g}",), **more}
    return dataclasses.replace(report, probes=(probe, *report.probes[1:]), **failed)


def convert_failing(folder: Path, store: Path, error: float, seen: list[bool]) -> Any:
    """Convert; the gate finds an error wherever the layers are oneDNN's, which ``seen`` tells."""

    def run(function: Any, *arguments: Any, **options: Any) -> Any:
        if options["step"] == "trace":
            seen.append(arguments[-1])
        outcome = child.run(function, *arguments, **options)
        if options["step"] == "validate" and seen[-1]:
            raise NumericsMismatchError("planted", fail(outcome.value, error))
        return outcome

    fields = {"source": f"file://{folder}", "task": "feature-extraction", "lengths": [8, 16]}
    return convert(make_request({**fields, "store": str(store)}), Steps(run=run)).manifest


def test_layers_that_round_too_far_are_torchs_own(checkpoint, tmp_path):
    seen: list[bool] = []
    manifest = convert_failing(checkpoint("bert"), tmp_path / "store", 3e-5, seen)
    assert seen == [True, False]
    assert manifest.general is not None, "nothing else was taken from it"
    assert not calls_onednn(tmp_path / "store")


def test_what_is_wrong_by_more_gets_no_second_try(checkpoint, tmp_path):
    seen: list[bool] = []
    with pytest.raises(NumericsMismatchError, match="planted"):
        convert_failing(checkpoint("bert"), tmp_path / "store", 2e-3, seen)
    assert seen == [True] * 3, "every reach was tried, with the same layers"


def test_only_small_differences_are_rounding(checkpoint, tmp_path):
    fields = {"source": f"file://{checkpoint('bert')}", "task": "feature-extraction"}
    request = make_request({**fields, "lengths": [8], "store": str(tmp_path)})
    report = convert(request).report
    assert report is not None
    bound = report.tolerance.rtol
    assert _is_rounding(fail(report, 5 * bound))
    assert not _is_rounding(fail(report, 50 * bound))
    assert not _is_rounding(fail(report, 5 * bound, failures=("one", "a fault was not seen")))
    assert not _is_rounding(report), "nothing failed"
    assert not _is_rounding(None)
    assert calls_onednn(tmp_path)
