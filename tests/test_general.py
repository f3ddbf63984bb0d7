"""One graph for every shape: what is proved of it, and graphs that must never be served so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tracefleet
from flows.convert import convert
from tasks import child
from tasks.errors import NumericsMismatchError
from tasks.model.general import MOST_ROWS, make_general
from tasks.request.conversion import make_request
from tasks.steps import Steps
from tasks.sweep.tiny import Case, build
from tasks.validate.plan import plan_probes
from tests.support import tiny
from tests.support.adversarial_models import change_instance
from tests.support.gate_support import Bench
from tracefleet.manifest_types import General

LENGTHS = (8, 16, 32)


@torch.jit.script
def _spoil(values: torch.Tensor, ids: torch.Tensor, axis: int, first: int, last: int):
    """Change the values where an axis of the ids has some size; a trace keeps this branch."""
    size = ids.size(axis)
    if size >= first and size <= last:
        return values * 1.5
    return values


def _plant(model: Any, *, axis: int, first: int, last: int) -> None:
    def changed(run: Any, *, input_ids: torch.Tensor, **rest: Any) -> Any:
        outputs = run(input_ids=input_ids, **rest)
        name = next(iter(outputs))
        outputs[name] = _spoil(outputs[name], input_ids, axis, first, last)
        return outputs

    change_instance(model, changed)


#: Right at every standard length, and wrong somewhere else: axis, and the sizes that are wrong.
PLANTED = {
    "from 12 up to the next": (1, 12, 15),
    "just below the longest": (1, 31, 31),
    "just over the shortest": (1, 9, 9),
    "from 9 rows on": (0, 9, 1000),
    "three rows": (0, 3, 3),
    "only many rows": (0, 33, 1000),
    "two rows": (0, 2, 2),
}


def _bench(checkpoint: Any, tmp_path: Any) -> Bench:
    bench = Bench(
        folder=checkpoint("bert"),
        work=tmp_path / "bench",
        task="feature-extraction",
        lengths=LENGTHS,
        batch=1,
        whole=LENGTHS[:1],
    )
    bench.general = make_general(bench.facts, LENGTHS, 1)
    return bench


@pytest.mark.parametrize("fault", PLANTED)
def test_a_graph_that_is_wrong_at_some_shape_fails_there(fault: str, checkpoint, tmp_path):
    axis, first, last = PLANTED[fault]
    bench = _bench(checkpoint, tmp_path)
    bundle = bench.trace(lambda model: _plant(model, axis=axis, first=first, last=last))
    with pytest.raises(NumericsMismatchError) as caught:
        bench.validate(bundle)
    assert caught.value.report is not None
    failed = [probe for probe in caught.value.report.probes if not probe.difference.passed]
    assert failed
    assert all(probe.name.startswith(("general-", "dispatch-", "batch-")) for probe in failed)


def test_the_sound_graph_passes_and_holds(checkpoint, tmp_path):
    bench = _bench(checkpoint, tmp_path)
    report = bench.validate(bench.trace())
    assert report.passed
    assert {(v.other_lengths, v.other_batches) for v in report.lengths()} == {("holds", "holds")}
    names = {probe.name for probe in report.probes if probe.name.startswith("general-")}
    assert {"general-1x1", "general-1x7", "general-1x9", "general-1x15", "general-1x31"} <= names
    assert {"general-2x32", f"general-{MOST_ROWS}x4", "general-17x8"} <= names


def test_probes_are_the_same_in_every_process(checkpoint, tmp_path):
    plan = _bench(checkpoint, tmp_path).plan()
    one, two = list(plan_probes(plan)), list(plan_probes(plan))
    assert [probe.key for probe in one] == [probe.key for probe in two]
    assert len({probe.key for probe in one}) == len(one)
    for first, second in zip(one, two, strict=True):
        assert all(torch.equal(first.feed[name], second.feed[name]) for name in first.feed)


def _request(folder: Any, store: Any, **fields: Any) -> Any:
    given = {"source": str(folder), "store": str(store), "lengths": list(LENGTHS), **fields}
    return make_request(given)


def _trace_planted(fault: str, *arguments: Any) -> Any:
    """Trace with a planted fault; the whole job of a child that is thrown away."""
    import tasks.model.load
    from tasks.trace import record

    axis, first, last = PLANTED[fault]
    original = tasks.model.load.load_eager

    def load(*loading: Any) -> Any:
        model = original(*loading)
        _plant(model, axis=axis, first=first, last=last)
        return model

    setattr(record, "load_eager", load)  # noqa: B010
    setattr(record, "untie_with_proof", lambda *_: ())  # noqa: B010
    return record.trace_checkpoint(*arguments)


@pytest.mark.parametrize("fault", ["from 12 up to the next", "from 9 rows on"])
def test_a_planted_graph_is_served_at_its_standard_lengths_alone(
    fault: str, checkpoint, tmp_path, caplog
):
    """Padded to a standard length and one row at a time it is right, and so it is published."""
    caplog.set_level("INFO", logger="tasks")

    def run(function: Any, *arguments: Any, **options: Any) -> Any:
        if options["step"] == "trace":
            return child.run(_trace_planted, fault, *arguments, **options)
        return child.run(function, *arguments, **options)

    folder, store = checkpoint("bert"), tmp_path / "store"
    request = _request(folder, store, task="feature-extraction")
    result = convert(request, Steps(run=run))
    assert "does not hold at every shape" in caplog.text
    assert result.manifest.general is None
    assert "these checks did not pass: general-" in str(result.manifest.routed)
    rows = np.arange(1, 13 * 12 + 1).reshape(12, 13) % 250
    eager = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = eager(torch.tensor(rows)).last_hidden_state.numpy()
    opened = tracefleet.open(store, folder)
    assert np.allclose(opened(rows).last_hidden_state, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "task", "lengths"),
    [
        ("longformer", "fill-mask", [8, 32]),
        ("led", "text2text-generation", [8, 32]),
        ("big_bird", "fill-mask", [32, 64]),  # its attention is sparse from 57 tokens on
        ("funnel", "fill-mask", [8, 32]),
    ],
)
def test_architectures_that_change_with_the_shape_are_never_general(
    model_type: str, task: str, lengths: list[int], tmp_path
):
    folder = build(Case(model_type=model_type, task=task), tmp_path / model_type)
    request = _request(folder, tmp_path / "store", task=task, lengths=lengths)
    assert convert(request, Steps()).manifest.general is None


def test_a_model_that_minds_padding_runs_every_length(tmp_path):
    """GPT-2 takes no mask here that hides padding: ragged rows run with their equals."""
    torch.manual_seed(0)
    model = transformers.GPT2Model(transformers.GPT2Config(**tiny.GPT2)).eval()
    model.save_pretrained(tmp_path / "gpt2")
    request = _request(tmp_path / "gpt2", tmp_path / "store", task="feature-extraction")
    manifest = convert(request, Steps()).manifest
    assert manifest.general == General(shortest=1, rows=64, tokens=1024)
    opened = tracefleet.open(tmp_path / "store", tmp_path / "gpt2")
    rows = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [8, 8, 8]]
    found = opened(rows)
    for row, hidden in zip(rows, found.last_hidden_state, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([row])).last_hidden_state[0].numpy()
        assert np.allclose(hidden[: len(row)], expected, atol=1e-5)
        assert not hidden[len(row) :].any()
