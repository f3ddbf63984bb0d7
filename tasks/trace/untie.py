"""Find every tied group by storage, make a copy for each name, prove that no tie is left.

transformers 5 accepts ``torchscript=True`` and does nothing with it, and untying through
``tie_word_embeddings`` re-initialises the head at load or rescales logits (both measured): so the
untying here looks at memory, never at the config. Sharing a *module* (ALBERT's repeated layer) is
not weight tying: such a module has one name and is left alone.

The copies are independent afterwards: an untied model must never be trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.child_main import report_progress
from tasks.errors import TiedWeightsError
from tasks.model.facts import ModelFacts
from tasks.model.feeds import example_feed
from tasks.model.outputs import call_tuple
from tasks.model.state import sparing_buffers
from tracefleet.manifest_types import OutputSpec

if TYPE_CHECKING:
    import torch
    from torch import nn


def find_tied_groups(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the groups of parameter and buffer names whose elements overlap in memory."""
    # Overlap of byte ranges, and not equality of storages, also finds views of one storage and does
    # not mistake two tensors of one memory-mapped file for a tie.
    spans = sorted(_spans(model), key=lambda span: (span[0], span[2]))
    groups: list[list[str]] = []
    end = -1
    for start, stop, name in spans:
        if start < end:
            groups[-1].append(name)
        else:
            groups.append([name])
        end = max(end, stop)
    return tuple(sorted(tuple(sorted(group)) for group in groups if len(group) > 1))


def untie(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Clone all but the first name of every tied group, in place, and return the groups.

    Raises:
        TiedWeightsError: A group still shares memory afterwards.
    """
    groups = find_tied_groups(model)
    for group in groups:
        for name in group[1:]:
            _replace_by_copy(model, name)
    # transformers reads the class's mapping on every call, and would tie them again.
    model.tie_weights = lambda *_, **__: None  # type: ignore[assignment]
    left = find_tied_groups(model)
    if left:
        raise TiedWeightsError(
            f"untie: expected no shared storage, got {left} after cloning. The model shares "
            "memory in a way that tracefleet does not know; please report the architecture."
        )
    return groups


def _spans(model: nn.Module) -> Iterator[tuple[int, int, str]]:
    for name, tensor in _walk_tensors(model):
        if tensor.numel() and tensor.device.type != "meta":
            reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            yield start, start + (reach + 1) * tensor.element_size(), name


def _walk_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of each module object once: a shared module is no weight tying."""
    for path, module in model.named_modules():
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def _replace_by_copy(model: nn.Module, name: str) -> None:
    from torch import nn

    path, _, attribute = name.rpartition(".")
    owner: Any = model.get_submodule(path)
    tensor = getattr(owner, attribute)
    copy = tensor.detach().clone()
    if attribute in owner._parameters:
        owner._parameters[attribute] = nn.Parameter(copy, requires_grad=tensor.requires_grad)
    else:
        owner._buffers[attribute] = copy


def untie_with_proof(
    model: nn.Module, facts: ModelFacts, outputs: tuple[OutputSpec, ...], length: int, batch: int
) -> tuple[tuple[str, ...], ...]:
    """Untie, prove that no output bit changed, and return the groups.

    Raises:
        TiedWeightsError: One did.
    """
    import torch

    feed = example_feed(facts, batch=batch, length=length)
    with torch.no_grad(), sparing_buffers(model):
        before = call_tuple(model, feed, outputs)
    groups = untie(model)
    if not groups:
        return groups
    with torch.no_grad(), sparing_buffers(model):
        after = call_tuple(model, feed, outputs)
    for spec, old, new in zip(outputs, before, after, strict=True):
        if not torch.equal(old, new):
            raise TiedWeightsError(
                f"untie {groups}: expected bit-identical {spec.name} before and after, got a "
                "difference. The model computes something from the tie itself; report it."
            )
    report_progress(f"untied {len(groups)} group(s)")
    return groups
