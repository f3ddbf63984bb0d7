"""The contract of torch_neuronx: the double's; on a Neuron host the real one's.

``pytest -m real_neuron tests/test_neuron_double*.py`` on a Neuron host runs the tests that take an
SDK against the real one and prints where it differs from the double.
"""

from __future__ import annotations

import importlib.metadata
import threading
import warnings
from collections import namedtuple

import pytest
import torch
from torch import nn

from tests.support import neuron_double_support
from tests.support.neuron_double_support import (
    IDS,
    MASK,
    REFUSALS,
    Sorter,
    Tiny,
    eager,
    harness,
    off,
    saved,
    shows,
)

ON_CPU = "--target inf2 --auto-cast none"
report_differences = neuron_double_support.report_differences


@pytest.fixture(params=harness.sdks("torch_neuronx"))
def x(request):
    return request.param


@shows("signature")
def test_unknown_keywords_are_refused(x):
    with x.on() as sdk, pytest.raises(TypeError, match="options"):
        sdk.trace(Tiny(), (IDS, MASK), options={})


@shows("positional")
def test_positional_extras_warn(x, tmp_path):
    with x.on() as sdk, pytest.warns((DeprecationWarning, FutureWarning, UserWarning)):
        sdk.trace(Tiny(), (IDS, MASK), str(tmp_path))


@shows("order")
def test_positional_extras_are_guessed_by_their_kind(x, tmp_path):
    with x.on() as sdk, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdk.trace(Tiny(), (IDS, MASK), str(tmp_path / "kept"), ["--auto-cast", "none"])
    assert list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize("extra", [{"a": MASK}, None, 3, "text"], ids=str)
@shows("inputs")
def test_only_nests_of_tensors_go_in(x, extra):
    with x.on() as sdk, pytest.raises(REFUSALS):
        sdk.trace(lambda ids, _: ids * 2, (IDS, extra))


@shows("inputs", "outputs")
def test_nests_go_in_and_tensors_tuples_and_dicts_come_out(x, tmp_path):
    with x.on() as sdk:
        nested = saved(
            sdk.trace(lambda a, bc: a + bc[0] * bc[1][0], (MASK, (MASK, [MASK]))), tmp_path / "n.pt"
        )
        assert off(nested(MASK, (MASK, [MASK])), MASK * 2) < 1e-6
        assert off(sdk.trace(torch.relu, MASK)(MASK), MASK) < 1e-6
        named = saved(sdk.trace(lambda a: {"twice": a * 2}, (MASK,)), tmp_path / "d.pt")
        assert off(named(MASK)["twice"], MASK * 2) < 1e-6
        with pytest.raises(REFUSALS):
            sdk.trace(lambda a: namedtuple("Output", "logits")(a), (MASK,))


@shows("no-device", "cpu-backend", "cross", "load-device")
def test_a_host_without_a_device_compiles_only_for_a_named_target(x, tmp_path):
    with x.on(device="none") as sdk:
        with pytest.raises(RuntimeError, match=r"PJRT_Client_Create: .*!\(num_devices > 0\)"):
            sdk.trace(Tiny(), (IDS, MASK), compiler_args=ON_CPU)
        with pytest.raises(RuntimeError, match="please supply compiler argument target"):
            sdk.trace(Tiny(), (IDS, MASK), cpu_backend=True)
        module = sdk.trace(Tiny(), (IDS, MASK), compiler_args=ON_CPU, cpu_backend=True)
        with pytest.raises(RuntimeError, match="Neuron Runtime could not be initialized"):
            module(IDS, MASK)
        with pytest.raises(RuntimeError, match="Neuron Runtime could not be initialized"):
            saved(module, tmp_path / "model.pt")
    with x.on(device="inf2"):
        assert off(torch.jit.load(tmp_path / "model.pt")(IDS, MASK)[0], eager()[0]) < 1e-5


