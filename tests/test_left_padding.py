"""Rows padded on their left and on their right as well: measured, published, never run if wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.errors import NumericsMismatchError
from tasks.model.feeds import input_specs
from tasks.model.general import make_general
from tasks.model.load import load_eager
from tasks.publish.conversion import validation_of
from tasks.sweep.tiny import Case, build
from tasks.validate.plan import plan_probes
from tests.support import tiny
from tests.support.adversarial_models import change_instance
from tests.support.gate_support import Bench
from tests.support.reader_support import SOURCE, example_manifest, publish
from tracefleet.cli import main
from tracefleet.errors import ManifestError
from tracefleet.manifest import Manifest, parse
from tracefleet.reader.left_padding import refuse_left_padded
from tracefleet.reader.model import Model
from tracefleet.store.folder import FileStore
from tracefleet.verdict_types import DIFFERS, HOLDS, UNTRIED

LENGTHS = (8, 16)
ROW = [20, 21, 22, 23, 24]
LEFT, HOLE, RIGHT, FULL = [0, 0, 1, 1, 1], [1, 0, 0, 1, 1], [1, 1, 1, 0, 0], [1] * 5


def _bench(folder: Path, work: Path, task: str, *, general: bool, **fields: Any) -> Bench:
    bench = Bench(folder=folder, work=work, task=task, lengths=LENGTHS, batch=1, **fields)
    if general:
        bench.whole, bench.general = LENGTHS[:1], make_general(bench.facts, LENGTHS, 1)
    return bench


# What the gate measures


@pytest.mark.parametrize(
    ("name", "dtype", "general", "expected"),
    [
        ("bert-cls", "float32", True, HOLDS),
        ("bert-cls", "float32", False, HOLDS),
        ("bert-cls", "int8", True, HOLDS),
        ("deberta-cls", "float32", True, DIFFERS),
        ("deberta-cls", "float32", False, DIFFERS),
        ("deberta-cls", "int8", True, DIFFERS),
        ("deberta-cls", "int8", False, DIFFERS),
    ],
)
def test_padding_on_both_sides_is_measured(name, dtype, general, expected, checkpoint, tmp_path):
    folder, task = checkpoint(name), "text-classification"
    bench = _bench(folder, tmp_path / "work", task, general=general, dtype=dtype)
    report = bench.validate(bench.trace())
    assert report.passed, "nothing is refused for it"
    assert report.left_padding == expected
    assert validation_of(report, report.tolerance).left_padding == expected


@pytest.mark.parametrize("general", [True, False])
def test_what_is_never_padded_is_not_tried(general: bool, checkpoint, tmp_path):
    bench = _bench(checkpoint("bert"), tmp_path / "w", "feature-extraction", general=general)
    bench.facts = bench.facts.without_padding()
    report = bench.validate(bench.trace())
    assert report.left_padding == UNTRIED
    judged = {probe.name for probe in report.probes if probe.name.startswith("general-left-pad")}
    assert bool(judged) is general, "a general graph runs left-padded rows as they are"


def test_a_model_without_a_mask_gets_no_such_probe(checkpoint, tmp_path):
    folder = build(Case(model_type="fnet", task="fill-mask"), tmp_path / "fnet")
    bench = _bench(folder, tmp_path / "work", "fill-mask", general=False)
    assert not any(probe.left_padded for probe in plan_probes(bench.plan()))
    masked = _bench(checkpoint("bert-mlm"), tmp_path / "work", "fill-mask", general=False)
    assert any(probe.left_padded for probe in plan_probes(masked.plan())), "the control"


@pytest.mark.parametrize("lengths", [(1, 2), (3,), (4, 5, 6), (2, 64), (16, 48), (128,)])
@pytest.mark.parametrize("general", [True, False])
def test_rows_are_short_and_none_has_a_standard_length(lengths, general, checkpoint, tmp_path):
    bench = _bench(checkpoint("bert"), tmp_path / "w", "feature-extraction", general=False)
    plan = dataclasses.replace(bench.plan(), lengths=lengths, whole=lengths)
    if general:
        plan = dataclasses.replace(plan, general=make_general(bench.facts, lengths, 1))
    probes = [probe for probe in plan_probes(plan) if probe.left_padded]
    assert len(probes) <= 4
    measured = [probe for probe in probes if probe.measured]
    assert bool(measured) is (lengths != (1, 2)), "a row of one token has no room on its left"
    assert len({probe.key for probe in probes}) == len(probes)
    for probe in probes:
        mask = probe.eager_feed["attention_mask"]
        rows, tokens = mask.shape
        assert rows <= 2
        assert tokens not in lengths
        assert next(one for one in lengths if one > tokens) == probe.length
        assert bool((mask[0, 1:] > mask[0, :-1]).any()), "a zero before a one"
        padded = probe.reference_feed is not None
        assert padded is (general and not probe.general)


@torch.jit.script
def _spoil_both(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Change rows with several tokens between padding on both sides."""
    both = (mask[:, 0] == 0) & (mask[:, -1] == 0) & (mask.sum(1) > 1)
    return values + 0.5 * both.to(values.dtype).reshape(-1, 1, 1)


