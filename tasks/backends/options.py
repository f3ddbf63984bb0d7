"""Typed options of a Neuron compilation, with AWS's advice as defaults.

Every flag that changes numbers or shapes is passed, also where it is the compiler's own default:
defaults moved between releases (``--auto-cast`` in 2025, the int64 flags after SDK 2.32). A flag
that older compilers lack is passed to newer ones alone. Sources: the CLI references of neuronx-cc
and neuron-cc, the compiler's release notes, AWS's notes on data types and on mixed precision.
"""

from __future__ import annotations

import shlex
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tracefleet.verdict_types import Tolerance

#: Bounds for a cast of float32 operands; none was measured on a device yet. With operands
#: rounded on a CPU (the tests' double; BERT, DistilBERT and RoBERTa for three tasks, every probe)
#: the largest error was 7.1e-3 for fp16 and tf32, 5.3e-2 for bf16, medians 1.1e-3 and 1.5e-2;
#: faults start at 0.1 (docs/gate.md). Without a cast operators still differ from a CPU's (tables
#: for exp and tanh, other orders of summation): optimum-neuron accepts 1e-3 for nearly all models.
CAST_TOLERANCES = {
    "none": Tolerance(atol=0.0, rtol=1e-3),
    "bf16": Tolerance(atol=0.0, rtol=8e-2),
    "fp16": Tolerance(atol=0.0, rtol=1.5e-2),
    "tf32": Tolerance(atol=0.0, rtol=1.5e-2),
}
Target = Literal["inf2", "trn1", "trn1n", "trn2", "trn3"]
#: Targets whose cores compute in int64 and can be joined in pairs (NeuronCore v3 and later).
_NEWER = ("trn2", "trn3")
#: The first neuronx-cc with the integer flags (release notes: "two new flags", SDK 2.32); AWS's own
#: images with torch_neuronx have 2.26, which ends with "unrecognized arguments".
_INTEGER_FLAGS = (2, 27, 5334)


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def _identity(self, backend: str, args: list[str], without: set[str]) -> dict[str, str]:
        chosen = self.model_dump(mode="json", exclude=without)
        named = {f"{backend}.{name}": _format(value) for name, value in chosen.items()}
        return {**named, f"{backend}.compiler_args": shlex.join(args)}


class NeuronxOptions(_Options):
    """Options of torch_neuronx, for Inf2 and Trn."""

    target: Target = Field(default="inf2", description="Instance family that runs the artifact.")
    auto_cast: Literal["none", "matmult", "all"] = Field(
        default="none", description="Which float32 operators are computed in auto_cast_type."
    )
    auto_cast_type: Literal["bf16", "fp16", "tf32"] = Field(
        default="bf16", description="What auto_cast computes in."
    )
    optlevel: int = Field(
        default=2, ge=1, le=3, description="1 compiles fastest, 3 takes longest and runs fastest."
    )
    model_type: Literal["generic", "transformer", "unet-inference"] = Field(
        default="transformer", description="Which optimisations the compiler tries."
    )
    separate_weights: bool = Field(
        default=False, description="Keep weights out of the program, so that they can be replaced."
    )
    dynamic_batch: bool = Field(
        default=False, description="Let each program take any number of rows, batch by batch."
    )
    analyze: bool = Field(
        default=False,
        description="Compile operator by operator first, to name what is not supported: slow.",
    )

    lnc: int | None = Field(
        default=None,
        ge=1,
        le=2,
        description="Physical cores in a logical one, on Trn2 and Trn3; none: 2.",
    )

    @model_validator(mode="after")
    def _refuse_both(self) -> NeuronxOptions:
        if self.separate_weights and self.dynamic_batch:
            raise ValueError(
                "expected separate_weights or dynamic_batch, got both, which torch_neuronx can't "
                "combine. A batch larger than one does not need dynamic_batch: rows are split."
            )
        if self.lnc is not None and self.target not in _NEWER:
            raise ValueError(
                f"lnc: expected none for target {self.target}, got {self.lnc}; cores are joined on "
                f"{' and '.join(_NEWER)} alone."
            )
        return self

    @property
    def compiler_args(self) -> list[str]:
        """Flags that every version of neuronx-cc takes."""
        flags = {
            "--target": self.target,
            "--model-type": self.model_type,
            "--auto-cast": self.auto_cast,
            "--auto-cast-type": self.auto_cast_type,
            "--optlevel": str(self.optlevel),
        }
        if self.target in _NEWER:
            flags["--logical-nc-config"] = str(self.lnc or 2)
        return [word for flag in flags.items() for word in flag]

    def compiler_args_for(self, compiler: tuple[int, ...]) -> list[str]:
        """Return the flags for one version of neuronx-cc: a function of it and of the identity.

        Args:
            compiler: Its version's numbers.
        """
        # Ids fit int32; the next compiler's default refuses what it can't compute in int64.
        downcast = ["--implicit-integer-downcast", "all"] if compiler >= _INTEGER_FLAGS else []
        # The CLI reference has it for trn2 and later alone.
        native = ["--native-int64", "disabled"] if downcast and self.target in _NEWER else []
        return [*self.compiler_args, *downcast, *native]

    @property
    def identity(self) -> dict[str, str]:
        """Options that are part of a conversion's key."""
        # An option of new targets alone leaves the other keys as they were.
        without = {"analyze"} if self.lnc else {"analyze", "lnc"}
        return self._identity("neuronx", self.compiler_args, without)

    @property
    def tolerance(self) -> Tolerance:
        """Bound on differences for the cast."""
        return CAST_TOLERANCES["none" if self.auto_cast == "none" else self.auto_cast_type]


class NeuronOptions(_Options):
    """Options of torch_neuron, for Inf1 (archived by AWS)."""

    fast_math: Literal[
        "fp32-cast-matmult-fp16",
        "fp32-cast-matmult-bf16",
        "fp32-cast-matmult",
        "fp32-cast-all-fp16",
        "fp32-cast-all",
        "none",
    ] = Field(
        default="fp32-cast-matmult-fp16",
        description="What float32 is computed in; an Inf1 matmul is never float32 itself.",
    )
    fallback: bool = Field(
        default=True, description="Run unsupported operators on the host's CPU, or refuse them."
    )
    min_coverage: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Least share of costly operators on the device; a model with less is refused.",
    )
    separate_weights: bool | None = Field(
        default=None,
        description="Keep weights out of the program; none: where they are over 1.9 GB.",
    )
    dynamic_batch: bool = Field(
        default=False, description="Let each program take any number of rows, batch by batch."
    )

    @property
    def compiler_args(self) -> list[str]:
        """Flags of neuron-cc."""
        if self.fast_math == "none":  # refuses company: it turns the layout's change off too
            return ["--fast-math", "none"]
        # The layout flag is AWS's advice for accuracy (aws-neuron-sdk #765).
        return ["--fast-math", self.fast_math, "no-fast-relayout"]

    @property
    def identity(self) -> dict[str, str]:
        """Options that are part of a conversion's key."""
        return self._identity("neuron", self.compiler_args, set())

    @property
    def tolerance(self) -> Tolerance:
        """Bound on differences for the cast."""
        # Without a type casts are to bf16; without a cast a matmul is too (aws-neuron-sdk #765).
        return CAST_TOLERANCES["fp16" if self.fast_math.endswith("-fp16") else "bf16"]


Options = NeuronxOptions | NeuronOptions


def _format(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
