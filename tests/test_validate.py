"""The gate: it passes correct bundles and catches every fault."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from tasks.errors import NumericsMismatchError, UnsafeCheckpointError, UnsupportedCheckpointError
from tasks.validate.artifact import Artifact
from tasks.validate.controls import catches_wrong_weight
from tasks.validate.difference import compare
from tasks.validate.plan import plan_probes
from tasks.validate.verdict import TOLERANCES
from tests.support.gate_support import Bench
from tracefleet.verdict_types import Tolerance

SOUND = {
    "bert": "feature-extraction",
    "bert-mlm": "fill-mask",
    "albert-mlm": "fill-mask",
    "roberta-qa": "question-answering",
    "distilbert-tok": "token-classification",
    "bert-cls": "text-classification",
    "gpt2": "text-generation",
    "llama": "text-generation",
    "mixtral": "text-generation",
    "bart": "text2text-generation",
    "marian": "text2text-generation",
    "t5": "text2text-generation",
    "longformer-mlm": "fill-mask",
    "bart-cls": "text-classification",
    "deberta-cls": "text-classification",
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_bundles_pass_the_whole_gate(name, checkpoint, tmp_path):
    bench = Bench(folder=checkpoint(name), work=tmp_path, task=SOUND[name])
    report = bench.validate(bench.trace())
    assert report.passed
    assert "wrong-weight" in report.negative_controls
    assert [v.length for v in report.lengths()] == [8, 16]
    assert all(v.max_rel_error <= 1e-5 and v.probes >= 10 for v in report.lengths())
    assert report.weights_matched > 10
    # right padding can't move a causal model: reported as vacuous, not counted
    vacuous = {p.name for p in report.probes if p.vacuous}
    assert bool(vacuous & {"right-pad-1", "right-pad-4"}) == (name in ("gpt2", "llama", "mixtral"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_passes_its_own_tolerance(dtype, checkpoint, tmp_path):
    bench = Bench(folder=checkpoint("bert-mlm"), work=tmp_path, task="fill-mask", dtype=dtype)
    report = bench.validate(bench.trace())
    assert report.passed
    assert report.tolerance == TOLERANCES[dtype]


def _bench(checkpoint, tmp_path, name="bert") -> Bench:
    return Bench(folder=checkpoint(name), work=tmp_path, task=SOUND[name])


def _failures(bench: Bench, bundle) -> set[str]:
    with pytest.raises(NumericsMismatchError) as caught:
        bench.validate(bundle, bits=False)
    report = caught.value.report
    assert report is not None
    assert not report.passed
    return {p.name for p in report.probes if not p.difference.passed}


def test_a_wrong_weight_is_caught_by_the_probes(checkpoint, tmp_path):
    def corrupt(model):
        model.encoder.layer[0].attention.self.query.weight.data[3] *= 1.5

    bench = _bench(checkpoint, tmp_path)
    failed = _failures(bench, bench.trace(corrupt))
    assert "traced-input" in failed


def test_a_wrong_element_that_no_probe_reads_is_caught_bit_for_bit(checkpoint, tmp_path):
    def corrupt(model):
        model.embeddings.position_embeddings.weight.data[100, 0] += 1e-3

    bench = _bench(checkpoint, tmp_path)
    bundle = bench.trace(corrupt)
    assert bench.validate(bundle, bits=False).passed  # numerics alone can't see it
    with pytest.raises(UnsafeCheckpointError, match="position_embeddings"):
        bench.validate(bundle)


def test_a_baked_mask_is_caught(checkpoint, tmp_path):
    def corrupt(model):
        forward = model.forward
        model.forward = lambda attention_mask, **rest: forward(
            attention_mask=torch.ones_like(attention_mask), **rest
        )

    bench = _bench(checkpoint, tmp_path)
    failed = _failures(bench, bench.trace(corrupt))
    assert {"left-pad", "hole", "one-token", "right-pad-4"} <= failed
    assert "fresh-0" not in failed


def test_a_constant_output_is_caught(checkpoint, tmp_path):
    def corrupt(model):
        forward = model.forward
        feed = {n: torch.ones(2, 1, dtype=torch.long) for n in ("input_ids", "attention_mask")}
        constant = forward(**feed).last_hidden_state.detach()

        def fixed(**rest):
            outputs = forward(**rest)
            outputs["last_hidden_state"] = outputs["last_hidden_state"] * 0 + constant
            return outputs

        model.forward = fixed

    bench = _bench(checkpoint, tmp_path)
    failed = _failures(bench, bench.trace(corrupt))
    assert {"traced-input", "fresh-0", "constant-ids", "edge-ids"} <= failed


def test_a_swapped_input_order_is_caught(checkpoint, tmp_path):
    bench = _bench(checkpoint, tmp_path)
    ids, mask, types = bench.facts.arguments
    swapped = dataclasses.replace(bench.facts, arguments=(ids, types, mask))
    failed = _failures(bench, bench.trace(traced_facts=swapped))
    assert "traced-input" in failed


def test_dropout_left_on_is_caught(checkpoint, tmp_path):
    bench = _bench(checkpoint, tmp_path)

    def corrupt(model):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                drop = functools.partial(torch.nn.functional.dropout, p=0.1, training=True)
                setattr(module, "forward", drop)  # noqa: B010

    failed = _failures(bench, bench.trace(corrupt))
    assert "traced-input" in failed


def test_control_flow_on_token_ids_is_caught(checkpoint, tmp_path):
    """The traced ids take one branch for good: equal on its own input, wrong elsewhere."""

    def corrupt(model):
        forward = model.forward

        def branching(input_ids, **rest):
            outputs = forward(input_ids=input_ids, **rest)
            if int(input_ids[0, 0]) % 2 == int(traced[0]):
                outputs["last_hidden_state"] = outputs["last_hidden_state"] + 0.0
            else:
                outputs["last_hidden_state"] = outputs["last_hidden_state"] * 1.01
            return outputs

        model.forward = branching

    bench = _bench(checkpoint, tmp_path)
    from tasks.model.feeds import example_feed

    example = example_feed(bench.facts, batch=2, length=8)["input_ids"]
    traced = [int(example[0, 0]) % 2]
    # eager (the reference) is the untouched model: a graph that took the other branch is wrong
    traced[0] = 1 - traced[0]
    assert "fresh-0" in _failures(bench, bench.trace(corrupt))


def test_positions_baked_at_the_traced_padding_are_caught(checkpoint, tmp_path):
    """A mask recorded from the traced input, and not computed from the given one."""

    def corrupt(model):
        forward = model.forward

        def baked(attention_mask, **rest):
            constant = torch.tensor(attention_mask.tolist())
            return forward(attention_mask=constant, **rest)

        model.forward = baked

    bench = _bench(checkpoint, tmp_path)
    failed = _failures(bench, bench.trace(corrupt))
    assert "traced-input" not in failed
    assert {"fresh-0", "left-pad"} <= failed


def test_rows_that_see_each_other_are_caught(checkpoint, tmp_path):
    def corrupt(model):
        forward = model.forward

        def leaking(**rest):
            outputs = forward(**rest)
            hidden = outputs["last_hidden_state"]
            outputs["last_hidden_state"] = hidden + 0.01 * hidden.mean(0, keepdim=True)
            return outputs

        model.forward = leaking

    bench = _bench(checkpoint, tmp_path)
    assert "batch-3" in _failures(bench, bench.trace(corrupt))


def test_an_untied_copy_is_compared_bit_for_bit(checkpoint, tmp_path):
    """The file stores a tied weight once; the copy that has no name there counts too."""

    def corrupt(model):
        model.model.decoder.embed_tokens.weight.data[1] += 5

    bench = _bench(checkpoint, tmp_path, "bart")
    with pytest.raises(UnsafeCheckpointError, match=r"decoder\.embed_tokens"):
        bench.validate(bench.trace(corrupt))


@pytest.mark.parametrize("name", ["bart", "t5", "marian"])
def test_an_ignored_decoder_mask_is_caught(name, checkpoint, tmp_path):
    def corrupt(model):
        forward = model.forward
        model.forward = lambda decoder_attention_mask, **rest: forward(
            decoder_attention_mask=torch.ones_like(decoder_attention_mask), **rest
        )

    bench = _bench(checkpoint, tmp_path, name)
    assert "decoder-hole" in _failures(bench, bench.trace(corrupt))


def test_outputs_sliced_to_the_wrong_side_are_caught(checkpoint, tmp_path, monkeypatch):
    from tracefleet.reader import dispatcher

    slice_right = dispatcher._slice
    monkeypatch.setattr(
        dispatcher,
        "_slice",
        lambda name, spec: slice_right(name, spec).replace("decoder_length", "length"),
    )
    bench = _bench(checkpoint, tmp_path, "bart")
    failed = _failures(bench, bench.trace())
    assert failed & {"dispatch-short-encoder", "dispatch-short-decoder"}


def test_not_a_number_is_no_agreement(own_checkpoint, tmp_path):
    """An overflow in half precision: eager and traced are NaN alike, and that proves nothing."""
    from safetensors.torch import load_file, save_file

    folder = own_checkpoint("bert")
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.position_embeddings.weight"][9:] = 6e4
    tensors["embeddings.word_embeddings.weight"] += 3e4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    bench = Bench(folder=folder, work=tmp_path, task="feature-extraction", dtype="float16")
    bundle = bench.trace()
    with pytest.raises(UnsupportedCheckpointError, match="NaN"):
        bench.validate(bundle)


def test_a_length_without_a_counting_probe_is_not_proved(checkpoint, tmp_path, monkeypatch):
    bench = _bench(checkpoint, tmp_path)
    bundle, reference = bench.trace(), bench.reference()
    from tasks.validate.gate import validate_bundle

    names = {f"16/{p.name}" for p in plan_probes(bench.plan()) if p.length == 16}
    with pytest.raises(NumericsMismatchError, match="length 16: expected a probe that counts"):
        validate_bundle(bundle.path, dataclasses.replace(reference, vacuous=frozenset(names)))


def test_a_bundle_that_raises_has_failed_its_probes(checkpoint, tmp_path):
    def corrupt(model):
        forward = model.forward

        def fixed(input_ids, **rest):
            outputs = forward(input_ids=input_ids, **rest)
            ids = torch.arange(int(input_ids.max()) + 1)[input_ids]  # baked: larger ids raise
            outputs["last_hidden_state"] = outputs["last_hidden_state"] + 0.0 * ids[..., None]
            return outputs

        model.forward = fixed

    bench = _bench(checkpoint, tmp_path)
    with pytest.raises(NumericsMismatchError, match="raised"):
        bench.validate(bench.trace(corrupt), bits=False)


@pytest.mark.parametrize("lengths", [(1,), (1, 2, 3), (5,)])
def test_the_shortest_lengths_are_lengths_too(lengths, checkpoint, tmp_path):
    bench = Bench(
        folder=checkpoint("bert"), work=tmp_path, task="feature-extraction", lengths=lengths
    )
    assert bench.validate(bench.trace()).passed


def test_a_blind_gate_is_refused(checkpoint, tmp_path, monkeypatch):
    """A gate that misses a negative control proves nothing and must not pass anything."""
    bench = _bench(checkpoint, tmp_path)
    bundle = bench.trace()
    monkeypatch.setattr("tasks.validate.faults._corrupt", lambda weight: weight)
    with pytest.raises(NumericsMismatchError, match="negative control"):
        bench.validate(bundle)


def test_a_guard_that_lets_other_shapes_through_is_caught(checkpoint, tmp_path, monkeypatch):
    bench = _bench(checkpoint, tmp_path)
    monkeypatch.setattr(
        "tracefleet.reader.dispatcher._write_exact",
        lambda inputs, outputs, length, batch, graph: (
            f"def forward_{length}(self, input_ids: Tensor, attention_mask: Tensor, "
            f"token_type_ids: Tensor) -> Tuple[Tensor, Tensor]:\n"
            f"    return self.{graph}(input_ids, attention_mask, token_type_ids)\n"
        ),
    )
    with pytest.raises(NumericsMismatchError, match="to be refused"):
        bench.validate(bench.trace())


def test_an_output_that_never_moves_is_no_reference(own_checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = own_checkpoint("bert-cls")
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    bench = Bench(folder=folder, work=tmp_path, task="text-classification")
    bundle = bench.trace()
    with pytest.raises(UnsupportedCheckpointError, match="never moves"):
        bench.validate(bundle)


def test_a_reference_that_keeps_state_is_refused(checkpoint, tmp_path, monkeypatch):
    from tasks.model import outputs as outputs_module
    from tasks.validate import reference_pass

    calls = []
    original = outputs_module.call_tuple

    def stateful(model, feed, outputs):
        calls.append(1)
        return tuple(t + 1e-4 * len(calls) for t in original(model, feed, outputs))

    bench = _bench(checkpoint, tmp_path)
    bundle = bench.trace()
    monkeypatch.setattr(reference_pass, "call_tuple", stateful)
    with pytest.raises(UnsupportedCheckpointError, match="second run"):
        bench.validate(bundle)


def test_a_model_whose_padding_leaks_is_refused(checkpoint, tmp_path, monkeypatch):
    from tasks.model import outputs as outputs_module
    from tasks.validate import reference_pass

    original = outputs_module.call_tuple

    def leaking(model, feed, outputs):
        shift = float(feed["input_ids"].shape[1])
        return tuple(t + shift for t in original(model, feed, outputs))

    bench = _bench(checkpoint, tmp_path)
    bundle = bench.trace()
    monkeypatch.setattr(reference_pass, "call_tuple", leaking)
    with pytest.raises(UnsupportedCheckpointError, match="padding"):
        bench.validate(bundle)


def test_the_corrupted_weight_is_restored(checkpoint, tmp_path):
    bench = _bench(checkpoint, tmp_path)
    bundle = bench.trace()
    module = torch.jit.load(bundle.path)
    before = {name: p.clone() for name, p in module.named_parameters()}
    artifact = Artifact(module, bench.reference())
    with torch.no_grad():
        assert catches_wrong_weight(artifact)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


EXACT = Tolerance(atol=0.0, rtol=1e-5)


def test_compare_judges_against_the_largest_reference_value():
    eager = torch.tensor([[100.0, 1.0]])
    assert compare(eager + 0.0005, eager, EXACT).passed
    assert not compare(eager + 0.002, eager, EXACT).passed


@pytest.mark.parametrize(
    ("traced", "eager"),
    [
        (torch.ones(2, 3), torch.ones(2, 4)),
        (torch.ones(2).half(), torch.ones(2)),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")])),
        (torch.tensor([1.0, float("inf")]), torch.tensor([1.0, float("-inf")])),
        (torch.tensor([1e-9]), torch.tensor([0.0])),
    ],
)
def test_compare_refuses_other_shapes_dtypes_and_patterns(traced, eager):
    assert not compare(traced, eager, EXACT).passed


def test_compare_looks_at_valid_positions_only():
    eager = torch.zeros(1, 3, 2)
    eager[0, :2] = 1.0
    traced = eager.clone()
    traced[0, 2] = float("nan")
    valid = torch.tensor([[True, True, False]])
    assert compare(traced, eager, EXACT, valid).passed
    assert not compare(traced, eager, EXACT).passed