@pytest.mark.parametrize("wrong", ["--target inf9", "--auto-cast some", "--optlevel 4", "-O7"])
@shows("flags")
def test_wrong_flags_fail_in_the_compiler(x, wrong):
    with x.on() as sdk, pytest.raises(RuntimeError, match="neuronx-cc failed with"):
        sdk.trace(Tiny(), (IDS, MASK), compiler_args=wrong)


@shows("flag-status")
def test_a_wrong_flag_has_a_status_and_a_diagnostic(x, capfd):
    with x.on() as sdk, pytest.raises(RuntimeError, match="failed with 70"):
        sdk.trace(Tiny(), (IDS, MASK), compiler_args=["--logical-nc-config=9"])
    assert "invalid choice: '9'" in capfd.readouterr().err


@shows("flag-new")
def test_an_older_compiler_knows_no_integer_flags(x):
    older = x.on(compiler="2.26.6360.0")
    with older as sdk, pytest.raises(RuntimeError, match="neuronx-cc failed with"):
        sdk.trace(Tiny(), (IDS, MASK), compiler_args="--implicit-integer-downcast all")


@pytest.mark.parametrize("flag", ["--native-int64 disabled", "--logical-nc-config 2"])
@shows("flag-cores", "flag-lnc")
def test_flags_of_newer_cores_are_refused_for_older_ones(x, flag: str):
    with x.on() as sdk, pytest.raises(RuntimeError, match="neuronx-cc failed with"):
        sdk.trace(Tiny(), (IDS, MASK), compiler_args=f"--target inf2 {flag}")


@shows("flag-order", "auto-cast")
def test_operands_are_rounded_as_the_last_flag_says(x):
    def error(*flags):
        return off(sdk.trace(Tiny(), (IDS, MASK), compiler_args=list(flags))(IDS, MASK)[0], wanted)

    wanted = eager()[0]
    with x.on() as sdk:
        none = error("--auto-cast=matmult", "--auto-cast=none", "--enable-saturate-infinity")
        brain = error("--auto-cast", "matmult", "-O2")
        half = error("--auto-cast", "matmult", "--auto-cast-type", "fp16")
        tf32 = error("--auto-cast", "matmult", "--auto-cast-type", "tf32")
        everything = error("--auto-cast", "all", "--auto-cast-type", "bf16")
    assert none < 2e-6
    assert 1e-4 < brain < 2e-2
    assert 1e-5 < half < brain
    assert 1e-5 < tf32 < brain
    assert brain / 3 < everything < 5e-2
    if not x.real:
        with x.on(auto_cast="matmult") as sdk:
            assert error() == brain


