"""The two compilers' flags, right-most first, and what their casts mean."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from neuron_double import settings

TARGETS = ("inf2", "trn1", "trn1n", "trn2")
_CHOICES = {
    "--target": TARGETS,
    "--model-type": ("generic", "transformer", "unet-inference"),
    "--auto-cast": ("none", "matmult", "all"),
    "--auto-cast-type": ("bf16", "fp16", "tf32", "fp8_e4m3"),
    "--optlevel": ("1", "2", "3"),
    "--logical-nc-config": ("1", "2"),
    "--native-int64": ("enabled", "disabled"),
    "--implicit-integer-downcast": ("all", "none"),
}
_SHORT = {"-O": "--optlevel", "-lnc": "--logical-nc-config"}
_SWITCHES = (
    "--enable-saturate-infinity",
    "--enable-fast-loading-neuron-binaries",
    "--enable-fast-context-switch",
)
_FAST_MATH = {
    "all": ("all", "bf16"),
    "none": ("matmult", "bf16"),  # an Inf1 matmul is never float32
    "fp32-cast-all": ("all", "bf16"),
    "fp32-cast-all-bf16": ("all", "bf16"),
    "fp32-cast-all-fp16": ("all", "fp16"),
    "fp32-cast-matmult": ("matmult", "bf16"),
    "fp32-cast-matmult-bf16": ("matmult", "bf16"),
    "fp32-cast-matmult-fp16": ("matmult", "fp16"),
}
_LAYOUT = ("no-fast-relayout", "fast-relayout")


class BadFlagError(ValueError):
    """The compiler does not know a flag or a value."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What matters to the double of a compiler call.

    Attributes:
        target: instance family; empty: not given.
        cast: which operators are cast: none, matmult or all.
        cast_type: bf16, fp16, tf32 or fp8_e4m3.
        line: the flags as they were given.
    """

    target: str
    cast: str
    cast_type: str
    line: str


def neuronx_flags(given: str | list[str] | None) -> Flags:
    """Read ``compiler_args`` of torch_neuronx.

    Raises:
        BadFlagError: an unknown flag, or a value that its flag doesn't take.
    """
    words = shlex.split(given) if isinstance(given, str) else list(given or [])
    found: dict[str, str] = {}
    queue = [part for word in words for part in _split(word)]
    while queue:
        flag = queue.pop(0)
        if flag in _SWITCHES:
            continue
        flag = _SHORT.get(flag, flag)
        if flag not in _CHOICES or not queue or queue[0] not in _CHOICES[flag]:
            raise BadFlagError(f"[NCC_EARG001] {flag} {queue[0] if queue else ''}")
        found[flag] = queue.pop(0)
    cast = found.get("--auto-cast", settings.current().auto_cast)
    return Flags(
        target=found.get("--target", ""),
        cast=cast,
        cast_type=found.get("--auto-cast-type", "bf16"),
        line=shlex.join(words),
    )


def _split(word: str) -> list[str]:
    """``--optlevel=2`` and ``-O2`` are two words each."""
    if word.startswith("-O") and len(word) > 2:
        return ["-O", word[2:].lstrip("=")]
    return word.split("=", 1) if word.startswith("-") else [word]


def neuron_flags(given: list[str] | None) -> Flags:
    """Read ``compiler_args`` of torch_neuron; only ``--fast-math`` matters.

    Raises:
        BadFlagError: a fast-math value that neuron-cc doesn't take.
    """
    words = list(given or [])
    cast = _FAST_MATH["all"]
    if "--fast-math" in words:
        for value in words[words.index("--fast-math") + 1 :]:
            if value.startswith("-"):
                break
            if value not in _FAST_MATH and value not in _LAYOUT:
                raise BadFlagError(f"argument --fast-math: invalid choice: '{value}'")
            cast = _FAST_MATH.get(value, cast)
    return Flags(target="inf1", cast=cast[0], cast_type=cast[1], line=shlex.join(words))
