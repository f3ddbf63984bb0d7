"""Generation in the artifact: the search, what is refused, its gate, and the way to a reader."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

import tracefleet
from flows.convert import convert
from tasks import child
from tasks.errors import GenerationError, NumericsMismatchError
from tasks.model.facts import LoadOptions
from tasks.model.generation import read_decoding
from tasks.model.preflight import inspect
from tasks.request.conversion import make_request
from tasks.steps import Steps
from tasks.trace import generation
from tasks.trace.record import trace_checkpoint
from tasks.validate.generation import validate_generation
from tasks.validate.generation_reference import compute_generation
from tasks.validate.verdict import TOLERANCES
from tests.support import tiny
from tests.support.trained import save_trained
from tracefleet.cli import main
from tracefleet.errors import AnswerTooLongError, InputTooLongError, NoGenerationError
from tracefleet.reader import search_script

TASK, LENGTHS = "text2text-generation", [8, 16]


def _convert(folder: Path, store: Path, **more: Any) -> Any:
    fields = {"source": f"file://{folder}", "task": TASK, "lengths": LENGTHS, "store": str(store)}
    return convert(make_request({**fields, **more})).manifest


def _bundle(store: Path) -> Any:
    (path,) = store.rglob("model.pt")
    return torch.jit.load(path).eval()


def _set_generation(folder: Path, **options: Any) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))


def _rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 200, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    mask[2, 1:] = 0
    return ids, mask


def _expect_equal(folder: Path, bundle: Any, limit: int = 16) -> None:
    eager = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ids, mask = _rows()
    for beams in (1, 3):
        expected = eager.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=limit, num_beams=beams
        )
        with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            got = bundle.generate(ids, mask, limit, beams)
        assert torch.equal(got, expected)


def test_marian_generates_in_its_archive_what_transformers_generates(own_checkpoint, tmp_path):
    folder = own_checkpoint("marian")
    _set_generation(folder, bad_words_ids=[[0], [9, 3]], renormalize_logits=True, num_beams=2)
    manifest = _convert(folder, tmp_path / "store")
    made = manifest.generation
    assert manifest.without_generation is None
    assert (made.num_beams, made.start, made.eos, made.layers) == (2, 0, (1,), 2)
    assert made.options["bad_words"] == "[[0], [9, 3]]"
    assert made.verdict.beams == (1, 2, 4)
    assert made.verdict.max_rel_error < 1e-5
    assert made.verdict.rows >= 3 * 2 * 8
    assert len(made.verdict.faults) == 5
    assert manifest.follows_device, "its search makes every tensor where the ids are"
    _expect_equal(folder, _bundle(tmp_path / "store"))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_reader_generates_from_rows_of_any_length(name: str, checkpoint, tmp_path):
    folder = checkpoint(name)
    manifest = _convert(folder, tmp_path / "store")
    model = tracefleet.open(tmp_path / "store", manifest.source)
    eager = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    rows = [[20, 30, 40, 50, 60], [21], [22, 33, 44]]
    ids = torch.zeros((3, 5), dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    mask = (ids > 0).long()
    for beams in (1, 4):
        options: dict[str, Any] = {"max_new_tokens": 10, "num_beams": beams}
        expected = eager.generate(input_ids=ids, attention_mask=mask, **options)
        assert model.generate(rows, **options).tolist() == expected.tolist()
        assert torch.equal(model.generate(ids, mask, **options), expected)
    forced = eager.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=6, forced_bos_token_id=77
    )
    assert model.generate(rows, max_new_tokens=6, first_token=77).tolist() == forced.tolist()


def test_bad_input_is_refused_by_type_in_python_and_by_the_bundle(checkpoint, tmp_path):
    manifest = _convert(checkpoint("t5"), tmp_path / "store")
    model = tracefleet.open(tmp_path / "store", manifest.source)
    with pytest.raises(InputTooLongError, match="16"):
        model.generate([list(range(5, 22))])
    with pytest.raises(AnswerTooLongError, match="at most 16"):
        model.generate([[5, 6]], max_new_tokens=17)
    for wrong in ({"num_beams": 0}, {"num_beams": 1.5}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected a whole number"):
            model.generate([[5, 6]], **wrong)
    with pytest.raises(ValueError, match="empty row"):
        model.generate([[5, 6], []])
    with pytest.raises(ValueError, match="row 1"):
        model.generate([[5, 6], [7, 8]], [[1, 1], [0, 0]])
    with pytest.raises(ValueError, match="outside the model's vocabulary"):
        model.generate([[5, 256]])
    with pytest.raises(ValueError, match="first_token"):
        model.generate([[5]], first_token=-2)
    bundle, row = _bundle(tmp_path / "store"), torch.tensor([[5, 6]])
    ones = torch.ones_like(row)
    for arguments in (
        (torch.ones((1, 17), dtype=torch.int64), torch.ones((1, 17), dtype=torch.int64), 4),
        (row, ones, 17),
        (row, ones, 0),
        (row, ones, 4, 0),
        (row, torch.zeros_like(row), 4),
        (row, ones[:, :1], 4),
        (row[0], ones[0], 4),
    ):
        with pytest.raises(torch.jit.Error, match="expected"):
            bundle.generate(*arguments)


def test_a_search_that_the_loop_lacks_is_refused_by_name_and_may_be_greedy(
    own_checkpoint, tmp_path, capsys
):
    folder = own_checkpoint("bart")
    _set_generation(folder, do_sample=True, num_beams=2)
    manifest = _convert(folder, tmp_path / "store")
    assert manifest.generation is None
    assert manifest.without_generation.startswith("do_sample: expected greedy or beam search")
    model = tracefleet.open(tmp_path / "store", manifest.source)
    assert model([[5, 6]], decoder_input_ids=[[2]])["logits"].shape == (1, 1, 256)
    with pytest.raises(NoGenerationError, match="do_sample"):
        model.generate([[5, 6]])
    greedy = _convert(folder, tmp_path / "greedy", generation="greedy")
    assert greedy.options["generation"] == "greedy"
    assert greedy.generation.num_beams == 1
    for store, told in (("store", "no: do_sample: expected"), ("greedy", "greedily, up to 16")):
        assert main(["show", str(tmp_path / store), manifest.source]) == 0
        assert f"generates  {told}" in capsys.readouterr().out
    without = _convert(folder, tmp_path / "without", generation="none")
    assert (without.generation, without.without_generation) == (None, None)


@pytest.mark.parametrize(
    "option",
    [
        {"guidance_scale": 1.5},
        {"stop_strings": ["."]},
        {"encoder_repetition_penalty": 1.2},
        {"exponential_decay_length_penalty": [5, 1.1]},
        {"num_return_sequences": 2, "num_beams": 2},
        {"remove_invalid_values": True},
        {"sequence_bias": [[[5], 1.0]]},
        {"decoder_start_token_id": None, "bos_token_id": None},
    ],
)
def test_an_unknown_option_is_never_ignored(option: dict[str, Any]):
    plain = {"decoder_start_token_id": 2, "eos_token_id": 2, "temperature": 0.7, "my_note": "x"}
    assert read_decoding(GenerationConfig(**plain), "own").start == 2
    assert read_decoding(GenerationConfig(**plain, max_new_tokens=7), "own").max_length == 8
    with pytest.raises(GenerationError, match=next(iter(option))):
        read_decoding(GenerationConfig(**{**plain, **option}), "own")


#: A fault in the search itself, as text of its source, and what its gate says.
PLANTED = {
    "beams not reordered": ("one.index_select(0, order)", "one", "4 beam"),
    "position off by one": ("torch.tensor(tokens,", "torch.tensor(tokens + 1,", "1 beam"),
    "ends ignored": ("open_rows = open_rows &", "open_rows = open_rows | True |", "1 beam"),
    "padding attended": ("self.step(attention_mask,", "self.step(attention_mask * 0 + 1,", "beam"),
    "mask of another row": ("self.step(attention_mask,", "self.step(attention_mask.flip(0),", "b"),
    "length penalty": ("final = best / (float(tokens)", "final = best / (1.0", "4 beam"),
}


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Marian whose answers end: many of its ids are ends."""
    folder = tiny.save("marian", tmp_path_factory.mktemp("ending"))
    _set_generation(folder, eos_token_id=list(range(1, 120, 5)), length_penalty=3.0)
    return folder


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_in_the_search_is_caught_by_its_gate(fault: str, ending, tmp_path, monkeypatch):
    before, after, told = PLANTED[fault]
    written = search_script.search_source

    def faulty(*arguments: Any) -> list[str]:
        source = written(*arguments)
        assert any(before in text for text in source)
        return [text.replace(before, after) for text in source]

    monkeypatch.setattr(generation, "search_source", faulty)
    bundle, reference = _make(ending, tmp_path)
    with pytest.raises(NumericsMismatchError, match=told):
        validate_generation(bundle, reference, TOLERANCES["float32"])


