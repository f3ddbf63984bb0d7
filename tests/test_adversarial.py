"""Every silent fault of the facts file, as a tiny model, and the probe that catches it."""

from __future__ import annotations

import contextlib

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tasks.errors import (
    NumericsMismatchError,
    PaddingChangesError,
    TiedWeightsError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from tasks.model.feeds import example_feed, random_feed
from tasks.model.load import load_eager
from tasks.model.outputs import call_tuple, describe_outputs
from tasks.model.state import restoring_module_state
from tasks.model.weights import list_tensors
from tasks.sweep.tiny import Case, build
from tasks.trace import bundle as bundle_module
from tasks.trace.record import trace_checkpoint, trace_lengths
from tasks.validate.plan import plan_probes
from tasks.validate.reference import compare_outputs
from tests.support import adversarial_models as faulty
from tests.support import tiny
from tests.support.adversarial_models import ARCHITECTURES, CONVERSIONS, Fault
from tests.support.gate_support import Bench


def _bench(folder, tmp_path, task, lengths=(8,), **options):
    return Bench(folder=folder, work=tmp_path / "bench", task=task, lengths=lengths, **options)


def _error(bench, bundle, feed=None, length=None):
    """The bundle against eager as it was loaded, on the traced input unless another is given."""
    length = length or bench.lengths[0]
    feed = feed or example_feed(bench.facts, batch=bench.batch, length=length)
    with torch.no_grad():
        expected = call_tuple(load_eager(bench.folder, bench.options), feed, bench.outputs)
        got = getattr(torch.jit.load(bundle.path), f"forward_{length}")(*feed.values())
    scales = tuple(float(tensor.abs().max()) for tensor in expected)
    found = compare_outputs(bench.outputs, bench.plan().tolerance, got, expected, feed, scales)
    return max(difference.max_rel for difference in found)


@pytest.fixture
def real(checkpoint, monkeypatch):
    """Return the folder of an architecture of the facts file."""
    for name, model in faulty.REAL.items():
        monkeypatch.setitem(tiny.MODELS, name, model)
    return checkpoint


@pytest.fixture
def as_written(monkeypatch):
    """Trace model code as it is, without what makes it recordable."""
    monkeypatch.setattr("tasks.trace.record.recordable", lambda model: contextlib.nullcontext())


def _find_failures(bench, bundle, *, bits=True):
    """Return the names of the probes that failed, and of those that passed."""
    with pytest.raises(NumericsMismatchError) as caught:
        bench.validate(bundle, bits=bits)
    report = caught.value.report
    assert report is not None
    failed = {probe.name for probe in report.probes if not probe.difference.passed}
    return failed, {probe.name for probe in report.probes} - failed


def _case(tmp_path, model_type, task, **options):
    folder = build(Case(model_type=model_type, task=task), tmp_path / model_type)
    return _bench(folder, tmp_path, task, **options)


@pytest.mark.parametrize("fault", [*ARCHITECTURES, *CONVERSIONS], ids=lambda fault: fault.name)
def test_the_gate_catches(fault: Fault, checkpoint, tmp_path, monkeypatch):
    bench = _bench(
        checkpoint(fault.checkpoint),
        tmp_path,
        fault.task,
        lengths=(fault.length,),
        batch=fault.batch,
    )
    if fault.exact:
        bench.facts = bench.facts.without_padding()
    corrupt = None
    if fault.where == "architecture":
        faulty.change_class(monkeypatch, bench.facts.architecture, fault.changed)
    else:
        corrupt = lambda model: faulty.change_instance(model, fault.changed)  # noqa: E731
    bundle = bench.trace(corrupt)
    assert (_error(bench, bundle) <= 1e-5) == fault.silent
    failed, passed = _find_failures(bench, bundle)
    assert set(fault.caught_by) <= failed
    assert set(fault.spared) <= passed
    assert ("traced-input" in passed) == fault.silent
    if fault.alone:
        assert failed == set(fault.caught_by)


def test_rounding_below_the_tolerance_is_no_fault(checkpoint, tmp_path):
    bench = _bench(checkpoint("bert"), tmp_path, "feature-extraction")
    bundle = bench.trace(lambda model: faulty.change_instance(model, faulty.ROUNDED))
    assert 0 < _error(bench, bundle) < 1e-5
    assert bench.validate(bundle).passed


def test_a_model_that_minds_any_padding_is_refused_before_it_is_compared(
    checkpoint, tmp_path, monkeypatch
):
    (fault,) = (one for one in ARCHITECTURES if one.exact)
    bench = _bench(checkpoint("bert"), tmp_path, "feature-extraction")
    faulty.change_class(monkeypatch, "BertModel", fault.changed)
    bundle = bench.trace()
    assert _error(bench, bundle) <= 1e-5
    with pytest.raises(PaddingChangesError, match="padding on the right"):
        bench.validate(bundle)


def test_train_mode_in_the_trace_is_caught(checkpoint, tmp_path):
    """Dropout is recorded, and .eval() on the saved module does not take it back."""

    def corrupt(model):
        model.train()
        model.train = lambda mode=True: model

    bench = _bench(checkpoint("bert"), tmp_path, "feature-extraction")
    failed, _ = _find_failures(bench, bench.trace(corrupt))
    assert {"traced-input", "fresh-0"} <= failed


def test_chance_in_eager_is_refused(checkpoint, tmp_path, monkeypatch):
    bench = _bench(checkpoint("bert"), tmp_path, "feature-extraction")
    chance = next(one for one in CONVERSIONS if one.name == "chance in the trace")
    faulty.change_class(monkeypatch, "BertModel", chance.changed)
    bundle = bench.trace()
    with pytest.raises(UnsupportedCheckpointError, match="second run"):
        bench.validate(bundle)


def test_state_that_grows_with_every_call_of_eager_is_refused(checkpoint, tmp_path, monkeypatch):
    calls = []

    def counting(run, **feed):
        calls.append(1)
        return faulty.scale(run(**feed), 1 + 1e-3 * len(calls))

    bench = _bench(checkpoint("bert"), tmp_path, "feature-extraction")
    faulty.change_class(monkeypatch, "BertModel", counting)
    bundle = bench.trace()
    with pytest.raises(UnsupportedCheckpointError, match="second run"):
        bench.validate(bundle)


def test_a_cache_that_the_first_call_fills_is_caught(checkpoint, tmp_path, monkeypatch):
    """Eager answers later calls from its first one, as the trace does: they would agree."""

    def caching(run, *, input_ids, **rest):
        cache = run.args[0].__dict__.setdefault("_cache", {})
        first = cache.setdefault(input_ids.shape, input_ids)
        return run(input_ids=first, **rest)

    bench = _bench(checkpoint("bert"), tmp_path, "feature-extraction")
    faulty.change_class(monkeypatch, "BertModel", caching)
    bundle = bench.trace()
    assert _error(bench, bundle) <= 1e-5
    other = random_feed(bench.facts, batch=2, length=8, seed=77)
    with torch.no_grad():
        assert _error(bench, bundle, other) <= 1e-5  # sound: eager is a fresh one for every input
    assert bench.validate(bundle).passed


# Lengths


def _trace(bench):
    target = bench.work / "model.pt"
    result = trace_checkpoint(
        bench.folder, bench.options, bench.facts, bench.lengths, bench.batch, target
    )
    bench.outputs, bench.general = result.outputs, result.general
    bench.whole = bench.lengths[:1] if result.same_program else bench.lengths
    return result


def _generality(report):
    return [(verdict.other_lengths, verdict.other_batches) for verdict in report.lengths()]


@pytest.mark.parametrize(
    ("name", "task", "exact", "shared", "lengths", "batches"),
    [
        ("bert", "feature-extraction", False, True, "holds", "holds"),
        ("longformer-mlm", "fill-mask", False, False, "raises", "differs"),
        ("led", "text2text-generation", False, False, "raises", "differs"),
        ("funnel", "fill-mask", True, False, "differs", "holds"),
    ],
)
def test_lengths_are_proved_each_at_its_own_graph(
    name, task, exact, shared, lengths, batches, real, tmp_path
):
    """Wrong or raising at other lengths and batches: the guard refuses; the manifest has it."""
    bench = _bench(real(name), tmp_path, task, lengths=(8, 16))
    if exact:
        bench.facts = bench.facts.without_padding()
    result = _trace(bench)
    assert result.shared == shared
    assert all(_error(bench, result.file, length=length) <= 1e-5 for length in bench.lengths)
    report = bench.validate(result.file)
    assert set(_generality(report)) == {(lengths, batches)}
    module = torch.jit.load(result.file.path)
    for rows, tokens in ((2, 16), (3, 8), (2, 7)):
        feed = random_feed(bench.facts, batch=rows, length=tokens, seed=3)
        with pytest.raises(torch.jit.Error, match="expected shape"):
            module.forward_8(*feed.values())


def test_funnel_minds_padding(real, tmp_path):
    bench = _bench(real("funnel"), tmp_path, "fill-mask")
    result = _trace(bench)
    assert _error(bench, result.file) <= 1e-5
    with pytest.raises(PaddingChangesError, match="padding on the right"):
        bench.validate(result.file)


def _longer_than_12(run, *, input_ids, **rest):
    outputs = run(input_ids=input_ids, **rest)
    return faulty.scale(outputs) if input_ids.shape[1] > 12 else outputs


@pytest.mark.parametrize("exact", [False, True])
def test_a_branch_on_the_length_is_published_at_exact_lengths_only(
    exact, checkpoint, tmp_path, monkeypatch
):
    """Between 8 and 12 tokens the graph of 16 would be another model, though 15 pads well."""
    faulty.change_class(monkeypatch, "BertModel", _longer_than_12)
    bench = _bench(checkpoint("bert"), tmp_path, "feature-extraction", lengths=(8, 16))
    if exact:
        bench.facts = bench.facts.without_padding()
    result = _trace(bench)
    assert not result.shared
    assert all(_error(bench, result.file, length=length) <= 1e-5 for length in bench.lengths)
    if exact:
        report = bench.validate(result.file)
        assert _generality(report) == [("holds", "holds"), ("differs", "holds")]
    else:
        with pytest.raises(PaddingChangesError):
            bench.validate(result.file)


def test_a_length_between_the_ends_of_a_shared_graph_is_probed_whole(
    checkpoint, tmp_path, monkeypatch
):
    def exactly_16(run, *, input_ids, **rest):
        outputs = run(input_ids=input_ids, **rest)
        return faulty.scale(outputs) if input_ids.shape[1] == 16 else outputs

    faulty.change_class(monkeypatch, "BertModel", exactly_16)
    bench = _bench(checkpoint("bert"), tmp_path, "feature-extraction", lengths=(8, 16, 32))
    result = _trace(bench)
    assert result.shared
    assert all(_error(bench, result.file, length=length) <= 1e-5 for length in (8, 32))
    failed, _ = _find_failures(bench, result.file)
    assert failed == {"dispatch-16"}


@pytest.mark.parametrize("general", [True, False])
@pytest.mark.parametrize("switch", [8, 10, 12, 20])  # 8: just behind the shortest length
def test_a_switch_at_a_length_inside_a_shared_graph_minds_padding(
    switch, general, checkpoint, tmp_path, monkeypatch
):
    """No branch: the trace is right at every length, and padding takes a row across the switch."""

    def switching(run, *, input_ids, **rest):
        outputs = run(input_ids=input_ids, **rest)
        last = torch.ones_like(input_ids[0]).cumsum(0)[-1]
        return faulty.scale(outputs, torch.where(last > switch, 1.5, 1.0))

    faulty.change_class(monkeypatch, "BertModel", switching)
    bench = _bench(checkpoint("bert"), tmp_path, "feature-extraction", lengths=(8, 16, 32))
    result = _trace(bench)
    assert result.shared
    assert result.general is not None
    bench.general = result.general if general else None
    assert all(_error(bench, result.file, length=length) <= 1e-5 for length in bench.lengths)
    with pytest.raises(PaddingChangesError, match="padding on the right"):
        bench.validate(result.file)


def test_rotary_factors_that_switch_at_a_length_are_never_padded(real, tmp_path, monkeypatch):
    """Longrope chooses its factors by the length, in the graph: padding crosses the switch."""
    monkeypatch.setattr("tasks.model.preflight.find_switch", lambda model: None)  # not by config
    bench = _bench(real("longrope"), tmp_path, "text-generation", lengths=(8, 16))
    result = _trace(bench)
    assert all(_error(bench, result.file, length=length) <= 1e-5 for length in bench.lengths)
    with pytest.raises(PaddingChangesError):
        bench.validate(result.file)
    bench.facts = bench.facts.without_padding()
    result = _trace(bench)
    assert result.general is not None
    assert bench.validate(result.file).passed
    module = torch.jit.load(result.file.path)
    for tokens in (12, 13):  # the switch is between them
        eager = load_eager(bench.folder, bench.options)
        feed = random_feed(bench.facts, batch=2, length=tokens, seed=5)
        with torch.no_grad():
            torch.testing.assert_close(module(*feed.values())[0], eager(**feed).logits)


def test_big_bird_is_compared_with_a_fresh_one_for_every_input(tmp_path):
    """One short input turns eager to full attention for good; sparse lengths stay sparse."""
    bench = _case(tmp_path, "big_bird", "fill-mask", lengths=(32, 64))
    feed = random_feed(bench.facts, batch=2, length=64, seed=9)
    eager = load_eager(bench.folder, bench.options)
    with torch.no_grad():
        fresh = eager(**feed).logits
        eager(**random_feed(bench.facts, batch=2, length=6, seed=9))
        assert (eager(**feed).logits - fresh).abs().max() > 0.1 * fresh.abs().max()
    with pytest.raises(PaddingChangesError):
        bench.validate(_trace(bench).file)
    bench.facts = bench.facts.without_padding()
    result = _trace(bench)
    assert not result.shared
    assert bench.validate(result.file).passed
    assert _error(bench, result.file, feed, length=64) <= 1e-5


# Experts and global attention, as transformers has them


@pytest.mark.parametrize(
    ("model_type", "task", "loud"),
    [
        ("jetmoe", "text-generation", False),  # sizes of the experts' parts by .tolist()
        ("longcat_flash", "text-generation", False),  # experts without tokens are left out
        ("switch_transformers", "text2text-generation", True),  # a loop over the experts hit
        ("mixtral", "text-generation", True),  # the same, with the "eager" implementation
    ],
)
def test_experts_that_the_traced_ids_chose_are_caught(model_type, task, loud, tmp_path, as_written):
    def corrupt(model):
        if model_type == "mixtral":
            model.set_experts_implementation("eager")

    bench = _case(tmp_path, model_type, task)
    bundle = bench.trace(corrupt)
    assert _error(bench, bundle) <= 1e-5
    with pytest.raises(NumericsMismatchError) as caught:
        bench.validate(bundle)
    report = caught.value.report
    assert report is not None
    failed = {p.name: p.difference for p in report.probes if not p.difference.passed}
    # Mixtral's two fitting experts of four are often those that the traced ids chose.
    assert {"constant-ids", "left-pad"} <= failed.keys()
    assert sum(name.startswith("fresh-") for name in failed) >= 4
    assert "traced-input" not in failed
    reasons = {difference.reason for difference in failed.values()}
    assert any("elements in a list" in reason for reason in reasons) == loud
    assert loud or all(difference.max_rel > 0.01 for difference in failed.values())


def test_longformer_for_questions_needs_separators_and_is_refused(real, tmp_path):
    bench = _bench(real("longformer-qa"), tmp_path, "question-answering")
    with pytest.raises(UnsupportedCheckpointError, match="three separator tokens"):
        bench.trace()


def test_longformer_classification_raises_where_its_global_token_is_hidden(tmp_path):
    bench = _case(tmp_path, "longformer", "text-classification")
    bundle = bench.trace()
    assert "global_attention_mask" not in bench.facts.inputs
    assert _error(bench, bundle) <= 1e-5
    failed, _ = _find_failures(bench, bundle)
    assert failed == {"left-pad", "one-token"}


# Tied weights


@pytest.mark.parametrize("model_type", ["umt5", "switch_transformers"])
def test_untying_through_the_config_rescales_the_logits(model_type, tmp_path, monkeypatch):
    def flip(model):
        model.config.tie_word_embeddings = False

    bench = _case(tmp_path, model_type, "text2text-generation")
    bundle = bench.trace(flip)
    assert _error(bench, bundle) == pytest.approx(32**0.5 - 1, rel=0.1)
    failed, _ = _find_failures(bench, bundle)
    assert "traced-input" in failed

    monkeypatch.setattr("tasks.trace.untie.untie", lambda model: flip(model) or (("a", "b"),))
    with pytest.raises(TiedWeightsError, match="bit-identical"):
        _trace(bench)


def test_a_head_untied_at_load_equals_its_own_trace_and_is_refused(own_checkpoint, tmp_path):
    folder = own_checkpoint("bert-mlm")
    bench = _bench(folder, tmp_path, "fill-mask")
    right = load_eager(folder, bench.options)
    outputs = describe_outputs(right, bench.facts)
    tiny.edit_config(folder, tie_word_embeddings=False)
    wrong = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    feed = example_feed(bench.facts, batch=2, length=8)
    with torch.no_grad():
        traced = trace_lengths(wrong, bench.facts, outputs, (8,), 2)._traced_8(*feed.values())[0]
        assert torch.equal(traced, wrong(**feed).logits)
        assert not torch.allclose(traced, right(**feed).logits, rtol=0.1)
    with pytest.raises(UnsupportedCheckpointError, match=r"decoder\.(weight|bias)"):
        _trace(bench)


def test_weights_that_are_loaded_wrongly_are_no_reference(checkpoint, tmp_path, monkeypatch):
    """Trace and eager agree, for both hold another tensor than the file (as in #48154)."""

    inner = load_eager

    def load_mistied(*arguments):
        model = inner(*arguments)
        embeddings = model.embeddings.word_embeddings.weight.data
        embeddings.copy_(embeddings.roll(1, 0))
        return model

    monkeypatch.setattr("tasks.validate.compute.load_eager", load_mistied)
    monkeypatch.setattr("tests.support.gate_support.load_eager", load_mistied)
    monkeypatch.setitem(globals(), "load_eager", load_mistied)
    bench = _bench(checkpoint("bert"), tmp_path, "feature-extraction")
    bundle = bench.trace()
    assert _error(bench, bundle) <= 1e-5
    with pytest.raises(UnsafeCheckpointError, match="word_embeddings"):
        bench.validate(bundle)


# Bits that no probe reads


def _unread(bench):
    read = {
        int(i)
        for probe in plan_probes(bench.plan())
        for i in (*probe.feed["input_ids"].flatten(), *probe.eager_feed["input_ids"].flatten())
    }
    return next(i for i in range(255, 0, -1) if i not in read)


@pytest.mark.parametrize("name", ["word_embeddings.weight", "position_ids"])
def test_a_value_that_no_probe_reads_is_caught_bit_for_bit(name, checkpoint, tmp_path):
    """A row of the vocabulary; a buffer that no checkpoint stores, behind the traced length."""
    bench = _bench(checkpoint("bert"), tmp_path, "feature-extraction")
    row = _unread(bench) if name.startswith("word") else 0

    def corrupt(model):
        list_tensors(model.embeddings)[name].data[row, -1] += 1

    bundle = bench.trace(corrupt)
    assert _error(bench, bundle) <= 1e-5
    assert bench.validate(bundle, bits=False).passed  # the probes alone can't see it
    with pytest.raises(UnsafeCheckpointError, match=name):
        bench.validate(bundle)


def test_a_byte_that_saving_changes_is_caught(checkpoint, tmp_path, monkeypatch):
    inner = bundle_module._read_storage

    def read_wrongly(place, tensor):
        held = inner(place, tensor)
        if place.name.endswith("position_embeddings.weight"):
            held = held.clone()
            held[-1] ^= 1
        return held

    monkeypatch.setattr(bundle_module, "_read_storage", read_wrongly)
    bench = _bench(checkpoint("bert"), tmp_path, "feature-extraction")
    bundle = bench.trace()
    assert _error(bench, bundle) <= 1e-5
    with pytest.raises(UnsafeCheckpointError, match="position_embeddings"):
        bench.validate(bundle)


def test_state_inside_the_graph_is_caught(checkpoint, tmp_path, monkeypatch):
    """A counter that the graph itself moves: only the first call is eager's."""

    def corrupt(model):
        model.register_buffer("calls", torch.zeros(()))

        def counting(run, **feed):
            model.calls.add_(1)
            return faulty.scale(run(**feed), 1 + 1e-3 * (model.calls - 2))

        faulty.change_instance(model, counting)

    bench = _bench(checkpoint("bert"), tmp_path, "feature-extraction")
    with pytest.raises(UnsupportedCheckpointError, match=r"writes to ..calls"):
        bench.trace(corrupt)
    monkeypatch.setattr("tasks.trace.record.sparing_buffers", restoring_module_state)
    bundle = bench.trace(corrupt)
    assert _error(bench, bundle) <= 1e-5
    with pytest.raises(UnsafeCheckpointError, match="calls"):
        bench.validate(bundle)
    with pytest.raises(NumericsMismatchError, match="second call with the default executor"):
        bench.validate(bundle, bits=False)


# Numbers that run out of range


def test_rows_without_a_visible_token_become_nan_and_are_caught(checkpoint, tmp_path, monkeypatch):
    """Minus infinity over a whole row of attention is NaN, and NaN spreads to every token."""
    from transformers.models.llama import modeling_llama

    bench = _bench(checkpoint("llama"), tmp_path, "text-generation")
    attention = faulty.with_infinite_mask(modeling_llama.eager_attention_forward)
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama, "eager_attention_forward", attention)
        bundle = bench.trace(lambda model: model.set_attn_implementation("eager"))
    assert _error(bench, bundle) <= 1e-5
    failed, _ = _find_failures(bench, bundle)
    assert failed == {"left-pad", "one-token"}


def test_an_upcast_that_is_lost_in_half_precision_is_caught(own_checkpoint, tmp_path):
    """A norm in float16 overflows where one token is massive, as tokens of real models are."""
    folder = own_checkpoint("llama")
    bench = _bench(folder, tmp_path, "text-generation", dtype="float16")
    traced = set(example_feed(bench.facts, batch=2, length=8)["input_ids"].flatten().tolist())
    fresh = next(p for p in plan_probes(bench.plan()) if p.name == "fresh-0")
    token = next(i for i in fresh.feed["input_ids"].flatten().tolist() if i not in traced)
    weights = load_file(folder / "model.safetensors")
    faulty.massive_row(weights, token)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    bundle = bench.trace(faulty.upcast_lost)
    assert _error(bench, bundle) <= bench.plan().tolerance.rtol
    failed, passed = _find_failures(bench, bundle)
    assert "fresh-0" in failed
    assert "traced-input" in passed
    assert bench.validate(bench.trace()).passed
