"""The independent comparison: a published artifact against transformers without our settings.

It shares nothing with the gate but the manifest: the reader opens the artifact, the auto class
loads the checkpoint, NumPy draws the inputs with other seeds, lengths, batches and patterns, and
every row is compared with an eager call of that row alone.
"""

from __future__ import annotations

import copy
import inspect
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from tracefleet.manifest import Manifest
    from tracefleet.manifest_types import InputSpec
    from tracefleet.reader.model import Model

    Row = dict[str, "np.ndarray[Any, Any]"]

_CALLS = 6
_MOST_ROWS = 4
#: Factor on the gate's tolerance: rows are computed alone here, with other kernels' rounding.
_SLACK = 10.0
_FIRST_ID = 10  # special ids of the sweep's checkpoints are smaller
_CHARACTERS = 0x3000  # vocabulary of models that read characters


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Result of the comparison.

    Attributes:
        outputs: Number of compared outputs, summed over rows.
        worst: Largest max|artifact - eager| / max|eager| of an output.
        failures: A sentence for each output of a row that differs.
    """

    outputs: int
    worst: float
    failures: tuple[str, ...]


def check_published(store: str, source: str, task: str, folder: Path, channel: str) -> Comparison:
    """Open a published conversion and compare it with its checkpoint; a child runs this.

    Args:
        store: URL of the store.
        source: Source of the conversion.
        task: Task of the conversion.
        folder: Folder of the checkpoint.
        channel: Channel to open.
    """
    import numpy as np
    import torch

    import tracefleet

    model = tracefleet.open(store, source, task=task, channel=channel)
    eager = _load_eager(folder, task, model.manifest)
    bound = _SLACK * model.manifest.validation.tolerance.rtol
    errors: list[float] = []
    failures = []
    for call in range(_CALLS):
        rng = np.random.default_rng([zlib.crc32(f"{folder.name}/{task}".encode()), call])
        rows = _draw_rows(model, eager.config, rng)
        got = _call_artifact(model, rows)
        with torch.no_grad():
            expected = [_run_eager(eager, row) for row in rows]
        for name in model.output_names:
            scale = max(_find_largest(outputs[name]) for outputs in expected)
            for index, outputs in enumerate(expected):
                error = _compute_error(got[name][index], outputs[name][0], scale)
                errors.append(error)
                if not error <= bound:  # NaN is a failure too
                    failures.append(f"call {call}, row {index}: {name} is off by {error:.3g}")
    failures += _check_golden(model)
    return Comparison(outputs=len(errors), worst=max(errors, default=0.0), failures=tuple(failures))


def _check_golden(model: Model) -> list[str]:
    """Run the conversion's golden samples, as consumers do; return what differs."""
    from tracefleet.check import OTHER, check

    if model.manifest.validation.samples is None:
        return []
    report = check(model)
    failures = []
    for one in report.outputs:
        if not one.ok:
            failures.append(f"golden {one.sample}: {one.output}: {one.reason or one.error}")
    for sample, result in report.tokenizer:
        if result == OTHER:
            failures.append(f"golden {sample}: tokenizer.json makes other ids of its text")
    return failures


def _load_eager(folder: Path, task: str, manifest: Manifest) -> Any:
    import torch
    from transformers import AutoConfig

    from tasks.model.heads import model_class

    # The class of the checkpoint's own config, with no setting of ours but the dtype.
    kind = model_class(AutoConfig.from_pretrained(folder), task)
    dtype = getattr(torch, manifest.variant.dtype)
    return kind.from_pretrained(folder, dtype=dtype).eval()


def _run_eager(eager: Any, row: Row) -> Any:
    # BigBird switches its attention for good after a short call: each row gets a fresh copy.
    return copy.deepcopy(eager)(**_make_arguments(eager, row))


def _draw_rows(model: Model, config: Any, rng: np.random.Generator) -> list[Row]:
    """Draw up to four rows, of any length where the model can be padded."""
    longest = max(model.lengths)
    padded = all(spec.pad_value is not None for spec in model.manifest.inputs)
    ragged = padded and "attention_mask" in model.input_names
    number = int(rng.integers(1, _MOST_ROWS + 1))
    shared = int(rng.integers(2, longest + 1)) if padded else int(rng.choice(model.lengths))
    sizes = {"length": shared, "decoder_length": shared}
    rows = []
    for _ in range(number):
        if ragged:
            sizes = {name: int(rng.integers(2, longest + 1)) for name in sizes}
        rows.append({s.name: _draw_values(s, sizes, config, rng) for s in model.manifest.inputs})
    return rows


