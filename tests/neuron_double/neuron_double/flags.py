"""The two compilers' flags, right-most first, and what their casts mean."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from neuron_double import settings

TARGETS = ("inf2", "trn1", "trn1n", "trn2", "trn3")
_CHOICES = {
    "--target": TARGETS,
    "--model-type": ("generic", "transformer", "unet-inference"),
    "--auto-cast": ("none", "matmult", "all"),
    "--auto-cast-type": ("bf16", "fp16", "tf32", "fp8_e4m3"),
    "--optlevel": ("1", "2", "3"),
    "--logical-nc-config": ("1", "2"),
    "--native-int64": ("enabled", "disabled", "default"),
    "--implicit-integer-downcast": ("all", "none", "default"),
}
#: What --implicit-integer-downcast takes besides, also several (error codes EVRF035, EVRF060-063).
_DOWNCASTS = ("all_reduce", "dot", "pow", "reduce_scatter", "scatter")
#: New in this compiler (its release notes); for newer cores alone (the CLI reference).
_INTEGER_FLAGS, _INTEGER_SINCE = ("--native-int64", "--implicit-integer-downcast"), (2, 27, 5334)
_NEWER = ("trn2", "trn3")
_SHORT = {"-O": "--optlevel", "-lnc": "--logical-nc-config"}
#: They take any value.
_FREE = ("--logfile",)
_SWITCHES = (
    "--enable-saturate-infinity",
    "--enable-fast-loading-neuron-binaries",
    "--enable-fast-context-switch",
)
_FAST_MATH = {
    "all": ("all", "bf16"),
    "none": ("matmult", "bf16"),  # an Inf1 matmul is never float32
    "fp32-cast-all": ("all", "bf16"),
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
        _check_known(flag)
        if not queue or not _takes(flag, queue[0]):
            raise BadFlagError(f"argument {flag}: invalid choice: {queue[0] if queue else ''!r}")
        found[flag] = queue.pop(0)
    _check_cores(found)
    cast = found.get("--auto-cast", settings.current().auto_cast)
    return Flags(
        target=found.get("--target", ""),
        cast=cast,
        cast_type=found.get("--auto-cast-type", "bf16"),
        line=shlex.join(words),
    )


def _check_known(flag: str) -> None:
    here = settings.current().compiler or settings.NEURONX_CC
    old = tuple(int(part) for part in here.split(".")[:3]) < _INTEGER_SINCE
    if flag not in (*_CHOICES, *_FREE) or (old and flag in _INTEGER_FLAGS):
        raise BadFlagError(f"neuronx-cc: error: unrecognized arguments: {flag}")


def _takes(flag: str, value: str) -> bool:
    if flag == "--implicit-integer-downcast" and set(value.split(",")) <= set(_DOWNCASTS):
        return True
    return flag in _FREE or value in _CHOICES[flag]


def _check_cores(found: dict[str, str]) -> None:
    """Refuse what the target's cores don't have."""
    if found.get("--target") in (None, *_NEWER):
        return
    if "--native-int64" in found:
        raise BadFlagError("--native-int64 is only available on trn2 and later")
    if found.get("--logical-nc-config", "1") != "1":
        raise BadFlagError("[NCC_EARG001] Unsupported LNC configuration")


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