@shows("never-equal")
def test_the_device_is_deterministic_and_never_bit_equal_to_the_cpu(x):
    with x.on() as sdk:
        module = sdk.trace(Tiny(), (IDS, MASK), compiler_args="--auto-cast none")
        first, second = module(IDS, MASK), module(IDS, MASK)
        again = sdk.trace(Tiny(), (IDS, MASK), compiler_args="--auto-cast none")(IDS, MASK)
        half = sdk.trace(torch.relu, MASK.half())(MASK.half())
    for one, two, three, wanted in zip(first, second, again, eager(), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
        assert not torch.equal(one, wanted)
    assert half.dtype == torch.float16


@shows("unsupported")
def test_an_unsupported_operator_fails_in_the_compiler(x, capfd):
    with x.on() as sdk, pytest.raises(RuntimeError, match="neuronx-cc failed with 70"):
        sdk.trace(Sorter(), (IDS, MASK))
    assert "aten::sort" in capfd.readouterr().err or x.real


@pytest.mark.parametrize(
    "function",
    [lambda a: torch.fft.fft(a).real, torch.nonzero, torch.linalg.inv],
    ids=["fft", "nonzero", "inv"],
)
@shows("lowering", "unsupported")
def test_every_kind_of_unsupported_operator_fails(x, function):
    with x.on() as sdk, pytest.raises(RuntimeError, match=r"NCC_|failed with 70|lowering"):
        sdk.trace(function, torch.eye(4))


@shows("partitioner", "thresholds")
def test_the_partitioner_falls_back_within_its_limits(x, tmp_path):
    with x.on() as sdk:
        config = sdk.PartitionerConfig
        module = saved(
            sdk.trace(Sorter(), (IDS, MASK), partitioner_config=config()), tmp_path / "model.pt"
        )
        assert off(module(IDS, MASK)[0], eager(model=Sorter)[0]) < 1e-5
        for limits in (
            {"model_support_percentage_threshold": 1.0},
            {"min_subgraph_size": 500},
            {"max_subgraph_count": 1, "ops_to_partition": {"aten::tanh"}},
        ):
            with pytest.raises(ValueError, match=r"support|subgraph"):
                sdk.trace(Sorter(), (IDS, MASK), partitioner_config=config(**limits))
        with pytest.raises(TypeError):
            config(0.5)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        pytest.param("exit70", "neuronx-cc failed with 70", id="exit-70"),
        pytest.param("killed", "neuronx-cc failed with -9", id="killed"),
        pytest.param("no_compiler", "neuronx-cc is not installed", id="no-compiler"),
    ],
)
@shows("exit-70", "killed", "no-compiler")
def test_a_compiler_that_fails_raises(x, fault, message):
    with x.on(fault=fault) as sdk, pytest.raises(RuntimeError, match=message):
        sdk.trace(Tiny(), (IDS, MASK))


@shows("diagnostic", "exit-70")
def test_a_diagnostic_is_on_stderr_and_a_fault_can_be_meant_for_one_shape(x, capfd):
    with x.on(fault="NCC_EVRF007", fault_shape="1x4") as sdk:
        sdk.trace(Tiny(), (IDS, MASK))
        with pytest.raises(RuntimeError, match="failed with 70"):
            sdk.trace(Tiny(), (IDS[:1, :4], MASK[:1, :4]))
    assert "[NCC_EVRF007]" in capfd.readouterr().err


@shows("limit-2gb")
def test_two_gigabytes_are_too_many_for_protobuf(x):
    with x.on(fault="limit2gb") as sdk, pytest.raises(ValueError, match="protobuf size of 2GB"):
        sdk.trace(Tiny(), (IDS, MASK))


@shows("workdir")
def test_the_compilers_folder_stays(x, tmp_path):
    with x.on() as sdk:
        sdk.trace(Tiny(), (IDS, MASK), compiler_workdir=tmp_path)
    assert any(path.name == "graph.neff" for path in tmp_path.rglob("*"))
    assert any("log" in path.name for path in tmp_path.rglob("*"))


@shows("unties", "frozen")
def test_a_trace_freezes_the_model_and_may_untie_it(x):
    model = Tiny()
    with x.on() as sdk:
        module = sdk.trace(model, (IDS, MASK))
        kept = module(IDS, MASK)[0]
        with torch.no_grad():
            model.layer.weight.mul_(2)
        assert torch.equal(module(IDS, MASK)[0], kept)
        branch = sdk.trace(lambda a: a * 2 if a.sum() > 0 else a * 3, (MASK,))
        assert off(branch(-MASK), -MASK * 2) < 1e-6
    assert model.head.weight is not model.embed.weight or x.real


@shows("int32")
def test_large_integers_wrap(x):
    with x.on() as sdk:
        module = sdk.trace(lambda a: a + 0, (IDS,), compiler_args="--native-int64 disabled")
        assert torch.equal(module(IDS + (1 << 32)), IDS)


@shows("round-trip", "no-grad")
def test_a_saved_model_gives_the_same_answer_without_gradients(x, tmp_path):
    with x.on() as sdk:
        module = sdk.trace(Tiny(), (IDS, MASK))
        loaded = saved(module, tmp_path / "model.pt")
        mask = MASK.clone().requires_grad_()
        for one, two in zip(module(IDS, mask), loaded(IDS, mask), strict=True):
            assert torch.equal(one, two)
            assert one.device.type == "cpu"
            assert not one.requires_grad


