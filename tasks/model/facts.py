"""Options and facts of a checkpoint, known before its weights are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from dataclasses import dataclass

from tasks.model.arguments import Argument
from tasks.model.vocabulary import Vocabulary
from tracefleet.manifest_types import INT8, LENGTH_AXES


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a checkpoint may be read.

    Attributes:
        task: Hugging Face task name.
        dtype: Type of the weights in the artifact; ``int8``: of its linear layers' weights.
        allow_pickle: Whether pickled weights may be read (with ``weights_only=True``).
        trust_remote_code: Whether Python files of the checkpoint may run.
    """

    task: str
    dtype: str = "float32"
    allow_pickle: bool = False
    trust_remote_code: bool = False

    @property
    def loaded_dtype(self) -> str:
        """Type in which the checkpoint is loaded, before ``tasks.model.quantise``."""
        return "float32" if self.dtype == INT8 else self.dtype


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Facts of a model from its config, without its weights.

    Attributes:
        architecture: Name of the class that the task needs.
        model_type: Model type of the config.
        arguments: Tensors of ``forward``, in the order of its signature.
        max_length: Most tokens that the positions allow; None where positions are relative.
        vocabulary: Token ids for example inputs.
    """

    architecture: str
    model_type: str
    arguments: tuple[Argument, ...]
    max_length: int | None
    vocabulary: Vocabulary

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arguments."""
        return tuple(one.name for one in self.arguments)

    @property
    def takes_padding(self) -> bool:
        """Whether inputs may be filled up to a standard length."""
        return all(one.pad is not None for one in self.arguments)

    @property
    def varies_in_length(self) -> bool:
        """Whether an input has as many positions as a text or sound has."""
        return any(axis in LENGTH_AXES for one in self.arguments for axis in one.axes)

    def requiring(self, names: Container[str]) -> ModelFacts:
        """Return the facts of a model whose callers have to give these inputs."""
        arguments = []
        for one in self.arguments:
            fill = None if one.name in names else one.fill
            arguments.append(dataclasses.replace(one, fill=fill))
        return dataclasses.replace(self, arguments=tuple(arguments))

    def without_padding(self) -> ModelFacts:
        """Return the facts of a bundle that takes exact standard lengths and pads nothing."""
        arguments = tuple(dataclasses.replace(one, pad=None) for one in self.arguments)
        return dataclasses.replace(self, arguments=arguments)
