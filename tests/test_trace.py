"""Tracing and the bundle: one archive, weights once, same bytes twice, loud about other shapes."""

from __future__ import annotations

import warnings
import zipfile

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tasks import child
from tasks.child import Limits
from tasks.errors import TraceError
from tasks.model.facts import LoadOptions
from tasks.model.feeds import pad_right, random_feed
from tasks.model.load import load_eager
from tasks.model.outputs import call_tuple
from tasks.model.preflight import inspect
from tasks.trace.compare import same_program
from tasks.trace.record import Reach, trace_checkpoint
from tests.support.gate_support import Bench
from tracefleet.manifest_types import InputSpec, OutputSpec
from tracefleet.reader.dispatcher import dispatcher_source


def _bench(checkpoint, tmp_path, name="bert", task="feature-extraction", **options):
    return Bench(folder=checkpoint(name), work=tmp_path, task=task, **options)


def test_six_lengths_cost_the_weights_once(sample, tmp_path):
    bench = Bench(
        folder=sample,
        work=tmp_path,
        task="feature-extraction",
        lengths=(32, 64, 128, 256, 384, 512),
    )
    bundle = bench.trace()
    assert bundle.size == bundle.path.stat().st_size
    assert bundle.size <= 1.03 * bundle.weight_bytes
    assert bench.same


def test_two_processes_write_the_same_digest_without_paths_of_this_machine(checkpoint, tmp_path):
    folder, options = checkpoint("t5"), LoadOptions(task="text2text-generation")
    facts = inspect(folder, options, (8, 16))
    results = []
    for attempt in ("one", "two"):
        target = tmp_path / attempt / "model.pt"
        target.parent.mkdir()
        outcome = child.run(
            trace_checkpoint, folder, options, facts, (8, 16), 2, target,
            limits=Limits(), log=tmp_path / "log", step="trace",
        )  # fmt: skip
        results.append(outcome.value)
    assert results[0].file.sha256 == results[1].file.sha256
    assert results[0].tied_groups == results[1].tied_groups != ()
    with zipfile.ZipFile(tmp_path / "one" / "model.pt") as archive:
        names = archive.namelist()
        assert not [n for n in names if "debug_pkl" in n or "traced_inputs" in n]
        code = b"".join(archive.read(n) for n in names if n.endswith((".py", ".pkl")))
    assert str(tmp_path).encode() not in code
    assert b"site-packages" not in code


def test_the_archive_says_which_operators_it_means(checkpoint, tmp_path):
    """An archive that claims an old version has its operators "upgraded" at load."""
    bundle = _bench(checkpoint, tmp_path, "deberta-cls", "text-classification").trace()
    torch.jit.save(torch.jit.load(bundle.path), tmp_path / "torch.pt")
    versions = []
    for path in (tmp_path / "torch.pt", bundle.path):
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("version"))
            versions.append(int(archive.read(name)))
    assert versions[0] == versions[1] > 3