@torch.jit.script
def _spoil_left(values: torch.Tensor, mask: torch.Tensor, standard: int) -> torch.Tensor:
    """Change rows with padding on their left alone that are not of the standard length."""
    if mask.size(1) == standard:
        return values
    left = (mask[:, 0] == 0) & (mask[:, -1] == 1)
    return values + 0.5 * left.to(values.dtype).reshape(-1, 1, 1)


def _plant(spoil: Callable[..., torch.Tensor], *more: int) -> Callable[[Any], None]:
    def changed(run: Any, *, attention_mask: torch.Tensor, **rest: Any) -> Any:
        outputs = run(attention_mask=attention_mask, **rest)
        hidden = outputs["last_hidden_state"]
        outputs["last_hidden_state"] = spoil(hidden, attention_mask, *more)
        return outputs

    return lambda model: change_instance(model, changed)


@pytest.mark.parametrize("general", [True, False])
def test_a_bundle_that_is_wrong_there_alone_is_found_out(general: bool, checkpoint, tmp_path):
    """Negative control: eager holds, the planted bundle does not, and no judged probe sees it."""
    bench = _bench(checkpoint("bert"), tmp_path / "w", "feature-extraction", general=general)
    report = bench.validate(bench.trace(_plant(_spoil_both)))
    assert report.passed
    assert report.left_padding == DIFFERS


def test_a_general_graph_that_is_wrong_on_left_padded_rows_is_none(checkpoint, tmp_path):
    bench = _bench(checkpoint("bert"), tmp_path / "w", "feature-extraction", general=True)
    with pytest.raises(NumericsMismatchError) as caught:
        bench.validate(bench.trace(_plant(_spoil_left, LENGTHS[0])))
    assert caught.value.report is not None
    failed = {probe.name for probe in caught.value.report.probes if not probe.difference.passed}
    assert failed == {"general-left-pad-2x4"}


# What the reader runs, and what it refuses


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Callable[..., tuple[Model, Any]]:
    """Return a conversion of DeBERTa's classifier as a reader opens it, and its eager model."""
    made: dict[bool, Any] = {}

    def open_model(*, general: bool, left_padding: str = DIFFERS) -> tuple[Model, Any]:
        if general not in made:
            work = tmp_path_factory.mktemp("work")
            folder = tiny.save("deberta-cls", work)
            bench = _bench(folder, work, "text-classification", general=general)
            module = torch.jit.load(bench.trace().path).eval()
            made[general] = bench, module, load_eager(bench.folder, bench.options)
        bench, module, eager = made[general]
        manifest = example_manifest(
            inputs=input_specs(bench.facts),
            outputs=bench.outputs,
            lengths=LENGTHS,
            general=bench.general,
            validation=_verdict(left_padding),
        )
        return Model(manifest, module), eager

    return open_model


def _verdict(left_padding: str) -> Any:
    return dataclasses.replace(example_manifest().validation, left_padding=left_padding)


def _run_eager(eager: Any, ids: Any, mask: Any) -> Any:
    with torch.no_grad():
        return eager(torch.tensor([ids]), attention_mask=torch.tensor([mask])).logits[0].numpy()


def _name_rows(rows: list[list[int]], masks: list[list[int]]) -> list[dict[str, list[int]]]:
    named = zip(rows, masks, strict=True)
    return [{"input_ids": row, "attention_mask": mask} for row, mask in named]


@pytest.mark.parametrize("mask", [LEFT, HOLE])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_a_row_that_would_be_padded_on_both_sides_is_refused(opened, mask: Any, kind: Any):
    model, _ = opened(general=False)
    message = "attention_mask: row 1: expected ones, then zeros, .* 5 tokens.*exactly 8, 16 tokens"
    with pytest.raises(ValueError, match=message):
        model(kind([ROW, ROW]), kind([FULL, mask]))


def test_rows_of_several_lengths_are_refused_by_their_own_number(opened):
    model, _ = opened(general=False)
    rows, masks = [[9, 8], [7], ROW], [[1, 1], [1], LEFT]
    with pytest.raises(ValueError, match="attention_mask: row 2: expected ones, then zeros"):
        model(rows, masks)
    with pytest.raises(ValueError, match="attention_mask: row 2: expected ones, then zeros"):
        list(model.stream(_name_rows(rows, masks), window=1))


@pytest.mark.parametrize("mask", [RIGHT, FULL])
def test_rows_padded_on_the_right_and_full_ones_are_eagers(opened, mask: Any):
    model, eager = opened(general=False)
    expected = _run_eager(eager, ROW, mask)
    assert np.allclose(model([ROW], [mask]).logits[0], expected, atol=1e-5)
    assert np.allclose(model([ROW, [9]], [mask, [1]]).logits[0], expected, atol=1e-5)