def _draw_values(
    spec: InputSpec, sizes: dict[str, int], config: Any, rng: np.random.Generator
) -> Any:
    """Draw one input of one row."""
    import numpy as np

    shape: tuple[int, ...] = ()
    for axis in spec.axes[1:]:
        shape += (sizes[axis] if axis in sizes else int(axis),)
    text = config.get_text_config()
    if spec.name.endswith("input_ids"):
        ids = rng.integers(_FIRST_ID, getattr(text, "vocab_size", _CHARACTERS), shape)
        return _set_ends(spec.name, ids, config)
    if spec.name.endswith("attention_mask"):
        return np.ones(shape, dtype=np.int64)
    if spec.name == "bbox":
        corners = np.sort(rng.integers(0, 1000, (*shape[:-1], 2, 2)), axis=-2).reshape(shape)
        most = getattr(config, "max_2d_position_embeddings", None)
        if not most:  # BROS takes its boxes as fractions of the page
            return (corners / 1000).astype("float32")
        return corners // max(1, -(-1000 // most))
    if spec.dtype != "int64":
        return rng.standard_normal(shape).astype("float32")
    return rng.integers(0, 2, shape)


def _set_ends(name: str, ids: Any, config: Any) -> Any:
    """Put the end token where a tokenizer puts it, and the decoder's start token first."""
    if not getattr(config, "is_encoder_decoder", False):
        return ids
    end = getattr(config, "eos_token_id", None)
    if name.startswith("decoder_"):
        start = getattr(config, "decoder_start_token_id", None)
        ids[..., 0] = 0 if start is None else start
    elif isinstance(end, int):
        ids[..., -1] = end
    return ids


def _call_artifact(model: Model, rows: list[Row]) -> Any:
    """Call the artifact once with all rows, as nested lists where they differ in length."""
    import numpy as np

    feed: dict[str, Any] = {}
    for spec in model.manifest.inputs:
        values = [row[spec.name] for row in rows]
        if len({value.shape for value in values}) == 1:
            feed[spec.name] = np.stack(values)
        elif len(spec.axes) > 2:
            feed[spec.name] = _pad_and_stack(spec, values)
        elif not spec.name.endswith("attention_mask"):  # the reader makes it from the rows
            feed[spec.name] = [value.tolist() for value in values]
    return model(**feed)


def _pad_and_stack(spec: InputSpec, values: list[Any]) -> Any:
    """Pad rows of several axes as a consumer would; the reader takes no nested lists of these."""
    import numpy as np

    axis = (spec.length_axis or 1) - 1
    longest = max(value.shape[axis] for value in values)
    padded = []
    for value in values:
        widths = [(0, 0)] * value.ndim
        widths[axis] = (0, longest - value.shape[axis])
        padded.append(np.pad(value, widths, constant_values=spec.pad_value or 0))
    return np.stack(padded)


def _make_arguments(eager: Any, row: Row) -> dict[str, Any]:
    """Return one row's arguments for eager, without a cache, which no artifact has."""
    import numpy as np
    import torch

    feed: dict[str, Any] = {}
    for name, values in row.items():
        feed[name] = torch.from_numpy(np.ascontiguousarray(values))[None]
    if "use_cache" in inspect.signature(eager.forward).parameters:
        feed["use_cache"] = False
    return feed


def _find_largest(output: Any) -> float:
    finite = output[output.isfinite()].double()
    return float(finite.abs().max()) if finite.numel() else 0.0


def _compute_error(got: Any, expected: Any, scale: float) -> float:
    """Return the relative error of one row's output, cut to the row's own length."""
    import torch

    one, two = torch.as_tensor(got).double(), expected.double()
    if one.dim() != two.dim():
        return float("inf")
    for axis in range(two.dim()):
        if one.shape[axis] < two.shape[axis]:
            return float("inf")
        one = one.narrow(axis, 0, two.shape[axis])
    finite = two.isfinite()
    if not torch.equal(one.isfinite(), finite):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    error = float((one[finite] - two[finite]).abs().max())
    return error / scale if scale else error
