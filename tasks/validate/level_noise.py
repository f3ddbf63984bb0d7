"""How far int8's own rounding goes: eager's steps against its pass over all tokens.

A dynamic int8 layer rounds its inputs to levels. A value that lies between two goes to either by
its last bit, and the last bits of a step with a cache are others than those of one pass: no
tolerance of float32 bounds that. What eager itself does is the measure of what the bundle may.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tracefleet.verdict_types import Tolerance

if TYPE_CHECKING:
    import torch

#: Steps that are measured; the first ones, before any value falls between two levels, tell little.
_STEPS = 48
#: The bundle's steps and eager's each differ from the one pass, and not at the same places.
_MARGIN = 3.0


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Largest differences of eager from itself, relative to the largest value.

    Attributes:
        logits: Of a step's logits.
        own: Of the keys and values that it writes.
    """

    logits: float = 0.0
    own: float = 0.0

    def loosen(self, tolerance: Tolerance) -> tuple[Tolerance, Tolerance]:
        """Return the bounds on logits and on what a step writes, at least the tolerance."""
        logits = replace(tolerance, rtol=max(tolerance.rtol, _MARGIN * self.logits))
        return logits, replace(tolerance, rtol=max(tolerance.rtol, _MARGIN * self.own))


QUIET = Noise()


def measure_noise(
    model: Any, held: dict[str, torch.Tensor], own: list[torch.Tensor], positions: tuple[int, ...]
) -> Noise:
    """Return how far eager's steps are from its pass over all tokens.

    Args:
        model: Eager model with int8 layers.
        held: Tensors of ``forced/…``, which eager computed in one pass.
        own: The decoder's own keys and values, of the same pass.
        positions: Positions of the logits among them.
    """
    import torch

    logits, kept = _run_steps(model, held)
    seen = [place for place in positions if place < len(logits)]
    stepped = torch.stack([logits[place] for place in seen], 1)
    places = range(len(logits))
    return Noise(
        logits=_differ(stepped.float(), held["forced/logits"][:, : len(seen)]),
        own=max(_differ(join_written(kept, at), join_written(own, at)) for at in places),
    )


def join_written(own: list[torch.Tensor], position: int) -> torch.Tensor:
    """Return what one step wrote into every tensor that a search holds, as one flat tensor."""
    import torch

    return torch.cat([one[:, :, position].flatten() for one in own]).float()


def _run_steps(
    model: Any, held: dict[str, torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return eager's logits of each step, and its keys and values after the last."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    mask = held["forced/attention_mask"]
    given = {"input_ids": held["forced/input_ids"], "attention_mask": mask, "return_dict": True}
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    options = {
        "encoder_outputs": BaseModelOutput(last_hidden_state=model.get_encoder()(**given)[0]),
        "attention_mask": mask,
        "past_key_values": cache,
    }
    logits = []
    for ids in held["forced/tokens"][:, :_STEPS].split(1, dim=1):
        found = model(decoder_input_ids=ids, use_cache=True, return_dict=True, **options)
        logits.append(found.logits[:, -1])
    layers = cache.self_attention_cache.layers
    return logits, [one for layer in layers for one in (layer.keys, layer.values)]


def _differ(one: torch.Tensor, other: torch.Tensor) -> float:
    scale = float(other.abs().max())
    return float((one - other).abs().max()) / scale if scale else 0.0