def test_the_same_search_without_a_fault_passes_and_tells_what_it_showed(ending, tmp_path):
    bundle, reference = _make(ending, tmp_path)
    verdict = validate_generation(bundle, reference, TOLERANCES["float32"])
    assert verdict.unproved == ()
    blind = dataclasses.replace(TOLERANCES["float32"], rtol=10.0)
    with pytest.raises(GenerationError, match="got none of position off by one, beams not"):
        validate_generation(bundle, reference, blind)
    strict = dataclasses.replace(TOLERANCES["float32"], rtol=1e-12)
    with pytest.raises(NumericsMismatchError, match="steps in a cache of 8"):
        validate_generation(bundle, reference, strict)


def test_steps_that_write_to_another_place_are_seen(ending, tmp_path, monkeypatch):
    """Late in a cache, where no later step reads what an earlier one wrote."""
    layer = generation._layer_class()

    def update(self: Any, keys: Any, values: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        place = self.position.clamp(max=9).view(1)
        for held, new in ((self.keys, keys), (self.values, values)):
            held.index_copy_(2, place, new)
        return self.keys, self.values

    monkeypatch.setattr(layer, "update", update)
    bundle, reference = _make(ending, tmp_path)
    with pytest.raises(NumericsMismatchError, match="steps in a cache of 16"):
        validate_generation(bundle, reference, TOLERANCES["float32"])


def test_near_ties_prove_nothing(ending, tmp_path):
    bundle, reference = _make(ending, tmp_path)
    held = load_file(reference.path)
    for case in ("random", "cut-off"):
        for beams in reference.beams:
            name = f"{case}/{beams}/ties"
            held[name] = torch.zeros_like(held[name])
        save_file(held, reference.path)
        if case == "random":
            verdict = validate_generation(bundle, reference, TOLERANCES["float32"])
            assert verdict.unproved == ("random with 1 beam(s)", "random with 4 beam(s)")
    with pytest.raises(GenerationError, match="the others are near ties"):
        validate_generation(bundle, reference, TOLERANCES["float32"])


def _make(folder: Path, work: Path) -> tuple[Path, Any]:
    """Trace a bundle with its search, and compute its reference."""
    options, lengths = LoadOptions(task=TASK), (8, 16)
    facts, target = inspect(folder, options, lengths), work / "model.pt"
    traced = trace_checkpoint(folder, options, facts, lengths, 1, target, choice="own")
    assert traced.generation is not None
    path = work / "reference.safetensors"
    reference = compute_generation(
        folder, options, facts, traced.generation, lengths, "own", None, path
    )
    return target, reference


def test_a_search_that_can_not_be_proved_leaves_the_forward(checkpoint, tmp_path):
    """The bundle is made again without it, and says why."""
    manifest = _convert_with(_prove_nothing, checkpoint("t5"), tmp_path / "store")
    assert manifest.generation is None
    assert manifest.without_generation == "generate: planted"
    assert not hasattr(_bundle(tmp_path / "store"), "generate")


def test_a_search_that_differs_stops_the_line(checkpoint, tmp_path):
    with pytest.raises(NumericsMismatchError, match="planted"):
        _convert_with(_find_a_difference, checkpoint("t5"), tmp_path / "store")
    assert not list((tmp_path / "store").rglob("manifest.json"))


def test_int8_that_rounds_to_other_levels_has_a_forward_alone(checkpoint, tmp_path):
    manifest = _convert_with(_find_a_difference, checkpoint("t5"), tmp_path, dtype="int8")
    assert manifest.generation is None
    assert manifest.without_generation.startswith("int8: expected steps with the levels")


def _convert_with(gate: Any, folder: Path, store: Path, **more: Any) -> Any:
    """Convert with another gate of generation."""

    def run(function: Any, *arguments: Any, **options: Any) -> Any:
        chosen = gate if options["step"] == "generation" else function
        return child.run(chosen, *arguments, **options)

    fields = {"source": f"file://{folder}", "task": TASK, "lengths": LENGTHS, "store": str(store)}
    return convert(make_request({**fields, **more}), Steps(run=run)).manifest


def _prove_nothing(*_: Any) -> None:
    raise GenerationError("generate: planted")


def _find_a_difference(*_: Any) -> None:
    raise NumericsMismatchError("generate: planted")


@pytest.mark.parametrize("name", ["marian", "t5", "bart"])
def test_a_trained_checkpoint_shows_answers_that_stop_early(name: str, tmp_path):
    folder = save_trained(name, tmp_path)
    manifest = _convert(folder, tmp_path / "store")
    verdict = manifest.generation.verdict
    assert "stops early" not in verdict.unproved
    assert verdict.rows >= 4 * 8
    _expect_equal(folder, _bundle(tmp_path / "store"))


def test_a_graph_that_changes_with_the_shape_has_a_forward_alone(tmp_path, monkeypatch):
    led = {
        **tiny.PAIR,
        "max_encoder_position_embeddings": 128,
        "max_decoder_position_embeddings": 128,
        "attention_window": 8,
        "decoder_start_token_id": 2,
    }
    monkeypatch.setitem(tiny.MODELS, "led", ("LEDForConditionalGeneration", "LEDConfig", led))
    manifest = _convert(tiny.save("led", tmp_path), tmp_path / "store")
    assert manifest.generation is None
    assert manifest.without_generation == "the programs of encode at two shapes differ"


def test_an_earlier_transformers_searches_otherwise_and_is_told(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "version", lambda _: "4.57.6")
    folder, options = checkpoint("t5"), LoadOptions(task=TASK)
    facts = inspect(folder, options, (8,))
    target = tmp_path / "model.pt"
    traced = trace_checkpoint(folder, options, facts, (8,), 1, target, choice="own")
    assert traced.generation is None
    assert "expected 5 or later" in (traced.without_generation or "")