@pytest.mark.parametrize("mask", [[0] * 3 + [1] * 5, [1, 0, 0, 1, 1, 0, 0, 0]])
def test_at_exactly_a_standard_length_every_mask_is_eagers(opened, mask: Any):
    model, eager = opened(general=False)
    ids = [*ROW, 25, 26, 27]
    expected = _run_eager(eager, ids, mask)
    assert np.allclose(model([ids], [mask]).logits[0], expected, atol=1e-5)
    # Beside a longer row it must not be padded to that one's length.
    longer = [*ids, 28, 29]
    assert np.allclose(model([ids, longer], [mask, [1] * 10]).logits[0], expected, atol=1e-5)


def test_a_general_graph_runs_every_mask_at_its_own_length(opened):
    model, eager = opened(general=True)
    rows = [ROW, [9, 8], [*ROW, 25, 26, 27, 28], ROW]
    masks = [LEFT, [0, 1], [1] * 9, HOLE]
    found = model(rows, masks).logits
    streamed = model.stream(_name_rows(rows, masks))
    for row, mask, got, single in zip(rows, masks, found, streamed, strict=True):
        expected = _run_eager(eager, row, mask)
        assert np.allclose(got, expected, atol=1e-5)
        assert np.allclose(single.logits, expected, atol=1e-5)
        assert np.allclose(model(np.array([row]), np.array([mask])).logits[0], expected, atol=1e-5)


@pytest.mark.parametrize("left_padding", [HOLDS, UNTRIED])
@pytest.mark.parametrize("general", [True, False])
def test_without_the_verdict_it_would_run_and_be_wrong(opened, general: bool, left_padding: str):
    """The control: what is refused, or run at its own length, is wrong by far if it is not."""
    model, eager = opened(general=general, left_padding=left_padding)
    got = model([ROW, [*ROW, 25]], [LEFT, [1] * 6]).logits[0]
    expected = _run_eager(eager, ROW, LEFT)
    assert np.abs(got - expected).max() > 0.01 * np.abs(expected).max()


def _manifest(**changes: Any) -> Manifest:
    return example_manifest(validation=_verdict(DIFFERS), **changes)


def test_choices_and_decoders_are_looked_at_too():
    inputs = example_manifest().inputs[:2]
    ids = torch.ones(2, 2, 3, dtype=torch.int64)
    mask = ids.clone()
    choices = tuple(dataclasses.replace(s, axes=("batch", "2", "length")) for s in inputs)
    refuse_left_padded(_manifest(inputs=choices), [ids, mask])
    mask[1, 1, 0] = 0
    with pytest.raises(ValueError, match="attention_mask: row 1"):
        refuse_left_padded(_manifest(inputs=choices), [ids, mask])
    # A longer decoder takes an encoder of a standard length to the next one.
    decoder = dataclasses.replace(
        inputs[0], name="decoder_input_ids", axes=("batch", "decoder_length")
    )
    pair = _manifest(inputs=(*inputs, decoder))
    tokens, hidden = torch.ones(1, 4, dtype=torch.int64), torch.tensor([[0, 1, 1, 1]])
    refuse_left_padded(pair, [tokens, hidden, tokens])
    with pytest.raises(ValueError, match="attention_mask: row 0"):
        refuse_left_padded(pair, [tokens, hidden, torch.ones(1, 5, dtype=torch.int64)])


# What the manifest says


@pytest.mark.parametrize("word", [HOLDS, DIFFERS, UNTRIED])
def test_a_manifest_says_it_and_reads_back_the_same(word: str):
    manifest = example_manifest(validation=_verdict(word))
    assert json.loads(manifest.to_bytes())["validation"]["left_padding"] == word
    assert parse(manifest.to_bytes()) == manifest


def test_another_word_is_refused():
    with pytest.raises(ManifestError, match="left_padding expected one of holds, differs, untried"):
        _verdict("raises")


@pytest.mark.parametrize("schema", [1, 2])
def test_earlier_schemas_do_not_say_it(schema: int):
    data = Path(f"tests/data/manifest.{schema}.golden.json").read_bytes()
    assert parse(data).validation.left_padding == UNTRIED
    raw = json.loads(data)
    raw["validation"]["left_padding"] = HOLDS
    with pytest.raises(ManifestError, match=f"schema {schema} has no field left_padding"):
        parse(json.dumps(raw).encode())


def test_what_schema_2_can_not_say_is_left_out():
    older = _manifest().in_schema(2)
    assert b"left_padding" not in older.to_bytes()
    assert parse(older.to_bytes()) == older


def test_show_prints_it(tmp_path, capsys):
    store = FileStore(root=tmp_path / "store")
    publish(store, validation=_verdict(DIFFERS))
    assert main(["show", str(tmp_path / "store"), SOURCE]) == 0
    wanted = "left pads  give another result if they are padded on the right as well"
    assert wanted in capsys.readouterr().out
