"""The independent comparison: an artifact as a consumer gets it against transformers as it comes.

Shares nothing with the gate but the manifest: the reader opens what was published, the checkpoint
is loaded by the auto class without any of our settings, inputs come from NumPy with seeds, lengths,
batches and patterns of their own, and every row is compared with an eager call of that row alone.
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
#: Beside the gate's tolerance: rows are computed alone here, with other kernels' rounding.
_SLACK = 10.0
_FIRST_ID = 10  # the sweep's checkpoints keep their special ids below
_CHARACTERS = 0x3000  # for models that read characters


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What came of the comparison.

    Attributes:
        outputs: how many outputs of how many rows were compared.
        worst: max|artifact - eager| / max|eager| over all of them.
        failures: one sentence for each output of a row that differs.
    """

    outputs: int
    worst: float
    failures: tuple[str, ...]


def check_published(store: str, source: str, task: str, folder: Path, channel: str) -> Checked:
    """Open a published conversion and compare it with its checkpoint; the job of one child.

    Args:
        store: URL of the store.
        source: of the conversion.
        task: of the conversion.
        folder: the checkpoint.
        channel: which conversion to open.
    """
    import numpy as np
    import torch

    import tracefleet

    model = tracefleet.open(store, source, task=task, channel=channel)
    eager = _eager(folder, task, model.manifest)
    bound = _SLACK * model.manifest.validation.tolerance.rtol
    worst, failures, compared = 0.0, [], 0
    for call in range(_CALLS):
        rng = np.random.default_rng([zlib.crc32(f"{folder.name}/{task}".encode()), call])
        rows = _rows(model, eager.config, rng)
        got = _outputs(model, rows)
        with torch.no_grad():
            wanted = [
                # BigBird's attention remembers a short call for good: each row gets a fresh copy.
                copy.deepcopy(eager)(**_asked(eager, row))
                for row in rows
            ]
        for name in model.output_names:
            scale = max(_largest(one[name]) for one in wanted)
            for index, one in enumerate(wanted):
                error = _error(got[name][index], one[name][0], scale)
                compared, worst = compared + 1, max(worst, error)
                if not error <= bound:
                    failures.append(f"call {call}, row {index}: {name} is off by {error:.3g}")
    return Checked(outputs=compared, worst=worst, failures=tuple(failures))


def _eager(folder: Path, task: str, manifest: Manifest) -> Any:
    import torch

    # The class of the checkpoint's own config, loaded with nothing but its dtype.
    from transformers import AutoConfig

    from tasks.model.heads import model_class

    kind = model_class(AutoConfig.from_pretrained(folder), task)
    dtype = getattr(torch, manifest.variant.dtype)
    return kind.from_pretrained(folder, dtype=dtype).eval()


def _rows(model: Model, config: Any, rng: np.random.Generator) -> list[Row]:
    """Draw up to four rows of lengths that no probe has; short, long and in between."""
    longest = max(model.lengths)
    padded = all(spec.pad_value is not None for spec in model.manifest.inputs)
    ragged = padded and "attention_mask" in model.input_names
    number = int(rng.integers(1, _MOST_ROWS + 1))
    shared = int(rng.integers(2, longest + 1)) if padded else int(rng.choice(model.lengths))
    rows = []
    for _ in range(number):
        tokens = int(rng.integers(2, longest + 1)) if ragged else shared
        decoder = int(rng.integers(2, longest + 1)) if ragged else shared
        sizes = {"length": tokens, "decoder_length": decoder}
        rows.append({s.name: _drawn(s, sizes, config, rng) for s in model.manifest.inputs})
    return rows


def _drawn(spec: InputSpec, sizes: dict[str, int], config: Any, rng: np.random.Generator) -> Any:
    import numpy as np

    shape = tuple(sizes[axis] if axis in sizes else int(axis) for axis in spec.axes[1:])
    text = config.get_text_config()
    if spec.name.endswith("input_ids"):
        ids = rng.integers(_FIRST_ID, getattr(text, "vocab_size", _CHARACTERS), shape)
        return _ended(spec.name, ids, config)
    if spec.name.endswith("attention_mask"):
        return np.ones(shape, dtype=np.int64)
    if spec.name == "bbox":
        corners = np.sort(rng.integers(0, 1000, (*shape[:-1], 2, 2)), axis=-2).reshape(shape)
        most = getattr(config, "max_2d_position_embeddings", None)
        return corners // max(1, -(-1000 // most)) if most else (corners / 1000).astype("float32")
    if spec.dtype != "int64":
        return rng.standard_normal(shape).astype("float32")
    return rng.integers(0, 2, shape)


def _ended(name: str, ids: Any, config: Any) -> Any:
    """The end token where a tokenizer puts it; the decoder's first token first."""
    if getattr(config, "is_encoder_decoder", False):
        if name.startswith("decoder_"):
            start = getattr(config, "decoder_start_token_id", None)
            ids[..., 0] = 0 if start is None else start
        elif isinstance(end := getattr(config, "eos_token_id", None), int):
            ids[..., -1] = end
    return ids


def _outputs(model: Model, rows: list[Row]) -> Any:
    """Call the artifact once with all rows: as nested lists where they differ in length."""
    import numpy as np

    feed: dict[str, Any] = {}
    for spec in model.manifest.inputs:
        values = [row[spec.name] for row in rows]
        even = len({value.shape for value in values}) == 1
        if even:
            feed[spec.name] = np.stack(values)
        elif len(spec.axes) > 2:
            feed[spec.name] = _stacked(spec, values)
        elif not spec.name.endswith("attention_mask"):  # the reader makes it from the rows
            feed[spec.name] = [value.tolist() for value in values]
    return model(**feed)


def _stacked(spec: InputSpec, values: list[Any]) -> Any:
    """Pad rows of more axes, which nested lists can't tell apart, as a consumer would."""
    import numpy as np

    axis = (spec.length_axis or 1) - 1
    longest = max(value.shape[axis] for value in values)
    padded = []
    for value in values:
        widths = [(0, 0)] * value.ndim
        widths[axis] = (0, longest - value.shape[axis])
        padded.append(np.pad(value, widths, constant_values=spec.pad_value or 0))
    return np.stack(padded)


def _asked(eager: Any, row: Row) -> dict[str, Any]:
    """Return one row's arguments, without a cache, which no artifact has."""
    import numpy as np
    import torch

    feed = {name: torch.from_numpy(np.ascontiguousarray(v))[None] for name, v in row.items()}
    cacheless = "use_cache" in inspect.signature(eager.forward).parameters
    return {**feed, "use_cache": False} if cacheless else feed


def _largest(output: Any) -> float:
    finite = output[output.isfinite()].double()
    return float(finite.abs().max()) if finite.numel() else 0.0


def _error(got: Any, expected: Any, scale: float) -> float:
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
