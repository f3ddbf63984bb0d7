"""Call the model that serves a bundle, from the model in front of it, in the same server.

`Bundle` runs rows as the reader's `Model` does, in groups of nearly the same length, so that its
results are the reader's. Triton's Python backend lends the module ``triton_python_backend_utils``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tracefleet.manifest import Manifest
from tracefleet.manifest_types import InputSpec
from tracefleet.reader import rows as ragged
from tracefleet.reader.left_padding import MASK
from tracefleet.reader.outputs import Outputs
from tracefleet.reader.rows import Group, Table
from tracefleet.text.tokenize import Row
from tracefleet.triton.config import MAX_ROWS


class ServerError(Exception):
    """The model behind did not answer."""


class Bundle:
    """A bundle that the same server serves under another name.

    Attributes:
        manifest: of its conversion.
    """

    def __init__(self, manifest: Manifest, name: str, version: int) -> None:
        self.manifest, self._name, self._version = manifest, name, version
        general = manifest.general
        self._budget = None if general is None else general.tokens

    def __call__(self, **named: Any) -> Outputs:
        """Return the outputs that have one value for each row, of all rows."""
        import numpy as np

        found = self._run(named, ragged.read_table(self.manifest, named))
        joined = {}
        for spec in self.manifest.outputs:
            if spec.length_axis is None:
                joined[spec.name] = np.stack([row[spec.name] for row in found])
        return Outputs(joined)

    def stream(self, rows: Iterable[Any], *, window: int) -> Iterator[Outputs]:
        """Yield each row's outputs, without batch axis and padding."""
        source = iter(rows)
        while taken := list(itertools.islice(source, window)):
            table = ragged.collect(self.manifest, taken)
            yield from map(Outputs, self._run(table, table))

    def _write(self, rows: list[Row], *, truncate: bool) -> list[str]:
        raise ServerError(f"{self._name}: expected a model that generates, got one that does not")

    def _run(self, named: Table, table: Table | None) -> list[dict[str, Any]]:
        """Return each row's outputs; rows of one length run together as they are."""
        if table is None:
            together = Group(rows=list(range(len(named["input_ids"]))), inputs=named)
            groups = [together]
        else:
            groups = list(ragged.group(self.manifest, table, tokens=self._budget))
        found: dict[int, dict[str, Any]] = {}
        names = [spec.name for spec in self.manifest.outputs]
        for group in itertools.chain.from_iterable(map(_part, groups)):
            for row, own in ragged.split(self.manifest, group, self._infer(group)):
                found[row] = dict(zip(names, own, strict=True))
        return [found[row] for row in sorted(found)]

    def _infer(self, group: Group) -> list[Any]:
        """Return the outputs of rows that run together, in the manifest's order."""
        import triton_python_backend_utils as triton

        arrays = arrange(self.manifest.inputs, group.inputs)
        given = [triton.Tensor(name, array) for name, array in arrays.items()]
        request = triton.InferenceRequest(
            model_name=self._name,
            model_version=self._version,
            requested_output_names=[spec.name for spec in self.manifest.outputs],
            inputs=given,
            preferred_memory=triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise ServerError(f"{self._name}: {response.error().message()}")
        return [self._read(triton, response, place) for place in range(len(self.manifest.outputs))]

    def _read(self, triton: Any, response: Any, place: int) -> Any:
        spec = self.manifest.outputs[place]
        array = triton.get_output_tensor_by_name(response, spec.name).as_numpy()
        # Triton wants an axis beside the rows', which an output of one number for a row lacks.
        return array.reshape(array.shape[: len(spec.axes)])


def arrange(specs: Sequence[InputSpec], inputs: Mapping[str, Sequence[Sequence[int]]]) -> Any:
    """Return an array for each input, padded on the right to the longest row, by name.

    Args:
        specs: the bundle's inputs, each of shape ``(batch, length)``.
        inputs: rows of the inputs that a tokenizer makes.
    """
    import numpy as np

    sizes = [len(row) for row in inputs["input_ids"]]
    shape, arrays = (len(sizes), max(sizes)), {}
    for spec in specs:
        fill = spec.pad_value if spec.name in inputs else spec.fill_value
        array = np.full(shape, fill or 0, dtype=spec.dtype)
        if spec.name == MASK:
            array[...] = np.arange(shape[1]) < np.array(sizes)[:, None]
        for place, row in enumerate(inputs.get(spec.name, ())):
            array[place, : len(row)] = row
        arrays[spec.name] = array
    return arrays


def _part(group: Group) -> Iterator[Group]:
    """Yield a group in parts of as many rows as the server takes at a time."""
    for start in range(0, len(group.rows), MAX_ROWS):
        part = slice(start, start + MAX_ROWS)
        inputs = {name: rows[part] for name, rows in group.inputs.items()}
        yield Group(rows=group.rows[part], inputs=inputs)
