"""The model that a consumer calls with ids and gets named outputs from.

``tracefleet.open`` returns it. The bundle itself routes, pads and slices; this module only converts
between the caller's types and tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from tracefleet.errors import ArtifactError, ManifestError
from tracefleet.manifest import Manifest
from tracefleet.reader.inputs import arrange

if TYPE_CHECKING:
    import torch


class Outputs(Mapping[str, Any]):
    """Named results of one call: ``out["logits"]``, ``out.logits`` and ``out[0]`` are the same.

    A read-only mapping in the order of the manifest. A name that is also a method of mappings
    (``keys``, ``values``, ``items``, ``get``) is reached by key only.
    """

    __slots__ = ("_named",)
    _named: dict[str, Any]

    def __init__(self, named: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_named", dict(named))

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, int):
            return list(self._named.values())[key]
        try:
            return self._named[key]
        except KeyError:
            raise KeyError(f"expected one of {list(self._named)}, got {key!r}") from None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._named:
            raise AttributeError(f"no output {name!r}; expected one of {list(self._named)}")
        return self._named[name]

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"outputs are read-only; can't set {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    # Two sets of arrays have no single truth value to compare by.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[type[Outputs], tuple[dict[str, Any]]]:
        return Outputs, (self._named,)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {tuple(value.shape)}" for name, value in self.items())
        return f"Outputs({shapes})"


class Model:
    """An opened conversion. Never train it: weights that were tied are independent copies.

    Attributes:
        manifest: description of the conversion.
    """

    def __init__(
        self,
        manifest: Manifest,
        module: torch.jit.ScriptModule,
        programs: Mapping[int, torch.jit.ScriptModule] | None = None,
    ) -> None:
        self.manifest = manifest
        self._module = module
        self._programs = programs or {}

    @property
    def lengths(self) -> tuple[int, ...]:
        """The standard lengths, ascending, in tokens."""
        return self.manifest.lengths

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the bundle's inputs, in its order."""
        return tuple(spec.name for spec in self.manifest.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(spec.name for spec in self.manifest.outputs)

    def __call__(self, input_ids: Any = None, attention_mask: Any = None, **named: Any) -> Outputs:
        """Run the model on any number of rows of any length up to the largest standard length.

        Args:
            input_ids: integers of shape ``(batch, length)`` (``(batch, choices, length)`` for
                multiple choice), or ``(length,)`` for one row, whose outputs keep a batch axis of
                1. A NumPy array, a torch tensor, or nested lists whose rows may differ in length:
                shorter rows are padded on the right and masked. Leave it out for models of images
                and sound, whose inputs are ``pixel_values`` and the like.
            attention_mask: 1 for tokens to attend to, 0 for padding, in the shape of
                ``input_ids``. Left out: the model attends to every token of an array, pad ids
                included.
            named: the model's other inputs, see ``input_names``. An input that is left out gets the
                value that the model itself assumes.

        Returns:
            Torch tensors if any input is one, otherwise NumPy arrays. NumPy has no bfloat16: such
            outputs are float32.

        Raises:
            InputTooLongError: more tokens than the largest standard length.
            ValueError: an input is unknown, missing, empty, of a wrong type or shape, or an id is
                outside the vocabulary.
        """
        import torch

        given = {"input_ids": input_ids, "attention_mask": attention_mask, **named}
        tensors = arrange(self.manifest.inputs, self.lengths, given)
        outputs = self._run("forward", tensors)
        if any(isinstance(value, torch.Tensor) for value in given.values()):
            return outputs
        return Outputs({name: _to_numpy(tensor) for name, tensor in outputs.items()})

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
        return self._run(f"forward_{length}", list(tensors))

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

    def _run(self, method: str, tensors: list[torch.Tensor]) -> Outputs:
        import torch

        # Not inference_mode: callers may train a head on these outputs.
        with torch.no_grad():
            try:
                returned = getattr(self._module, method)(*tensors)
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
        return Outputs(dict(zip(self.output_names, returned, strict=True)))


def _to_numpy(tensor: torch.Tensor) -> Any:
    import torch

    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor.numpy()
