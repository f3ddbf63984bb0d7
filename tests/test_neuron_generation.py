"""Generation on Neuron: an encoder and a decoder of fixed shapes, on both contract doubles."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import tracefleet
from flows.convert import convert, validate
from tasks import child
from tasks.backends.base import Job
from tasks.backends.padded import plan_search
from tasks.backends.programs import Prepared
from tasks.backends.prove_programs import _require_padding
from tasks.errors import GenerationError, NumericsMismatchError
from tasks.model.facts import LoadOptions
from tasks.model.load import load_eager
from tasks.model.preflight import inspect
from tasks.steps import Steps
from tasks.trace import padded
from tasks.validate.generation import judge_generation
from tasks.validate.generation_reference import compute_generation
from tasks.validate.verdict import TOLERANCES
from tests.support import tiny
from tests.support.neuron_support import NO_DEVICE, on, request, store_for_doubles
from tests.support.trained import save_trained
from tracefleet.decoding import read_constants
from tracefleet.errors import ManifestError, NoGenerationError
from tracefleet.generation_types import Generation
from tracefleet.program_files import DECODE, ENCODE, FORWARD, program_path
from tracefleet.reader.padded import write_search
from tracefleet.reader.programs import join

TASK, LENGTHS = "text2text-generation", (8, 16)
DEVICES: dict[str, dict[str, Any]] = {"neuronx": {}, "neuron": {"device": "inf1"}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Marian with clear choices, which asks for two beams."""
    folder = save_trained("marian", tmp_path_factory.mktemp("trained"))
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_beams": 2}))
    return folder


def _rows() -> tuple[torch.Tensor, torch.Tensor]:
    rows = [[20, 30, 40, 50, 60], [21], [22, 33, 44, 7, 8, 9, 10, 11, 12, 13, 14]]
    ids = torch.zeros((3, 11), dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    return ids, (ids > 0).long()


def _expect_equal(model: tracefleet.Model, folder: Path) -> None:
    """More rows and other beams than the programs have, and answers of every standard length."""
    eager = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ids, mask = _rows()
    for beams in (1, 2, 3):
        for limit in (5, 14):
            expected = eager.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=limit, num_beams=beams
            )
            got = model.generate(ids, mask, max_new_tokens=limit, num_beams=beams)
            assert torch.equal(got, expected)


@pytest.mark.parametrize(("backend", "lengths"), [("neuronx", LENGTHS), ("neuron", (16,))])
def test_programs_generate_what_transformers_generates(
    backend: str, lengths: tuple[int, ...], trained, tmp_path
):
    store = store_for_doubles(tmp_path)
    asked = request(trained, store, task=TASK, backend=backend, lengths=lengths, batch=2)
    with on(**DEVICES[backend]):
        manifest = convert(asked).manifest
        assert manifest.without_generation is None
        paths = {program_path(n, part) for n in lengths for part in (FORWARD, ENCODE, DECODE)}
        assert {file.path for file in manifest.archives} == paths
        made: Any = manifest.generation
        assert (made.num_beams, made.layers) == (2, 0)
        assert made.verdict.beams == (1, 2, 4)
        assert made.verdict.rows >= 3 * 8
        assert len(made.verdict.faults) == 5
        model = tracefleet.open(store, manifest.source, backend=backend)
        _expect_equal(model, trained)
        with pytest.raises(ValueError, match="num_beams: expected a whole number"):
            model.generate([[5, 6]], num_beams=0)


def test_a_candidate_generates_once_a_device_has_proved_it(trained, tmp_path):
    store = store_for_doubles(tmp_path)
    asked = request(trained, store, task=TASK, lengths=(16,), generation="greedy")
    with on(**NO_DEVICE):
        candidate: Any = convert(asked)
        assert candidate.manifest.generation.verdict is None
    with on():
        proved: Any = validate(candidate.publication.url).manifest
        assert proved.key == candidate.manifest.key
        assert (proved.generation.num_beams, proved.generation.verdict.beams) == (1, (1, 4))
        model = tracefleet.open(store, proved.source, backend="neuronx")
        assert model.generate([[20, 30]], max_new_tokens=6).shape[0] == 1


def test_separate_weights_are_replaced_for_a_search_too(trained, tmp_path):
    store = store_for_doubles(tmp_path)
    apart = {"separate_weights": True}
    with on():
        asked = request(trained, store, task=TASK, lengths=(8,), neuronx=apart)
        source = convert(asked).manifest.source
        model = tracefleet.open(store, source, backend="neuronx")
        before = model.generate([[20, 30, 40]], max_new_tokens=4)
        bias = torch.zeros_like(load_eager(trained, LoadOptions(task=TASK)).final_logits_bias)
        bias[:, 77] = 1e3
        model.replace_weights({"final_logits_bias": bias})
        after = model.generate([[20, 30, 40]], max_new_tokens=4)
        assert 77 not in before
        assert (after[0, 1:-1] == 77).all()


def test_a_model_whose_decoder_minds_padding_has_a_forward_alone(tmp_path, monkeypatch):
    job, model = _make_job(tiny.save("t5", tmp_path), tmp_path)
    assert plan_search(model, job).layers == 0
    monkeypatch.setattr(padded, "_pick", lambda tensor, *_: tensor[:, -1:])
    with pytest.raises(GenerationError, match="padding changes nothing"):
        plan_search(model, job)


def test_a_decoder_that_no_compiler_takes_leaves_the_forward(trained, tmp_path):
    store = store_for_doubles(tmp_path)
    asked = request(trained, store, task=TASK, lengths=(8,))
    # The decoder alone has two rows: as many as beams.
    with on(fault="NCC_EVRF001", fault_shape="2x8"):
        manifest = convert(asked).manifest
    assert manifest.generation is None
    assert "unsupported operator" in str(manifest.without_generation)
    assert [file.path for file in manifest.archives] == ["model/length-8.pt"]


