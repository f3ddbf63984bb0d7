"""What a request may say about Neuron: typed options, flags that are never left to defaults."""

from __future__ import annotations

from typing import get_args

import pytest

from flows.commands.convert import COMPILING
from tasks.backends.options import CAST_TOLERANCES, NeuronOptions, NeuronxOptions
from tasks.errors import RequestError
from tasks.request.candidate import request_fields
from tasks.request.conversion import make_request
from tests.support.neuron_support import flags as double
from tests.support.neuron_support import on
from tests.support.reader_support import example_manifest
from tracefleet.manifest_types import Variant

FAST_MATH = get_args(NeuronOptions.model_fields["fast_math"].annotation)
BASE = {"source": "file:///models/a", "task": "fill-mask", "lengths": [8], "backend": "neuronx"}


def test_every_flag_that_changes_numbers_is_explicit():
    line = " ".join(NeuronxOptions().compiler_args)
    for flag in (
        "--target inf2", "--auto-cast none", "--optlevel 2", "--model-type transformer",
    ):  # fmt: skip
        assert flag in line
    assert NeuronOptions().compiler_args == [
        "--fast-math", "fp32-cast-matmult-fp16", "no-fast-relayout",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "compiler", "passed"),
    [
        ("inf2", (2, 26, 6360, 0), []),  # AWS's last image with torch_neuronx
        ("trn2", (2, 26, 6360, 0), []),
        ("inf2", (2, 27, 5334, 0), ["--implicit-integer-downcast", "all"]),
        ("trn2", (2, 28, 1, 0), [
            "--implicit-integer-downcast", "all", "--native-int64", "disabled",
        ]),
    ],
)  # fmt: skip
def test_flags_that_a_compiler_or_target_lacks_are_not_passed(target, compiler, passed):
    options = NeuronxOptions(target=target)
    flags = options.compiler_args_for(compiler)
    assert flags == [*options.compiler_args, *passed]
    with on(compiler=".".join(map(str, compiler))):
        double.neuronx_flags(flags)  # refuses what it does not know


def test_logical_cores_are_named_where_there_are_any():
    assert "--logical-nc-config 2" in " ".join(NeuronxOptions(target="trn3").compiler_args)
    assert "--logical-nc-config 1" in " ".join(NeuronxOptions(target="trn2", lnc=1).compiler_args)
    assert NeuronxOptions(target="trn2", lnc=1).identity["neuronx.lnc"] == "1"
    assert "--logical-nc-config" not in NeuronxOptions().compiler_args


@pytest.mark.parametrize("choice", FAST_MATH)
def test_neuron_cc_takes_every_value_of_fast_math(choice):
    options = NeuronOptions(fast_math=choice)
    flags = double.neuron_flags(options.compiler_args)
    assert options.tolerance == CAST_TOLERANCES[flags.cast_type]


def test_options_are_part_of_the_identity_and_analysis_is_not():
    plain, other = make_request(BASE), make_request({**BASE, "neuronx": {"optlevel": 3}})
    assert plain.identity_options != other.identity_options
    blind = make_request({**BASE, "neuronx": {"analyze": True}})
    assert blind.identity_options == plain.identity_options
    assert all(isinstance(value, str) for value in plain.identity_options.values())


@pytest.mark.parametrize(
    ("options", "rtol"),
    [
        ({}, "none"),
        ({"auto_cast": "all"}, "bf16"),
        ({"auto_cast": "matmult", "auto_cast_type": "tf32"}, "tf32"),
    ],
)
def test_the_tolerance_follows_the_cast(options, rtol: str):
    assert make_request({**BASE, "neuronx": options}).tolerance == CAST_TOLERANCES[rtol]


def test_a_coarser_dtype_keeps_its_own_tolerance():
    assert make_request({**BASE, "dtype": "bfloat16"}).tolerance.rtol == 3e-2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"neuron": {}}, "neuron: expected none for backend neuronx"),
        ({"backend": "jit", "neuronx": {}}, "neuronx: expected none for backend jit"),
        ({"neuronx": {"target": "inf1"}}, "neuronx.target"),
        ({"neuronx": {"lnc": 1}}, "lnc: expected none for target inf2, got 1"),
        ({"backend": "neuron", "neuron": {"fast_math": "fp32-cast-all-bf16"}}, "fast_math"),
        ({"neuronx": {"auto-cast": "none"}}, "neuronx.auto-cast"),
        ({"neuronx": {"separate_weights": True, "dynamic_batch": True}}, "can't combine"),
        ({"dtype": "int8"}, "dtype: expected float32, float16 or bfloat16 for backend neuronx"),
        ({"rtol": 0.02}, "rtol: expected at most 0.01"),
        ({"backend": "neuron", "neuron": {"min_coverage": 2}}, "neuron.min_coverage"),
    ],
)
def test_nonsense_is_refused_before_any_work(fields, message: str):
    with pytest.raises(RequestError, match=message):
        make_request({**BASE, **fields})


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("neuronx", {"target": "trn1", "auto_cast": "matmult", "optlevel": 1}),
        ("neuronx", {"separate_weights": True}),
        ("neuron", {"min_coverage": 0.5, "fallback": False}),
        ("neuron", {"separate_weights": True, "fast_math": "fp32-cast-all"}),
        ("neuronx", {"target": "trn3", "lnc": 1}),
    ],
)
def test_a_candidates_request_is_read_back_from_its_manifest(backend: str, options):
    asked = make_request({**BASE, "backend": backend, backend: options, "rtol": 0.01})
    manifest = example_manifest(
        source="file:///models/a",
        variant=Variant(task="fill-mask", backend=backend),
        lengths=(8,),
        options=asked.identity_options,
    )
    again = make_request(request_fields(manifest))
    assert again.identity_options == asked.identity_options
    assert again.tolerance == asked.tolerance


def test_the_command_line_names_every_option():
    for backend, model in (("neuronx", NeuronxOptions), ("neuron", NeuronOptions)):
        assert COMPILING[backend].split(", ") == list(model.model_fields)