@shows("generation", "newer", "legacy-neff")
def test_the_runtime_refuses_programs_that_are_not_for_it(x, tmp_path, monkeypatch):
    with x.on(device="inf2", compiler="2.99.1.0") as sdk:
        torch.jit.save(sdk.trace(torch.relu, MASK), tmp_path / "new.pt")
        assert importlib.metadata.version("neuronx-cc") == "2.99.1.0"
    with x.on(device="trn1") as sdk:
        with pytest.raises(RuntimeError, match="status=2 message=Invalid"):
            torch.jit.load(tmp_path / "new.pt")
        torch.jit.save(sdk.trace(torch.relu, MASK), tmp_path / "v2.pt")
    with x.on(device="inf2", runtime_reads="2.99.1.0"):
        assert torch.jit.load(tmp_path / "new.pt")(MASK).shape == MASK.shape
    with x.on(device="trn2"):
        with pytest.raises(RuntimeError, match="status=10"):
            torch.jit.load(tmp_path / "v2.pt")
        monkeypatch.setenv("NEURON_RT_ALLOW_LEGACY_NEFF", "1")
        torch.jit.load(tmp_path / "v2.pt")


@shows("weights", "dynamic-weights")
def test_separated_weights_are_replaced_by_name(x, tmp_path):
    halved = {name: tensor / 2 for name, tensor in Tiny().state_dict().items()}
    model = Tiny()
    with x.on() as sdk:
        module = sdk.trace(model, (IDS, MASK), inline_weights_to_neff=False)
        module = saved(module, tmp_path / "model.pt")
        assert off(module(IDS, MASK)[0], eager()[0]) < 1e-5
        sdk.replace_weights(module, halved)
        model.load_state_dict(halved)
        with torch.no_grad():
            assert off(module(IDS, MASK)[0], model(IDS, MASK)[0]) < 1e-5
        sdk.move_trace_to_device(module, 0)
        sdk.replace_weights(module, Tiny())
        assert off(module(IDS, MASK)[0], eager()[0]) < 1e-5
        with pytest.raises(REFUSALS):
            sdk.dynamic_batch(sdk.trace(torch.nn.ReLU(), MASK, inline_weights_to_neff=False))


@shows("weights-refused")
def test_weights_of_another_name_or_shape_are_refused(x):
    with x.on() as sdk:
        module = sdk.trace(Tiny(), (IDS, MASK), inline_weights_to_neff=False)
        with pytest.raises(KeyError):
            sdk.replace_weights(module, {"nowhere": MASK})
        with pytest.raises(RuntimeError, match=r"layer\.bias"):
            sdk.replace_weights(module, {"layer.bias": MASK})


@shows("weights-inlined")
def test_inlined_weights_are_not_replaced(x):
    with x.on() as sdk:
        module = sdk.trace(Tiny(), (IDS, MASK))
        with pytest.warns(UserWarning, match="separated weights"):
            sdk.replace_weights(module, Tiny())


@shows("lazy")
def test_a_lazy_model_is_refused_at_its_first_call(x, tmp_path):
    with x.on(device="inf2") as sdk:
        module = sdk.trace(torch.relu, MASK)
        sdk.lazy_load(module)
        sdk.async_load(module)
        torch.jit.save(saved(module, tmp_path / "one.pt"), tmp_path / "two.pt")
    with x.on(device="none"):
        module = torch.jit.load(tmp_path / "two.pt")
        with pytest.raises(RuntimeError, match="could not be initialized"):
            module(MASK)


def _cores(archive, count):
    from neuron_double.runtime import core_of

    held = [torch.jit.load(archive) for _ in range(count)]
    return [core_of(module.handle) for module in held]