def test_the_digest_is_of_the_bytes_on_disk(checkpoint, tmp_path):
    import hashlib

    bundle = _bench(checkpoint, tmp_path).trace()
    assert hashlib.sha256(bundle.path.read_bytes()).hexdigest() == bundle.sha256


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A loaded bundle with its eager model: lengths 8 and 16, two rows traced."""
    from tests.support import tiny

    work = tmp_path_factory.mktemp("bundle")
    bench = Bench(folder=tiny.save("bert", work), work=work, task="feature-extraction")
    bundle = bench.trace()
    eager = load_eager(bench.folder, bench.options)
    return bench, torch.jit.load(bundle.path), eager


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 16])
def test_the_dispatcher_takes_any_rows_and_length(loaded, rows, tokens):
    bench, module, eager = loaded
    feed = random_feed(bench.facts, batch=rows, length=tokens, seed=rows * 100 + tokens)
    with torch.no_grad():
        got = module(*feed.values())
        expected = call_tuple(eager, feed, bench.outputs)
    for one, two in zip(got, expected, strict=True):
        assert one.shape == two.shape
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_an_exact_method_is_the_dispatcher_without_its_work(loaded):
    bench, module, _ = loaded
    feed = random_feed(bench.facts, batch=2, length=5, seed=9)
    padded = pad_right(bench.facts, feed, 8)
    with torch.no_grad():
        assert torch.equal(module(*feed.values())[0], module.forward_8(*padded.values())[0][:, :5])


@pytest.mark.parametrize(
    ("method", "rows", "tokens", "message"),
    [
        ("forward", 1, 17, "at most 16"),
        ("forward_8", 2, 9, r"expected shape \(2, 8\)"),
        ("forward_8", 1, 8, r"expected shape \(2, 8\)"),
        ("forward_16", 2, 8, r"expected shape \(2, 16\)"),
    ],
)
def test_other_shapes_raise(loaded, method, rows, tokens, message):
    bench, module, _ = loaded
    feed = random_feed(bench.facts, batch=rows, length=tokens, seed=1)
    with pytest.raises(torch.jit.Error, match=message):
        getattr(module, method)(*feed.values())


def test_inputs_of_different_shapes_raise(loaded):
    bench, module, _ = loaded
    ids, mask, types = random_feed(bench.facts, batch=2, length=8, seed=1).values()
    with pytest.raises(torch.jit.Error, match="attention_mask: expected shape"):
        module(ids, mask[:, :7], types)
    with pytest.raises(torch.jit.Error, match="at least 1 of each"):
        module(ids[:0], mask[:0], types[:0])


def test_encoder_and_decoder_may_differ_in_length(checkpoint, tmp_path):
    bench = _bench(checkpoint, tmp_path, "t5", "text2text-generation", batch=1)
    module = torch.jit.load(bench.trace().path)
    eager = load_eager(bench.folder, bench.options)
    feed = random_feed(bench.facts, batch=2, length=12, seed=4)
    for name, tensor in feed.items():
        if name.startswith("decoder"):
            feed[name] = tensor[:, :5].contiguous()
    with torch.no_grad():
        logits, encoded = module(*feed.values())
        expected = call_tuple(eager, feed, bench.outputs)
    assert logits.shape == (2, 5, 256)
    assert encoded.shape == (2, 12, 32)
    torch.testing.assert_close(logits, expected[0], atol=1e-5, rtol=1e-5)


def test_one_output_is_still_a_tuple(checkpoint, tmp_path):
    bench = _bench(checkpoint, tmp_path, "bert-mlm", "fill-mask", batch=1)
    module = torch.jit.load(bench.trace().path)
    feed = random_feed(bench.facts, batch=3, length=4, seed=4)
    outputs = module(*feed.values())
    assert isinstance(outputs, tuple)
    assert [tuple(t.shape) for t in outputs] == [(3, 4, 256)]


@pytest.mark.parametrize(
    ("name", "task", "shared", "same"),
    [
        ("bert", "feature-extraction", True, True),
        ("t5", "text2text-generation", True, True),
        ("longformer-mlm", "fill-mask", False, False),
    ],
)
def test_one_graph_serves_all_lengths_where_it_can(name, task, shared, same, checkpoint, tmp_path):
    folder, options = checkpoint(name), LoadOptions(task=task)
    facts = inspect(folder, options, (8, 16, 24))
    arguments = (folder, options, facts, (8, 16, 24), 1)
    result = trace_checkpoint(*arguments, tmp_path / "model.pt", Reach.SHARED)
    assert (result.shared, result.same_program, result.general) == (shared, same, None)
    module = torch.jit.load(result.file.path)
    assert hasattr(module, "_traced_16") != shared
    each = trace_checkpoint(*arguments, tmp_path / "each.pt", Reach.EACH)
    assert not each.shared
    one, two = module, torch.jit.load(each.file.path)
    for tokens in (3, 8, 13, 24):
        feed = random_feed(facts, batch=2, length=tokens, seed=tokens).values()
        assert all(map(torch.equal, one(*feed), two(*feed)))


@pytest.mark.parametrize(
    ("name", "task", "general"),
    [
        ("bert", "feature-extraction", True),
        ("t5", "text2text-generation", True),
        ("gpt2", "text-generation", True),
        ("longformer-mlm", "fill-mask", False),
    ],
)
def test_one_graph_runs_every_shape_where_its_programs_are_equal(
    name, task, general, checkpoint, tmp_path
):
    folder, options = checkpoint(name), LoadOptions(task=task)
    facts = inspect(folder, options, (8, 16))
    result = trace_checkpoint(folder, options, facts, (8, 16), 1, tmp_path / "model.pt")
    assert (result.general is not None) == general
    if not general:
        return
    eager, module = load_eager(folder, options), torch.jit.load(result.file.path)
    # One run, one run at the limit of rows, and several: all in the callers' own shapes.
    for rows, tokens in ((1, 1), (3, 13), (64, 5), (65, 3), (100, 16)):
        feed = random_feed(facts, batch=rows, length=tokens, seed=rows)
        with torch.no_grad():
            expected = call_tuple(eager, feed, result.outputs)
            for got, wanted in zip(module(*feed.values()), expected, strict=True):
                torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_a_call_is_split_by_the_budget_that_its_user_sets(checkpoint, tmp_path):
    folder, options = checkpoint("bert"), LoadOptions(task="feature-extraction")
    facts = inspect(folder, options, (8, 16))
    result = trace_checkpoint(folder, options, facts, (8, 16), 1, tmp_path / "model.pt")
    module = torch.jit.load(result.file.path)
    assert module.token_budget == 1024
    feed = list(random_feed(facts, batch=7, length=12, seed=7).values())
    whole = module(*feed)[0]
    seen = _count_rows(module, feed)
    assert seen == [7]
    module.token_budget = 40
    assert _count_rows(module, feed) == [3, 3, 1]
    torch.testing.assert_close(module(*feed)[0], whole, atol=1e-6, rtol=1e-5)
    module.token_budget = 1
    assert _count_rows(module, feed) == [1] * 7


class _Poolings(TorchDispatchMode):
    """Notes the rows of each run of a BERT: its pooler calls tanh once."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.tanh.default:
            self.rows.append(args[0].shape[0])
        return function(*args, **(kwargs or {}))


