"""Are two recorded graphs the same program? What one of them is shown to do holds for the other."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.errors import TraceError
from tasks.model.graphs import walk

if TYPE_CHECKING:
    import torch

_SELECTING = ("aten::topk", "aten::sort", "aten::argsort", "aten::kthvalue")
_INTEGER = re.compile(r"-?\d+")
#: Source positions, and the counters that make class names unique within one process.
_NOISE = re.compile(r"#.*|___torch_mangle_\d+\.")


@dataclass(frozen=True)
class OneGraph:
    """A graph of the shortest length, which is to be compared with those of other shapes."""

    traced: torch.jit.ScriptModule
    lengths: tuple[int, ...]
    batch: int
    record: Callable[[tuple[int, ...], int], torch.jit.ScriptModule]

    def serves_every_length(self) -> bool:
        """Tell whether the longest length has the very same program."""
        return len(self.lengths) > 1 and self._equals(self.lengths[-1], self.batch)

    def serves_every_batch(self) -> bool:
        """Tell whether another number of rows has it too."""
        return self._equals_if_recorded(self.lengths[0], self.batch + 1)

    def serves_another_length(self) -> bool:
        """Tell whether half of a single standard length has it too."""
        return self._equals_if_recorded(max(1, self.lengths[0] // 2), self.batch)

    def _equals_if_recorded(self, length: int, batch: int) -> bool:
        # No shape that anybody asked for: a model that can't run it is not general, and right.
        try:
            return self._equals(length, batch)
        except TraceError:
            return False

    def _equals(self, length: int, batch: int) -> bool:
        return same_graph(self.traced, self.lengths[0], self.record((length,), batch), length)


def same_graph(one: Any, first: int, two: Any, second: int) -> bool:
    """Tell whether two traced modules hold the very same program, baked tensors included."""
    return _are_equal(_read_program(one, first), _read_program(two, second), lambda a, b: a == b)


def same_method(one: Any, two: Any, name: str) -> bool:
    """Tell whether a method of two traced modules is the very same program."""
    return _are_equal(_read_method(one, name), _read_method(two, name), lambda a, b: a == b)


def same_program(traced: Any, lengths: tuple[int, ...]) -> bool:
    """Tell whether a module's graphs are equal but for integers that are their own lengths."""
    first, reference = lengths[0], _read_program(traced, lengths[0])
    return all(
        _are_equal(
            reference,
            _read_program(traced, length),
            functools.partial(_are_equal_but_for_length, first=first, second=length),
        )
        for length in lengths[1:]
    )


def has_topk_or_sort(traced: Any, length: int) -> bool:
    """Tell whether a length's program uses top-k or sort."""
    graph = getattr(traced, f"_traced_{length}").inlined_graph
    return any(graph.findAllNodes(kind, recurse=True) for kind in _SELECTING)


def _read_program(traced: Any, length: int) -> tuple[list[str], list[Any]]:
    return _read_method(traced, f"_traced_{length}")


def _read_method(traced: Any, name: str) -> tuple[list[str], list[Any]]:
    """Return a method's inlined graph as lines, and the tensors baked into it."""
    import torch

    graph = getattr(traced, name).inlined_graph.copy()
    torch._C._jit_pass_erase_shape_information(graph)
    torch._C._jit_pass_canonicalize(graph)
    lines = _NOISE.sub("", str(graph)).splitlines()
    return lines, list(_find_baked_tensors(graph))


def _find_baked_tensors(graph: Any) -> Iterator[Any]:
    for node in walk(graph):
        is_constant = node.kind() == "prim::Constant" and node.hasAttribute("value")
        if is_constant and node.kindOf("value") == "t":
            yield node.t("value")


def _are_equal(
    one: tuple[list[str], list[Any]],
    two: tuple[list[str], list[Any]],
    equal_lines: Callable[[str, str], bool],
) -> bool:
    import torch

    (lines, tensors), (other_lines, other_tensors) = one, two
    if len(lines) != len(other_lines) or len(tensors) != len(other_tensors):
        return False
    return all(map(torch.equal, tensors, other_tensors)) and all(
        map(equal_lines, lines, other_lines)
    )


def _are_equal_but_for_length(one: str, two: str, first: int, second: int) -> bool:
    if one == two:
        return True
    if _INTEGER.sub("#", one) != _INTEGER.sub("#", two):
        return False
    pairs = zip(_INTEGER.findall(one), _INTEGER.findall(two), strict=True)
    return all(a == b or (a, b) == (str(first), str(second)) for a, b in pairs)
