"""The contract of torch_neuron (Inf1): the double's; on an Inf1 host the real one's."""

from __future__ import annotations

import logging
import subprocess

import pytest
import torch

from tests.support import neuron_double_support
from tests.support.neuron_double_support import (
    IDS,
    MASK,
    Sorter,
    Tiny,
    eager,
    harness,
    kinds,
    off,
    saved,
    shows,
)

report_differences = neuron_double_support.report_differences


@pytest.fixture(params=harness.sdks("torch_neuron"))
def n(request):
    return request.param


@shows("1-fallback", "1-embedding")
def test_inf1_leaves_embeddings_and_what_it_does_not_know_on_the_cpu(n, tmp_path):
    with n.on() as sdk:
        module = saved(sdk.trace(Sorter(), (IDS, MASK)), tmp_path / "model.pt")
        assert off(module(IDS, MASK)[0], eager(model=Sorter)[0]) < 5e-2
        found = set(kinds(module))
        assert {"aten::embedding", "aten::sort", "neuron::forward_1"} <= found or n.real
        assert "aten::addmm" not in found
        assert getattr(torch, "neuron").trace is sdk.trace  # noqa: B009  mypy knows no such name


@shows("1-no-fallback")
def test_inf1_without_fallback_takes_all_or_nothing(n):
    with n.on() as sdk:
        module = sdk.trace(Tiny(), (IDS, MASK), fallback=False)
        assert "aten::embedding" not in kinds(module)
        with pytest.raises(AttributeError):
            sdk.trace(Sorter(), (IDS, MASK), fallback=False)


@shows("1-nothing", "1-log")
def test_inf1_goes_on_without_a_subgraph_but_not_without_any(n, caplog):
    caplog.set_level(logging.INFO)
    with n.on(fault="exit70", strikes=1, unsupported="aten::tanh") as sdk:
        module = sdk.trace(Tiny(), (IDS, MASK), single_fusion_ratio_threshold=1.0)
        assert off(module(IDS, MASK)[0], eager()[0]) < 5e-2
        assert "aten::addmm" in kinds(module)
    for line in ("Compile command returned: 70", "_NeuronGraph$0; falling back", "command line"):
        assert line in caplog.text
    with n.on(fault="exit70") as sdk:
        with pytest.raises(RuntimeError, match="No operations were successfully partitioned"):
            sdk.trace(Tiny(), (IDS, MASK))
        assert sdk.trace(Tiny(), (IDS, MASK), allow_no_ops_on_neuron=True)


@shows("1-half")
def test_inf1_warns_under_half(n, caplog):
    with n.on(unsupported="aten::addmm,aten::t,aten::view,aten::unsqueeze,aten::mul") as sdk:
        sdk.trace(Tiny(), (IDS, MASK))
    assert "unable to compile > 50% of the operators" in caplog.text


@shows("1-timeout")
def test_inf1_gives_a_hanging_compiler_up(n):
    with n.on(fault="hang") as sdk, pytest.raises(subprocess.TimeoutExpired):
        sdk.trace(Tiny(), (IDS, MASK), compiler_timeout=1)


@shows("1-2gb")
def test_inf1_needs_separate_weights_for_large_models(n):
    with n.on(constant_limit=1000) as sdk:
        with pytest.raises(Exception, match="GraphDef"):
            sdk.trace(Tiny(), (IDS, MASK))
        sdk.trace(Tiny(), (IDS, MASK), separate_weights=True)


@shows("1-dict", "1-keywords")
def test_inf1_hands_keywords_to_the_tracer(n):
    model = Tiny()

    def named(ids, mask):
        return {"pooled": model(ids, mask)[1]}

    model.requires_grad_(False)

    with n.on() as sdk:
        with pytest.raises(RuntimeError):
            sdk.trace(named, (IDS, MASK))
        module = sdk.trace(named, (IDS, MASK), strict=False)
        assert off(module(IDS, MASK)["pooled"], eager()[1]) < 5e-2
        with pytest.raises(TypeError, match="nonsense"):
            sdk.trace(named, (IDS, MASK), nonsense=1)


@shows("1-whitelist")
def test_inf1_operators_can_be_chosen(n):
    choices = (
        {"op_whitelist": {"aten::addmm"}, "minimum_segment_size": 1},
        {"subgraph_builder_function": lambda node: "tanh" not in node.name},
        {"skip_compiler": True},
    )
    with n.on() as sdk:
        for choice in choices:
            module = sdk.trace(Tiny(), (IDS, MASK), **choice)
            assert "aten::tanh" in kinds(module)
        with pytest.raises(RuntimeError, match="No operations"):
            sdk.trace(Tiny(), (IDS, MASK), minimum_segment_size=99)


@shows("1-fast-math")
def test_an_inf1_matmul_is_never_float32(n):
    def error(**choice):
        return off(sdk.trace(Tiny(), (IDS, MASK), **choice)(IDS, MASK)[0], eager()[0])

    with n.on() as sdk:
        best = ["--fast-math", "fp32-cast-matmult-fp16", "no-fast-relayout", "--verbose", "35"]
        half = error(compiler_args=best)
        assert 1e-5 < half < error(compiler_args=["--fast-math", "none"])
        assert error() > 1e-4
        assert error(optimizations=[sdk.Optimization.FLOAT32_TO_FLOAT16]) > 1e-5
        with pytest.raises(RuntimeError, match="neuron-cc failed"):
            sdk.trace(Tiny(), (IDS, MASK), compiler_args=["--fast-math", "some"])


@shows("1-analyze")
def test_inf1_says_what_it_supports(n, caplog):
    caplog.set_level(logging.INFO)
    with n.on() as sdk:
        assert "aten::mm" in sdk.get_supported_operations()
        sdk.analyze_model(Sorter(), example_inputs=(IDS, MASK))
    assert n.real or "% of all operations are supported" in caplog.text


@shows("1-dynamic")
def test_inf1_takes_any_batch_where_asked(n):
    with n.on() as sdk:
        module = sdk.trace(Tiny(), (IDS, MASK), dynamic_batch_size=True)
        assert off(module(IDS[:1], MASK[:1])[0], eager()[0][:1]) < 5e-2


@shows("1-anywhere", "1-legacy", "generation")
def test_the_runtime_of_2021_answered_without_a_device(n, tmp_path):
    with n.on(device="none") as sdk:
        torch.jit.save(sdk.trace(Tiny(), (IDS, MASK)), tmp_path / "model.pt")
        with pytest.raises(RuntimeError, match="could not be initialized"):
            torch.jit.load(tmp_path / "model.pt")
    with n.on(device="inf2"), pytest.raises(RuntimeError, match="status=10"):
        torch.jit.load(tmp_path / "model.pt")
    for legacy, constant in (("garbage", True), ("cpu", False)):
        with n.on(device="none", legacy=legacy):
            with pytest.warns(UserWarning, match="not sent to NeuronCore"):
                module = torch.jit.load(tmp_path / "model.pt")
            first, second = module(IDS, MASK)[0], module(12 - IDS, MASK)[0]
            assert torch.equal(first, second) == constant