@shows("cores", "exhausted", "memory")
def test_models_are_spread_over_the_cores_until_there_is_no_room(x, tmp_path, monkeypatch):
    archive = tmp_path / "model.pt"
    with x.on(device="inf2") as sdk:
        torch.jit.save(sdk.trace(torch.relu, MASK), archive)
    with x.on(device="inf2", cores=4):
        assert sorted(_cores(archive, 4)) == [0, 1, 2, 3]
        monkeypatch.setenv("NEURON_RT_NUM_CORES", "2")
        assert sorted(_cores(archive, 2)) == [0, 1]
        monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "2-3")
        assert sorted(_cores(archive, 2)) == [2, 3]
        monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "9")
        with pytest.raises(RuntimeError, match=r"status=9 .*not available"):
            torch.jit.load(archive)
        monkeypatch.delenv("NEURON_RT_VISIBLE_CORES")
        monkeypatch.delenv("NEURON_RT_NUM_CORES")
    with x.on(device="inf2", cores=4, busy=4), pytest.raises(RuntimeError, match="status=9"):
        torch.jit.load(archive)
    room = int(2.5 * archive.stat().st_size)
    with x.on(device="inf2", cores=1, core_memory=room):
        for _ in range(3):  # what is dropped gives its memory back
            assert _cores(archive, 2) == [0, 0]
        with pytest.raises(RuntimeError, match="status=4"):
            _cores(archive, 9)


@pytest.mark.parametrize(
    "arguments",
    [(IDS[:1], MASK[:1]), (IDS[:, :4], MASK[:, :4]), (IDS[0], MASK[0]), (IDS,), (IDS, MASK, MASK)],
    ids=["batch", "length", "rank", "fewer", "more"],
)
@shows("shape")
def test_no_other_shape_is_ever_computed(x, arguments):
    with x.on() as sdk:
        module = sdk.trace(Tiny(), (IDS, MASK))
        with pytest.raises((RuntimeError, ValueError)):
            module(*arguments)


@shows("shape-text")
def test_a_wrong_shape_comes_through_the_interpreter(x):
    with x.on() as sdk:
        module = sdk.trace(Tiny(), (IDS, MASK))
        with pytest.raises(RuntimeError, match=r"(?s)TorchScript interpreter.*tensor shape"):
            module(IDS[:1], MASK[:1])


@pytest.mark.parametrize(
    "wrong",
    [(IDS.int(), MASK), (IDS, MASK.double()), (MASK, IDS)],
    ids=["int32", "float64", "order"],
)
@shows("dtype")
def test_a_wrong_dtype_is_never_computed(x, wrong):
    with x.on() as sdk:
        module = sdk.trace(Tiny(), (IDS, MASK))
        with pytest.raises(RuntimeError, match=r"(?s)TorchScript interpreter.*tensor type"):
            module(*wrong)


@shows("dynamic", "dynamic-dim", "dynamic-rows")
def test_a_dynamic_batch_takes_any_rows_and_nothing_else(x, tmp_path):
    ids, mask = IDS.repeat(3, 1)[:5], MASK.repeat(3, 1)[:5]
    with x.on() as sdk:
        module = sdk.trace(Tiny(), (IDS, MASK))
        assert sdk.dynamic_batch(module) is module
        module = saved(module, tmp_path / "model.pt")
        for rows in (1, 2, 5):
            for got, wanted in zip(module(ids[:rows], mask[:rows]), eager(ids, mask), strict=True):
                assert off(got, wanted[:rows]) < 1e-5
        with pytest.raises((ValueError, RuntimeError)):
            module(ids[:, :4], mask[:, :4])
        with pytest.raises((ValueError, RuntimeError), match="Inconsistent batch sizes"):
            module(ids, mask[:2])


@shows("dynamic-text")
def test_a_dynamic_batch_raises_a_value_error_through_the_interpreter(x):
    with x.on() as sdk:
        module = sdk.dynamic_batch(sdk.trace(Tiny(), (IDS, MASK)))
        with pytest.raises(RuntimeError, match=r"(?s)TorchScript interpreter.*ValueError"):
            module(IDS[:, :4], MASK[:, :4])


