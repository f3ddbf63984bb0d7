"""The next step of a failure: it comes from the reason, and every refusal of ours has one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import errors
from tasks.child_main import crash_error
from tasks.errors import ConversionError, first_line
from tasks.fetch.checkpoint import fetch, resolve
from tasks.model.facts import LoadOptions
from tasks.model.heads import read_config
from tasks.report.fleet.steps import split_step

ROOT = Path(__file__).parent.parent
#: No failures of an entry: what is only left out, and what is told of whole fleets and sweeps.
_NO_ROWS = {"GenerationError", "FleetError", "CurrentError"}
_VERBS = (
    "accept|add|allow|ask|check|choose|compare|convert|copy|correct|deploy|do|drop|fetch|give|"
    "install|leave|look|lower|make|name|open|pull|raise|read|remove|report|restore|resolve|run|save|see|"
    "serve|set|start|take|trace|try|unset|upgrade|upload|use|validate|wait|write|separate|lift|"
    "redo|`tracefleet|`git"
)
_STEP = re.compile(rf"(?:^|[;:,] |then |or |please |and |that, )({_VERBS})\b", re.IGNORECASE)


def _text(node: ast.expr) -> str:
    """A message with a mark for every value in it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "{}"


def refusals() -> Iterator[tuple[str, str, str]]:
    """Every refusal in the sources: where it is, its type, its message."""
    for path in sorted([*(ROOT / "tasks").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]):
        if "sweep" in path.parts or "commands" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = getattr(getattr(node, "func", None), "id", "")
            if isinstance(node, ast.Call) and node.args and name not in _NO_ROWS:
                kind = getattr(errors, name, None)
                if isinstance(kind, type) and issubclass(kind, ConversionError):
                    text = _text(node.args[0])
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", name, text


def lacks_step(kind: str, message: str) -> bool:
    """Whether a message, a whole one, ends without saying what to do."""
    # A mistake of a request names its field, what was expected and what was got.
    if message.count(" ") < 3 or (kind == "RequestError" and ". " not in message):
        return False
    return not _STEP.search(split_step(kind, message)[1])


def test_every_refusal_ends_with_its_next_step():
    found = list(refusals())
    assert len(found) > 80
    assert [one for one in found if lacks_step(one[1], one[2])] == []


@pytest.mark.parametrize(
    ("kind", "message", "lacking"),
    [
        ("TraceError", "x: expected a graph, got none. It can't be one with these versions.", True),
        ("TraceError", "x: expected a graph, got none. Nothing was published.", True),
        ("TraceError", "x: expected a graph, got none. Report it with the config.", False),
    ],
)
def test_a_refusal_without_a_step_is_seen(kind: str, message: str, lacking: bool):
    assert lacks_step(kind, message) is lacking


def _truncate(folder: Path) -> Any:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return fetch(resolve(f"file://{folder}"))


def _lose_weights(folder: Path) -> Any:
    (folder / "model.safetensors").unlink()
    return fetch(resolve(f"file://{folder}"))


def _pickle(folder: Path) -> Any:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return fetch(resolve(f"file://{folder}"))


def _rename_type(folder: Path) -> Any:
    (folder / "config.json").write_text('{"model_type": "bert-of-next-year"}')
    return read_config(folder, LoadOptions(task="fill-mask"))


@pytest.mark.parametrize(
    ("spoil", "kind", "step"),
    [
        (_truncate, "UnsafeCheckpointError", "fetch or copy it again"),
        (_lose_weights, "UnsupportedCheckpointError", r"save_pretrained\(\)"),
        (_pickle, "UnsafeCheckpointError", "allow_pickle"),
        (_rename_type, "UnsupportedCheckpointError", "newer transformers"),
    ],
)
def test_the_step_follows_from_what_happened(own_checkpoint, spoil: Any, kind: str, step: str):
    with pytest.raises(ConversionError) as caught:
        spoil(own_checkpoint("bert"))
    reason, found = split_step(type(caught.value).__name__, str(caught.value))
    assert type(caught.value).__name__ == kind
    assert re.search(step, found)
    assert "expected" in reason
    assert ".." not in f"{reason} {found}"


@pytest.mark.parametrize(
    ("kind", "message", "transient", "step"),
    [
        ("ConnectError", "[Errno -2] Name or service not known", True, "Check the network, then r"),
        ("ConnectError", "h: expected an answer of h, got none. Check the proxy.", True, "Check t"),
        ("RequestError", "dtype: expected one of a, b; got 'c'", False, "Correct the entry"),
        (
            "RequestError",
            "2 mistakes:\nA: expected 1, got 2.\nB: expected 2, got 3.",
            False,
            "Corr",
        ),
        ("KeyError", "'bert'. Sorry.", False, "Look at the run's log, then run the fleet again."),
    ],
)
def test_messages_without_a_step_get_that_of_their_type(
    kind: str, message: str, transient: bool, step: str
):
    assert split_step(kind, message, transient=transient)[1].startswith(step)


def test_what_a_process_wrote_last_is_no_step(tmp_path: Path):
    log = tmp_path / "trace.log"
    log.write_text("Fatal Python error\nSegmentation fault. Core dumped")
    told = str(crash_error("trace", "signal SIGSEGV", log))
    reason, step = split_step("ConversionCrashedError", told)
    assert reason.endswith("Core dumped")
    assert step.startswith("Raise the request's timeout or memory limit")


def test_a_quoted_sentence_brings_no_full_stop_of_its_own():
    assert first_line(ValueError("Out of date..\nmore")) == "Out of date"
    assert split_step("TraceError", "got: no.. Report it.") == ("got: no.", "Report it.")