def test_a_search_that_proves_too_little_on_the_device_leaves_the_forward(trained, tmp_path):
    store = store_for_doubles(tmp_path)
    asked = request(trained, store, task=TASK, lengths=(8,))
    with on():
        manifest = convert(asked, Steps(limits=asked.limits, run=_run_and_prove_nothing)).manifest
        assert (manifest.generation, manifest.without_generation) == (None, "planted")
        assert [file.path for file in manifest.archives] == ["model/length-8.pt"]
        model = tracefleet.open(store, manifest.source, backend="neuronx")
        with pytest.raises(NoGenerationError, match="planted"):
            model.generate([[5, 6]])


def _run_and_prove_nothing(function: Any, *arguments: Any, **options: Any) -> Any:
    chosen = _prove_nothing if options["step"] == "generation" else function
    return child.run(chosen, *arguments, **options)


def _prove_nothing(*_: Any) -> None:
    raise GenerationError("planted")


def test_a_model_that_is_never_padded_has_a_forward_alone(tmp_path):
    job, model = _make_job(tiny.save("t5", tmp_path), tmp_path)
    made = plan_search(model, job)
    prepared = Prepared(outputs=(), tied_groups=(), has_topk_or_sort=False, generation=made)
    assert _require_padding(job, prepared) is prepared
    left = _require_padding(job.without_padding(), prepared)
    assert left.programs == (FORWARD,)
    assert "padding changes" in str(left.without_generation)


def _make_job(folder: Path, work: Path) -> tuple[Job, Any]:
    options = LoadOptions(task=TASK)
    job = Job(
        folder=folder,
        options=options,
        facts=inspect(folder, options, LENGTHS),
        lengths=LENGTHS,
        batch=2,
        tolerance=TOLERANCES["float32"],
        compiling=None,
        target="inf2",
        work=work,
        failed=work,
        generation="own",
    )
    return job, load_eager(folder, options)


def _late(source: str) -> str:
    return source.replace("position.reshape(1))", "position.reshape(1) + 1)")


def _other_rows(source: str) -> str:
    return source.replace("hidden.index_select(0, places)", "hidden.index_select(0, places * 0)")


def _all_attended(source: str) -> str:
    return source.replace("[0, standard - attention_mask.size(1)], 0)", "[0, 0], 0) * 0 + 1")


def _lost(source: str) -> str:
    return source.replace("own[0].index_copy_(", "own[0].clone().index_copy_(")


@pytest.mark.parametrize("fault", [None, _late, _other_rows, _all_attended, _lost])
def test_a_fault_around_the_programs_is_caught(fault: Any, trained, tmp_path):
    """The programs are recordings here, as the doubles' numbers are a matter of their own."""
    job, model = _make_job(trained, tmp_path)
    made = plan_search(model, job)
    programs: dict[str, Any] = {ENCODE: {}, DECODE: {}}
    for length in LENGTHS:
        feed = padded.make_encoder_feed(job.facts, job.batch, length)
        programs[ENCODE][length] = _record(padded.make_encoder(model), feed)
        feed = padded.make_decoder_feed(model, job.facts, job.batch * made.num_beams, length)
        programs[DECODE][length] = _record(padded.make_decoder(model), feed)
    reference = compute_generation(
        *(trained, job.options, job.facts, made, LENGTHS, "own", None, tmp_path / "x.safetensors")
    )
    search = write_search(programs, made, job.batch)
    if fault is None:
        verdict = judge_generation(
            join(search.modules, search.sources), reference, TOLERANCES["float32"]
        )
        assert verdict.rows > 3 * 8
        return
    sources = [fault(source) for source in search.sources]
    assert sources != list(search.sources)
    with pytest.raises(NumericsMismatchError, match="steps in a cache of"):
        judge_generation(join(search.modules, sources), reference, TOLERANCES["float32"])


def _record(module: torch.nn.Module, feed: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, tuple(feed.values()), check_trace=False)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"no_such": "1"}, "unknown fields"),
        ({"fill": None}, "missing fields"),
        ({"fill": '"1"'}, "fill: expected int"),
        ({"suppress_tokens": '["1], self.x.y(["]'}, r"suppress_tokens\[0\]: expected int"),
        ({"length_penalty": "Infinity"}, "a finite number"),
        ({"early_stopping": '"later"'}, "early_stopping: expected one of"),
        ({"fill": "[" * 9_000}, "expected JSON"),
        ({"start": "3"}, "start expected 3 of options, got 0"),
        ({"bad_words": "[[]]"}, "an empty one"),
        ({"length_penalty": "1" + "0" * 400}, "expected numbers up to"),
        ({"suppress_tokens": "[99999999999999999999999]"}, "expected numbers up to"),
        ({"no_repeat_ngram_size": "-1"}, "sizes of at least 0"),
        ({"repetition_penalty": "0.0"}, "a penalty over 0"),
    ],
)
def test_a_manifest_whose_search_is_none_is_refused(options: dict[str, str | None], told: str):
    """Its constants become code when a conversion is opened."""
    sound = {"start": "0", "pad": "0", "eos": "[1]", "fill": "1"}
    made = Generation(
        num_beams=1,
        max_new_tokens=4,
        start=0,
        pad=0,
        eos=(1,),
        layers=0,
        options=sound,
        verdict=None,
    )
    assert read_constants(made).fill == 1
    changed = {name: value for name, value in {**sound, **options}.items() if value is not None}
    with pytest.raises(ManifestError, match=told):
        read_constants(dataclasses.replace(made, options=changed))
