"""The model that a consumer calls with ids and gets named outputs from.

``tracefleet.open`` returns it. The bundle itself routes, pads and slices; this module only converts
between the caller's types and tensors.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracefleet.devices import CPU
from tracefleet.errors import ArtifactError, ManifestError, StoreError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import FileEntry
from tracefleet.reader import rows as ragged
from tracefleet.reader.answering import Answering
from tracefleet.reader.general import BUDGET
from tracefleet.reader.generate import Generating
from tracefleet.reader.inputs import arrange
from tracefleet.reader.left_padding import refuse_left_padded
from tracefleet.reader.outputs import Outputs, Run
from tracefleet.reader.placing import Proof, wait_for
from tracefleet.reader.rows import Table
from tracefleet.reader.texts import Texts

if TYPE_CHECKING:
    import torch


class Model(Generating, Answering):
    """An opened conversion. Never train it: weights that were tied are independent copies.

    Attributes:
        manifest: description of the conversion.
        device: device that it runs on.
        proved: whether the gate was run on such a device.
        distance: how far eager on such a device is from eager on the CPU, relative to the largest
            value, as the gate measured it there; 0 on the CPU.
        on_run: called with each `Run` of the bundle, for metrics; it costs the count of tokens.
    """

    def __init__(
        self,
        manifest: Manifest,
        module: torch.jit.ScriptModule,
        programs: Sequence[torch.jit.ScriptModule] = (),
        *,
        device: str = CPU,
        proof: Proof | None = None,
        read: Callable[[FileEntry], bytes] | None = None,
    ) -> None:
        proof = proof or Proof()
        self.manifest, self.device = manifest, device
        self.proved, self.distance = proof.found, proof.distance
        self._read, self._texts = read, Texts(manifest, read)
        self.on_run: Callable[[Run], None] | None = None
        self._module = module
        self._programs = programs

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the bundle's inputs, in its order."""
        return tuple(spec.name for spec in self.manifest.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(spec.name for spec in self.manifest.outputs)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        # A bool and two texts; Any, as callers unpack dicts of tensors beside them.
        truncate: Any = False,
        prompt: Any = None,
        prompt_name: Any = None,
        **named: Any,
    ) -> Outputs:
        """Run the model on any number of rows of any length up to the largest standard length.

        Args:
            input_ids: a text, a tuple of two texts (a pair), or a list of texts or of pairs; what a
                tokenizer returned; or integers of shape ``(batch, length)`` (``(batch, choices,
                length)`` for multiple choice), or ``(length,)`` for one row, whose outputs keep a
                batch axis of 1. A NumPy array, a torch tensor, or nested lists whose rows may
                differ in length: shorter rows are padded on the right and masked. Leave it out for
                models of images and sound, whose inputs are ``pixel_values`` and the like.
            attention_mask: 1 for tokens to attend to, 0 for padding, in the shape of
                ``input_ids``. Left out: the model attends to every token of an array, pad ids
                included.
            truncate: whether texts are cut to the largest standard length.
            prompt: put before each text; left out: the checkpoint's default one, if it has one.
            prompt_name: name of one of the checkpoint's prompts.
            named: the model's other inputs, see ``input_names``. An input that is left out gets the
                value that the model itself assumes.

        Rows of unequal length in nested lists are run in groups of nearly the same length, which
        takes a fraction of the time of one padded call; results come in the order of the rows, and
        outputs that have one value for each token end in zeros where a row is shorter.

        Returns:
            Torch tensors on the model's device if any input is one, otherwise NumPy arrays. NumPy
            has no bfloat16: such outputs are float32.

        Raises:
            InputTooLongError: more tokens than the largest standard length.
            TextRefusedError: texts that this conversion can't take.
            ValueError: an input is unknown, missing, empty, of a wrong type or shape, an id is
                outside the vocabulary, or a row is padded where that changes its result.
        """
        import torch

        given = {"input_ids": input_ids, "attention_mask": attention_mask, **named}
        if isinstance(input_ids, Mapping):
            given |= input_ids
        options = {"truncate": truncate, "prompt": prompt, "prompt_name": prompt_name}
        given = self._read_texts(given, options)
        table = ragged.read_table(self.manifest, given)
        if table is not None:
            results = [(group, self._call_group(group)) for group in self._group(table)]
            return self._name(map(_to_numpy, ragged.join(self.manifest, table, results)))
        outputs = self._call(given)
        if any(isinstance(value, torch.Tensor) for value in given.values()):
            return self._name(outputs)
        return self._name(map(_to_numpy, outputs))

    def stream(self, rows: Iterable[Any], *, window: int = 1024) -> Iterator[Outputs]:
        """Run any number of rows in bounded memory; yield each row's results in order.

        So many rows at a time are read ahead, sorted by length and run in groups.

        Args:
            rows: ids of one row each, or a mapping of input names to one row's ids.
            window: how many rows are read ahead, and held with their results.

        Yields:
            Results of one row as NumPy arrays, without batch axis and padding.

        Raises:
            InputTooLongError: a row has more tokens than the largest standard length.
            ValueError: a row is empty, holds no whole numbers, or lacks what others have.
        """
        if window < 1:
            raise ValueError(f"window: expected at least 1 row, got {window}")
        source, first = iter(rows), 0
        while taken := list(itertools.islice(source, window)):
            yield from self._run_window(ragged.collect(self.manifest, taken, first=first))
            first += len(taken)

    def _run_window(self, table: Table) -> list[Outputs]:
        found: dict[int, Outputs] = {}
        for group in self._group(table):
            outputs = self._call_group(group)
            for row, own in ragged.split(self.manifest, group, outputs):
                found[row] = self._name(map(_to_numpy, own))
        return [found[row] for row in sorted(found)]

    def _group(self, table: Table) -> Iterator[ragged.Group]:
        return ragged.group(self.manifest, table, tokens=getattr(self._module, BUDGET, None))

    def _call_group(self, group: ragged.Group) -> list[torch.Tensor]:
        # Once for all rows: each copy from a device waits for it.
        return [output.cpu() for output in self._call(group.inputs)]

    def _call(self, given: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        manifest = self.manifest
        tensors = arrange(manifest.inputs, self.lengths, given, manifest.general)
        refuse_left_padded(manifest, tensors)
        if self.on_run is None:
            return self._run("forward", tensors)
        started = time.perf_counter()
        outputs = self._run("forward", tensors)
        wait_for(self.device)
        seconds = time.perf_counter() - started
        self.on_run(ragged.describe_run(manifest, tensors, seconds))
        return outputs

    def _name(self, tensors: Iterable[Any]) -> Outputs:
        return Outputs(dict(zip(self.output_names, tensors, strict=True)))

    def forward(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Run the bundle on tensors as they are, in the order of ``input_names``; for checks."""
        return self._run("forward", list(tensors))

    def read(self, file: FileEntry) -> bytes:
        """Return the checked bytes of one of the conversion's files, from its store.

        Raises:
            DigestMismatchError: they are not those that were published.
            StoreError: they can't be read.
        """
        if self._read is None:
            raise StoreError(f"{file.path}: this model was not opened from a store")
        return self._read(file)

    def exact(self, length: int, *tensors: torch.Tensor) -> Outputs:
        """Run the graph of one standard length directly, without routing or padding.

        Args:
            length: a standard length.
            tensors: every input in the order of ``input_names``, of exactly the traced batch,
                length and dtype.

        Raises:
            ValueError: no such standard length, or a tensor is missing or of another shape.
        """
        if length not in self.lengths:
            raise ValueError(f"length: expected one of {self.lengths}, got {length}")
        batch = self.manifest.variant.batch
        if len(tensors) != len(self.input_names):
            raise ValueError(
                f"expected {len(self.input_names)} tensors, one for each of "
                f"{self.input_names}, got {len(tensors)}"
            )
        for spec, tensor in zip(self.manifest.inputs, tensors, strict=True):
            expected = spec.shape(batch=batch, length=length)
            if tuple(tensor.shape) != expected:
                raise ValueError(
                    f"{spec.name}: expected shape {expected}, got {tuple(tensor.shape)}; call the "
                    "model itself for other shapes"
                )
        return self._name(self._run(f"forward_{length}", list(tensors)))

    def replace_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace a Neuron conversion's weights in place, without compiling again.

        Only for conversions whose weights are separate from their programs. The manifest's verdict
        holds for the published weights: nothing validates these.

        Args:
            weights: by their names in the checkpoint's model, of the same shapes and dtypes.

        Raises:
            ArtifactError: this conversion's weights are part of its programs.
            KeyError: the model has no weight of that name.
            RuntimeError: a weight has another shape.
        """
        from tracefleet.reader import neuron

        if self.manifest.options.get("neuronx.separate_weights") != "true":
            raise ArtifactError(
                f"{self.manifest.source}: expected weights that are separate from the programs, "
                "got weights inside them. Convert with the option separate_weights of neuronx."
            )
        neuron.replace_weights(self._programs, weights)

    def _run(self, method: str, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        import torch

        # Not inference_mode: callers may train a head on these outputs. Not torch's profiling
        # executor: it spends seconds on the first two calls, and again on each new shape.
        tensors = [tensor.to(self.device) for tensor in tensors]
        with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            try:
                returned: tuple[torch.Tensor, ...] = getattr(self._module, method)(*tensors)
            except RuntimeError as error:
                if "index out of range" not in str(error):
                    raise
                raise ValueError(
                    f"input_ids: an id is outside the model's vocabulary (largest given: "
                    f"{int(tensors[0].max())}). Use the tokenizer of {self.manifest.source}."
                ) from error
        if len(returned) != len(self.output_names):
            raise ManifestError(
                f"manifest: {len(self.output_names)} outputs expected, the bundle returned "
                f"{len(returned)}. Convert the checkpoint again."
            )
        return returned


def _to_numpy(tensor: torch.Tensor) -> Any:
    import torch

    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor.cpu().numpy()
