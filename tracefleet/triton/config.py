"""``config.pbtxt``: how Triton's PyTorch backend serves a conversion.

Made of the manifest's inputs and outputs alone, for the conversion's folder in the store and for
model repositories. Measured on a real Triton 24.10 (``docs/triton.md``): outputs may have their
real names, requests carry their batch, two instances share the weights, and first calls are made
before the model is ready. Fields: Triton's ``model_config.proto``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tracefleet.errors import NoFormError
from tracefleet.manifest_types import LENGTH_AXES, InputSpec, OutputSpec

#: Types of tensors that the PyTorch backend has.
TYPES = {
    "int64": "TYPE_INT64",
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bool": "TYPE_BOOL",
}
LABELS = "labels.txt"
#: Most rows of one request: Triton refuses more with a good sentence, before the bundle sees them.
MAX_ROWS = 64
_NAME = re.compile(r"[A-Za-z0-9_]+")
#: What the backend does otherwise by itself: an executor that takes seconds for the first two calls
#: of each shape, a copy of the weights for each instance, and gradients (its README).
_PARAMETERS = {
    "DISABLE_OPTIMIZED_EXECUTION": "true",
    "ENABLE_WEIGHT_SHARING": "true",
    "INFERENCE_MODE": "true",
}


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a server is to run a conversion.

    Attributes:
        name: the model's name, that of its folder; None: the folder names it.
        gpu: whether it runs on the host's GPUs; else on the CPU, wherever there is one.
        instances: calls at a time, over one copy of the weights.
        versions: how many of the newest versions are served; two where a model in front asks for
            its own one, so that there is one to ask while the channel moves.
    """

    name: str | None = None
    gpu: bool = False
    instances: int = 2
    versions: int = 1


DEFAULT = Serving()


def find_obstacle(inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]) -> str | None:
    """Return why Triton can't serve a conversion; None: it can."""
    specs: list[InputSpec | OutputSpec] = [*inputs, *outputs]
    for spec in specs:
        if spec.dtype not in TYPES:
            return f"{spec.name} is {spec.dtype}, which Triton's PyTorch backend has no type for"
        if not _NAME.fullmatch(spec.name):
            return f"the name {spec.name!r} has characters that a configuration can't hold"
    return None


def make_config(
    inputs: Sequence[InputSpec],
    outputs: Sequence[OutputSpec],
    lengths: Sequence[int],
    labels: Sequence[str] = (),
    serving: Serving = DEFAULT,
) -> str:
    """Return the configuration.

    Args:
        inputs: arguments of the bundle, in order.
        outputs: elements of the tuple that it returns, in order.
        lengths: standard lengths, each of which is called before the model is ready.
        labels: names of the classes, if the file ``labels.txt`` beside it has them.
        serving: how it is to be run.

    Raises:
        NoFormError: Triton can't serve it.
    """
    obstacle = find_obstacle(inputs, outputs)
    if obstacle is not None:
        raise NoFormError(f"triton: {obstacle}. Convert it with another dtype.")
    lines = [] if serving.name is None else [f'name: "{serving.name}"']
    lines += ['platform: "pytorch_libtorch"', 'backend: "pytorch"', f"max_batch_size: {MAX_ROWS}"]
    lines += [f"input [ {{ {describe(spec)} }} ]" for spec in inputs]
    for spec in outputs:
        named = f' label_filename: "{LABELS}"' if labels and _is_row_of(spec, labels) else ""
        lines.append(f"output [ {{ {describe(spec)}{named} }} ]")
    if serving.versions > 1:
        lines.append(f"version_policy: {{ latest {{ num_versions: {serving.versions} }} }}")
    kind = "KIND_GPU" if serving.gpu else "KIND_CPU"
    lines.append(f"instance_group [ {{ kind: {kind} count: {serving.instances} }} ]")
    for key, value in _PARAMETERS.items():
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')
    return "\n".join([*lines, *_warm_up(inputs, lengths)]) + "\n"


def format_labels(labels: Sequence[str]) -> str:
    """Return ``labels.txt``: a name a line, in the order of the logits."""
    return "".join(f"{' '.join(label.split())}\n" for label in labels)


def describe(spec: InputSpec | OutputSpec) -> str:
    """Return an input's or output's name, type and sizes of a row, as a configuration has them."""
    dims = []
    for axis in spec.axes[1:]:
        dims.append(axis if axis.isdigit() else "-1")
    # A row of one number: Triton wants at least one axis beside the batch's.
    shape = f"dims: [ {', '.join(dims)} ]" if dims else "dims: [ 1 ] reshape: { shape: [ ] }"
    return f'name: "{spec.name}" data_type: {TYPES[spec.dtype]} {shape}'


def _is_row_of(spec: OutputSpec, labels: Sequence[str]) -> bool:
    """Tell whether an output is one value of each class for a row."""
    return spec.axes[1:] == (str(len(labels)),)


def _warm_up(inputs: Sequence[InputSpec], lengths: Sequence[int]) -> Iterator[str]:
    """Yield a call at each standard length; of fixed sizes there is one."""
    varies = any(axis in LENGTH_AXES for spec in inputs for axis in spec.axes)
    called = lengths if varies else lengths[:1]
    for length in called:
        # A batch of 0 rows would be left out without a word.
        yield f'model_warmup [ {{ name: "length {length}" batch_size: 1'
        for spec in inputs:
            dims = ", ".join(map(str, spec.shape(batch=1, length=length)[1:]))
            kind = f"data_type: {TYPES[spec.dtype]} dims: [ {dims} ] zero_data: true"
            yield f'  inputs {{ key: "{spec.name}" value {{ {kind} }} }}'
        yield "} ]"