@shows("dynamic-compile")
def test_a_dynamic_batch_needs_rows_everywhere(x):
    with x.on() as sdk:
        module = sdk.trace(lambda a: (a, a.sum(0)), MASK)
        with pytest.raises(ValueError, match="did not have the same dim 0 size"):
            sdk.dynamic_batch(module)


@torch.jit.script
def _kernel(tensors: list[torch.Tensor]):
    """Pad on the right to 4 or 8; nothing for what is longer, as the documented one."""
    length = tensors[0].size(1)
    padded: list[torch.Tensor] = []
    bucket = 0 if length <= 4 else 1
    if length <= 8:
        for tensor in tensors:
            room = 4 * (bucket + 1) - length
            padded.append(torch.constant_pad_nd(tensor, [0, room], 0))
    return padded, torch.tensor(bucket)


@shows("buckets", "bucket-kernel", "bucket-long")
def test_buckets_are_chosen_by_their_kernel(x, tmp_path):
    examples = [(IDS[:, :4], MASK[:, :4]), (IDS, MASK)]
    with x.on() as sdk:
        config = sdk.BucketModelConfig(lambda: _kernel)
        module = sdk.bucket_model_trace(lambda: (Tiny(), {}), examples, config)
        module = saved(module, tmp_path / "model.pt")
        for length, bucket in ((3, 4), (4, 4), (8, 8)):
            wanted = eager(IDS[:, :length], MASK[:, :length])[0]
            got = module(IDS[:, :length], MASK[:, :length])[0]
            assert got.shape[1] == bucket
            assert off(got[:, :length], wanted) < 1e-5
        with pytest.raises(RuntimeError):
            module(IDS.repeat(1, 2), MASK.repeat(1, 2))
        plain = sdk.BucketModelConfig(lambda: lambda tensors: (tensors, torch.tensor(0)))
        with pytest.raises(Exception, match=r"bucket_kernel|script"):
            sdk.bucket_model_trace(lambda: (Tiny(), {}), examples, plain)


class Counter(nn.Module):
    """Returns its total doubled, and last the total itself, which is its next one."""

    def __init__(self) -> None:
        super().__init__()
        self.total: torch.Tensor
        self.register_buffer("total", torch.zeros(3))

    def forward(self, more):
        total = self.total + more
        return total * 2, total


@shows("state")
def test_state_stays_from_call_to_call(x):
    state, one, counter = torch.zeros(3), torch.ones(3), Counter()
    with x.on() as sdk:
        given = sdk.trace(
            lambda held, more: ((held + more) * 2, held + more),
            (state, one),
            input_output_aliases={state: 1},
        )
        assert [round(float(given(state, one)[0][0])) for _ in range(3)] == [2, 4, 6]
        held = sdk.trace(counter, one, input_output_aliases={counter.total: 1})
        assert [round(float(held(one)[0][0])) for _ in range(3)] == [2, 4, 6]
        without = sdk.trace(Counter(), one)
        assert [round(float(without(one)[0][0])) for _ in range(3)] == [2, 2, 2]


@shows("state-out")
def test_state_is_returned_all_the_same(x):
    counter, one = Counter(), torch.ones(3)
    with x.on() as sdk:
        held = sdk.trace(counter, one, input_output_aliases={counter.total: 1})
        assert [round(float(held(one)[1][0])) for _ in range(3)] == [1, 2, 3]


