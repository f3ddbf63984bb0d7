"""The contract double, or a real SDK, with real architectures: what the pipeline asks of both."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from tests.support import tiny, tiny_samples
from tests.support.neuron_double_support import harness, kinds, off, saved

MASKS = {
    "full": [[1] * 8] * 2,
    "right": [[1] * 8, [1] * 5 + [0] * 3],
    "left": [[0] * 3 + [1] * 5, [0] * 6 + [1] * 2],
    "hole": [[1, 1, 0, 1, 0, 0, 1, 1], [1, 0, 1, 0, 1, 0, 1, 0]],
    "one token": [[1] + [0] * 7, [0] * 4 + [1] + [0] * 3],
}
TASKS = {
    "bert-qa": ("start_logits", "end_logits"),
    "roberta-cls": ("logits",),
    "distilbert-tok": ("logits",),
}
NAMES = ("input_ids", "attention_mask")
HALF = ["--fast-math", "fp32-cast-matmult-fp16", "no-fast-relayout"]
MATMULS = {"linear", "addmm", "mm", "bmm", "matmul"}


class Program(nn.Module):
    """Positional tensors in, a flat tuple out, as the pipeline wraps a model."""

    def __init__(self, model, outputs, names=NAMES) -> None:
        super().__init__()
        self.model, self.outputs, self.names = model, outputs, names
        self.eval()

    def forward(self, *tensors):
        result = self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=True)
        return tuple(result[name] for name in self.outputs)


@pytest.fixture(params=harness.sdks("torch_neuronx"))
def x(request):
    return request.param


@pytest.fixture(params=harness.sdks("torch_neuron"))
def n(request):
    return request.param


def program(name):
    return Program(tiny.build(name), TASKS[name])


def feed(length=8, seed=0):
    ids = torch.randint(5, 250, (2, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, length // 2 :] = 0
    return ids, mask


def errors(module, wanted, *tensors):
    with torch.no_grad():
        got, expected = module(*tensors), wanted(*tensors)
    assert isinstance(got, tuple)
    assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in expected]
    return [off(a.float(), b.float()) for a, b in zip(got, expected, strict=True)]


def close_under_every_mask(module, wanted, bound):
    ids = feed(seed=1)[0]
    found = {
        name: max(errors(module, wanted, ids, torch.tensor(mask))) for name, mask in MASKS.items()
    }
    assert all(0 < error < bound for error in found.values()), found


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    ("flags", "bound"), [("--auto-cast none", 1e-4), ("--auto-cast matmult", 3e-2)]
)
def test_heads_are_compiled_for_inf2(x, name, flags, bound, tmp_path):
    wanted = program(name)
    assert wanted.model.config._attn_implementation == "sdpa"
    with x.on() as sdk:
        module = saved(sdk.trace(wanted, feed(), compiler_args=flags), tmp_path / "model.pt")
        close_under_every_mask(module, wanted, bound)


@pytest.mark.parametrize("name", TASKS)
def test_heads_are_compiled_for_inf1(n, name, tmp_path):
    wanted = program(name)
    with n.on() as sdk:
        module = saved(sdk.trace(wanted, feed(), compiler_args=HALF), tmp_path / "model.pt")
        close_under_every_mask(module, wanted, 5e-3)


class Holder(nn.Module):
    """Takes programs, each under a name of its length."""


def composed(loaded, outputs):
    """Build one module of several programs, as the reader does."""
    holder = Holder()
    for length, module in loaded.items():
        holder.add_module(f"length_{length}", module)
    recursive = torch.jit._recursive
    whole = recursive.create_script_module(
        holder.eval(), recursive.infer_methods_to_compile, share_types=False
    )
    for length in loaded:
        whole.define(
            f"def forward_{length}(self, input_ids: Tensor, attention_mask: Tensor) -> "
            f"Tuple[{', '.join(['Tensor'] * outputs)}]:\n"
            f"    return self.length_{length}(input_ids, attention_mask)\n"
        )
    return whole


def _composition(sdk, wanted, tmp_path, **options):
    loaded = {
        length: saved(sdk.trace(wanted, feed(length), **options), tmp_path / f"{length}.pt")
        for length in (8, 16)
    }
    return loaded, composed(loaded, len(wanted.outputs))


@pytest.mark.parametrize("name", ["bert-qa", "roberta-cls"])
def test_programs_become_one_module(x, name, tmp_path):
    wanted = program(name)
    with x.on() as sdk:
        _, whole = _composition(sdk, wanted, tmp_path, compiler_args="--auto-cast none")
        for length in (8, 16):
            call = getattr(whole, f"forward_{length}")
            assert max(errors(call, wanted, *feed(length))) < 1e-4
        with pytest.raises(RuntimeError):
            whole.forward_8(*feed(16))


def test_programs_become_one_module_on_inf1(n, tmp_path):
    wanted = program("bert-qa")
    with n.on() as sdk:
        _, whole = _composition(sdk, wanted, tmp_path, compiler_args=HALF)
        for length in (8, 16):
            call = getattr(whole, f"forward_{length}")
            assert max(errors(call, wanted, *feed(length))) < 5e-3
        with pytest.raises(RuntimeError):
            whole.forward_8(*feed(16))


def test_a_part_of_a_module_gets_other_weights(x, tmp_path):
    wanted = program("bert-qa")
    other = {name: tensor * 1.1 for name, tensor in wanted.state_dict().items()}
    with x.on() as sdk:
        loaded, whole = _composition(sdk, wanted, tmp_path, inline_weights_to_neff=False)
        sdk.replace_weights(loaded[8], other)
        assert min(errors(whole.forward_8, wanted, *feed(8))) > 1e-2
        assert max(errors(whole.forward_16, wanted, *feed(16))) < 3e-2  # its own weights
        wanted.load_state_dict(other)
        assert max(errors(whole.forward_8, wanted, *feed(8))) < 3e-2


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)],
    ids=str,
)
def test_pixels_and_short_dtypes(x, dtype, bound):
    picture = Program(tiny_samples.build("vit").to(dtype), ("logits",), ("pixel_values",))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 32, 32, generator=generator).to(dtype)
    text = program("roberta-cls").to(dtype)
    with x.on() as sdk:
        for wanted, given in ((picture, (pixels,)), (text, feed())):
            module = sdk.trace(wanted, given, compiler_args="--auto-cast none")
            assert 0 < max(errors(module, wanted, *given)) < bound


def _matmuls(module):
    names = [kind.removeprefix("aten::").lstrip("_") for kind in kinds(module)]
    return sum(name in MATMULS or name.startswith("scaled_dot") for name in names)


def test_what_inf1_leaves_to_the_cpu_can_be_counted(n):
    """The graph has the host's own operators, as many as eager has, and no others."""
    wanted = program("bert-qa")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer reads deprecated properties too
        total = _matmuls(torch.jit.trace(wanted, feed(), check_trace=False))
    assert total == 2 * 6 + 2 + 1  # six linear layers each, two attentions, one head
    with n.on() as sdk:
        assert _matmuls(sdk.trace(wanted, feed(), skip_compiler=True)) == total
        assert _matmuls(sdk.trace(wanted, feed())) == 0
        alone = sdk.trace(wanted, feed(), fallback=False)
        assert not [kind for kind in kinds(alone) if kind.startswith("aten::")]
    with n.on(unsupported="aten::addmm") as sdk:
        module = sdk.trace(wanted, feed(), single_fusion_ratio_threshold=1.0)
        assert _matmuls(module) == total - 2  # attention is compiled all the same
