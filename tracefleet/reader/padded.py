"""The search of Neuron's programs: an encoder and a decoder of fixed shapes, without caches.

A device's program takes the shapes that it was compiled for, so a step can't take a growing cache.
As in AWS's tutorial of MarianMT on Inf1, the decoder gets all ids of an answer so far, padded to a
standard length, and returns the logits at one position. The search around it is a bundle's own
(``tracefleet.reader.search_script``): here the ids are what it keeps, grows and reorders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracefleet.decoding import read_constants
from tracefleet.generation_types import Generation
from tracefleet.program_files import DECODE, ENCODE, SEARCH
from tracefleet.reader.script import returns_tensor
from tracefleet.reader.search_script import search_source

if TYPE_CHECKING:
    import torch

_ENCODE = """
def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    rows, missing = input_ids.size(0), self._fit(input_ids.size(1)) - input_ids.size(1)
    ids = torch.constant_pad_nd(input_ids, [0, missing], {pad})
    mask = torch.constant_pad_nd(attention_mask, [0, missing], 0)
    parts: List[Tensor] = []
    for start in range(0, rows, {batch}):
        places = torch.arange(start, start + {batch}).clamp(max=rows - 1)
        part = self._encode(ids.index_select(0, places), mask.index_select(0, places))
        parts.append(part.narrow(0, 0, min({batch}, rows - start)))
    return torch.cat(parts, 0)
"""
_PREFILL = """
def prefill(self, hidden: Tensor, attention_mask: Tensor,
            ids: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    own = ids.reshape(ids.size(0), 1, 1, 1)
    logits = self._decode_at(attention_mask, torch.tensor(0), own, hidden)
    return (logits, own, hidden)
"""
_STEP = """
def step(self, attention_mask: Tensor, ids: Tensor, position: Tensor,
         own: List[Tensor], cross: List[Tensor]) -> Tensor:
    own[0].index_copy_(2, position.reshape(1), ids.reshape(ids.size(0), 1, 1, 1))
    return self._decode_at(attention_mask, position, own[0], cross[0])
"""
_DECODE_AT = """
def _decode_at(self, attention_mask: Tensor, position: Tensor, own: Tensor,
               hidden: Tensor) -> Tensor:
    rows, tokens, source = own.size(0), own.size(2), hidden.size(1)
    standard = self._fit(max(tokens, source))
    ids = torch.constant_pad_nd(own.reshape(rows, tokens), [0, standard - tokens], {pad})
    mask = torch.constant_pad_nd(attention_mask, [0, standard - attention_mask.size(1)], 0)
    hidden = torch.constant_pad_nd(hidden, [0, 0, 0, standard - source], 0.0)
    parts: List[Tensor] = []
    for start in range(0, rows, {decoded}):
        places = torch.arange(start, start + {decoded}).clamp(max=rows - 1)
        part = self._decode(ids.index_select(0, places), mask.index_select(0, places),
                            hidden.index_select(0, places), position.reshape(1))
        parts.append(part.narrow(0, 0, min({decoded}, rows - start)))
    return torch.cat(parts, 0)
"""
#: Arguments of each part's program; ids and mask have the standard length on their second axis.
_ARGUMENTS = {ENCODE: ("ids", "mask"), DECODE: ("ids", "mask", "hidden", "position")}


@dataclass(frozen=True, kw_only=True)
class PaddedSearch:
    """What a module gets to generate with programs of fixed shapes.

    Attributes:
        modules: programs by the name under which the module holds them.
        sources: TorchScript of its methods, in order.
    """

    modules: dict[str, torch.jit.ScriptModule]
    sources: tuple[str, ...]


def write_search(
    programs: Mapping[str, Mapping[int, torch.jit.ScriptModule]],
    generation: Generation,
    batch: int,
) -> PaddedSearch:
    """Write the search over the programs of ``encode`` and ``decode``.

    The methods are those of a bundle that generates, and take the same arguments: ``own`` of
    ``step`` is one tensor of ids ``(rows, 1, tokens, 1)``, ``cross`` the encoder's hidden states.

    Args:
        programs: part -> standard length, ascending -> program.
        generation: constants of the search.
        batch: rows in one call of the encoder; the decoder takes each as often as there are beams.

    Raises:
        ManifestError: the constants are no search's.
    """
    constants = read_constants(generation)
    lengths = tuple(programs[ENCODE])
    words = {"pad": constants.pad, "batch": batch, "decoded": batch * generation.num_beams}
    modules = {}
    sources = [_write_fit(lengths)]
    for part in SEARCH:
        for length, program in programs[part].items():
            modules[f"{part}_{length}"] = program
        sources.append(_write_choice(part, programs[part]))
    written = (_ENCODE, _DECODE_AT, _PREFILL, _STEP)
    sources += [text.format_map(words).lstrip("\n") for text in written]
    sources += search_source(constants, generation.held, lengths)
    return PaddedSearch(modules=modules, sources=tuple(sources))


def _write_fit(lengths: tuple[int, ...]) -> str:
    """Write the method that returns the smallest standard length that fits, or the largest."""
    lines = ["def _fit(self, tokens: int) -> int:"]
    for length in lengths[:-1]:
        lines += [f"    if tokens <= {length}:", f"        return {length}"]
    return "\n".join([*lines, f"    return {lengths[-1]}"]) + "\n"


def _write_choice(part: str, programs: Mapping[int, torch.jit.ScriptModule]) -> str:
    """Write the method that calls the program of its arguments' length."""
    given = ", ".join(_ARGUMENTS[part])
    typed = given.replace(",", ": Tensor,")
    lines = [f"def _{part}(self, {typed}: Tensor) -> Tensor:"]
    for length, program in programs.items():
        call = f"self.{part}_{length}({given})"
        if not returns_tensor(program):
            call += "[0]"
        lines += [f"    if ids.size(1) == {length}:", f"        return {call}"]
    told = f'"{part}: expected ids of a standard length, got " + str(ids.size())'
    lines.append(f"    raise ValueError({told})")
    return "\n".join(lines) + "\n"