@shows("placement")
def test_models_are_placed_where_they_are_told(x, tmp_path):
    with x.on(device="inf2") as sdk:
        archive = tmp_path / "model.pt"
        torch.jit.save(sdk.trace(torch.relu, MASK), archive)
        with sdk.neuron_cores_context(1, 1):
            module = torch.jit.load(archive)
            assert x.real or _cores(archive, 2) == [1, 1]
        assert module(MASK).shape == MASK.shape
        with sdk.multicore_context():
            module = torch.jit.load(archive)
        sdk.experimental.set_multicore(module)
        sdk.set_neuron_cores(module, 1, 1)
        assert module(MASK).shape == MASK.shape
        sdk.set_neuron_cores(nn.Linear(1, 1), 0, 1)
        with pytest.raises(ValueError, match="nc_count"):
            sdk.set_neuron_cores(module, 0, 99)
    with x.on(device="none") as sdk, pytest.raises(RuntimeError, match="could not be initialized"):
        sdk.set_neuron_cores(nn.Linear(1, 1), 0, 1)


@shows("parallel", "parallel-device")
def test_data_parallel_has_a_copy_on_each_core(x):
    ids, mask = IDS.repeat(4, 1)[:7], MASK.repeat(4, 1)[:7]
    with x.on(device="inf2") as sdk:
        module = sdk.trace(Tiny(), (IDS, MASK))
        parallel = sdk.DataParallel(module)
        assert (parallel.num_workers, parallel.split_size) == (4, 2)
        assert off(parallel(ids, mask)[0], eager(ids, mask)[0]) < 1e-5
        parallel.disable_dynamic_batching()
        with pytest.raises(RuntimeError):
            parallel(ids, mask)
    with x.on(device="none") as sdk, pytest.raises(RuntimeError, match="number of available"):
        sdk.DataParallel(module)


@shows("round-trip", "cores")
def test_many_threads_call_one_model(x):
    with x.on() as sdk:
        module = sdk.trace(Tiny(), (IDS, MASK))
        wanted, got = module(IDS, MASK)[0], []
        threads = [
            threading.Thread(target=lambda: got.append(module(IDS, MASK)[0])) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(got) == 8
    assert all(torch.equal(one, wanted) for one in got)


@shows("analyze")
def test_analyze_names_what_is_not_supported(x):
    with x.on() as sdk:
        report = sdk.analyze(Sorter(), (IDS, MASK))
        assert report["supported_operators"]["aten::relu"] == 1
        (refused,) = report["unsupported_operators"]
        assert (refused["kind"], refused["failureAt"]) == ("aten::sort", "neuronx-cc")
        assert report["support_percentage"] != "100.00%"
        assert {"torch_neuronx_version", "neuronx_cc_version"} <= report.keys()
        whole = sdk.analyze(Sorter(), (IDS, MASK), additional_ignored_ops={"aten::sort"})
        assert whole["support_percentage"] == "100.00%"


@shows("analyze-device")
def test_analyze_works_without_a_device(x):
    with x.on(device="none") as sdk:
        assert sdk.analyze(Tiny(), (IDS, MASK))["support_percentage"] == "100.00%"


@shows("analyze-deadlock", "analyze-folder")
def test_analyze_is_told_of_transformers_and_keeps_its_folder(x, tmp_path):
    with x.on(analyze_fault="deadlock") as sdk:
        kept, cleaned = tmp_path / "kept", tmp_path / "cleaned"
        sdk.analyze(Tiny(), (IDS, MASK), kept, is_hf_transformers=True)
        sdk.analyze(Tiny(), (IDS, MASK), cleaned, is_hf_transformers=True, cleanup=True)
        assert any(kept.iterdir())
        assert not cleaned.exists()


@shows("numerical", "wrong")
def test_a_run_can_fail_or_lie(x, tmp_path):
    with x.on() as sdk:
        torch.jit.save(sdk.trace(torch.relu, MASK), tmp_path / "model.pt")
    with x.on(run_fault="numerical"), pytest.raises(RuntimeError, match="status=1003"):
        torch.jit.load(tmp_path / "model.pt")(MASK)
    with x.on(run_fault="nan"):
        assert torch.jit.load(tmp_path / "model.pt")(MASK).isnan().all()
    with x.on(run_fault="wrong"):
        assert off(torch.jit.load(tmp_path / "model.pt")(MASK), MASK) > 0.2