def _count_rows(module, feed):
    with torch.no_grad(), _Poolings() as seen:
        module(*feed)
    return seen.rows


def test_one_length_is_compared_with_another_one_and_another_batch(
    checkpoint, tmp_path, monkeypatch
):
    from tasks.trace import record as trace

    calls = []
    original = trace.trace_lengths

    def count(model, facts, outputs, lengths, batch, **more):
        calls.append((lengths, batch))
        return original(model, facts, outputs, lengths, batch, **more)

    monkeypatch.setattr(trace, "trace_lengths", count)
    folder, options = checkpoint("bert"), LoadOptions(task="feature-extraction")
    facts = inspect(folder, options, (8,))
    arguments = (folder, options, facts, (8,), 1, tmp_path / "model.pt")
    result = trace_checkpoint(*arguments)
    assert (result.shared, result.same_program) == (False, True)
    assert result.general is not None
    assert calls == [((8,), 1), ((4,), 1), ((8,), 2)]
    calls.clear()
    assert trace_checkpoint(*arguments, Reach.SHARED).general is None
    assert calls == [((8,), 1)]


def _toy(function):
    class Toy(torch.nn.Module):
        def _traced_8(self, x):
            return function(x)

        def _traced_16(self, x):
            return function(x)

    examples = {f"_traced_{n}": (torch.ones(1, n),) for n in (8, 16)}
    warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
    module = torch.jit.trace_module(Toy(), examples, check_trace=False)
    return same_program(module, (8, 16))


def test_programs_that_differ_by_their_length_are_one_program():
    assert _toy(lambda x: x + x.shape[1])
    assert _toy(lambda x: x * 2)


def test_programs_that_differ_otherwise_are_not():
    assert not _toy(lambda x: x + (1 if x.shape[1] > 8 else 2))
    assert not _toy(lambda x: torch.sin(x) if x.shape[1] > 8 else torch.cos(x))
    assert not _toy(
        lambda x: x + torch.arange(3.0).roll(x.shape[1]).sum() * torch.tensor([x.shape[1] / 7])
    )


def test_longformer_needs_a_program_for_each_length(checkpoint, tmp_path):
    bench = _bench(checkpoint, tmp_path, "longformer-mlm", "fill-mask", lengths=(8, 24))
    bench.trace()
    assert not bench.same


def test_a_model_that_can_not_be_recorded_is_a_trace_error(checkpoint, tmp_path):
    bench = _bench(checkpoint, tmp_path)

    def corrupt(model):
        def fail(**_):
            raise RuntimeError("unordered_map::at")

        model.forward = fail

    with pytest.raises(TraceError, match=r"length 8.*unordered_map"):
        bench.trace(corrupt)


class _PythonOp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_a_model_that_can_not_be_saved_is_a_trace_error(checkpoint, tmp_path):
    """As BLOOM and YOSO: a Python autograd function traces and then can't be stored."""

    def corrupt(model):
        forward = model.forward

        def double(**feed):
            outputs = forward(**feed)
            outputs["last_hidden_state"] = _PythonOp.apply(outputs["last_hidden_state"])
            return outputs

        model.forward = double

    bench = _bench(checkpoint, tmp_path)
    with pytest.raises(TraceError, match="save"):
        bench.trace(corrupt)


def test_the_dispatcher_of_one_length_and_output_compiles():
    inputs = (InputSpec(name="input_ids", dtype="int64", axes=("batch", "length"), pad_value=7),)
    outputs = (OutputSpec(name="y", dtype="int64", axes=("batch", "length")),)

    class Toy(torch.nn.Module):
        def _traced_4(self, x):
            return (x * 10,)

    module = torch.jit.trace_module(Toy(), {"_traced_4": (torch.ones(1, 4).long(),)})
    for source in dispatcher_source(inputs, outputs, {4: "_traced_4"}, 1):
        module.define(source)
    assert module(torch.tensor([[1, 2], [3, 4]]))[0].tolist() == [[10, 20], [30, 40]]


def test_facts_cross_the_process_boundary(checkpoint, tmp_path):
    outcome = child.run(
        inspect, checkpoint("bert"), LoadOptions(task="feature-extraction"), (8,),
        limits=Limits(), log=tmp_path / "log", step="inspect",
    )  # fmt: skip
    assert outcome.value.architecture == "BertModel"
