"""Encoder and decoder of fixed shapes, for a device whose programs take no growing cache.

As AWS's tutorial of MarianMT on Inf1 has them (aws-neuron-sdk, ``transformers-marianmt``): the
decoder takes all ids of an answer so far, padded to a standard length, and returns the logits at
one position. The position is picked by comparing and adding, which compilers like better than a
gather, and before the head, whose product over a whole length would cost the most.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.model.facts import ModelFacts
from tasks.model.feeds import make_uneven_feed
from tasks.model.state import sparing_buffers
from tasks.trace.generation import encode

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.model.feeds import Feed


def make_encoder(model: Any) -> nn.Module:
    """Return the module ``(ids, mask) -> hidden``, shapes ``(rows, length)``."""
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return encode(self, ids, mask)

    return Encoder().eval()


def make_decoder(model: Any) -> nn.Module:
    """Return the module ``(ids, mask, hidden, position) -> logits``.

    Ids and mask have shape ``(rows, length)``, hidden states ``(rows, length, width)``, the
    position ``(1,)``, the logits ``(rows, vocabulary)``.
    """
    from torch import nn

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, ids: torch.Tensor, mask: torch.Tensor, hidden: torch.Tensor, position: Any
        ) -> torch.Tensor:
            return _decode_at(self.model, ids, mask, hidden, position)

    return Decoder().eval()


def make_encoder_feed(facts: ModelFacts, rows: int, length: int) -> Feed:
    """Return the inputs for which an encoder is compiled."""
    feed = make_uneven_feed(facts, batch=rows, length=length, seed=length)
    return {"ids": feed["input_ids"], "mask": feed["attention_mask"]}


def make_decoder_feed(model: Any, facts: ModelFacts, rows: int, length: int) -> Feed:
    """Return the inputs for which a decoder is compiled; hidden states are eager's."""
    import torch

    source = make_encoder_feed(facts, rows, length)
    with torch.no_grad():
        hidden = make_encoder(model)(source["ids"], source["mask"])
    # Any ids will do as the decoder's.
    return {**source, "hidden": hidden, "position": torch.zeros(1, dtype=torch.int64)}


def _decode_at(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, hidden: torch.Tensor, position: Any
) -> torch.Tensor:
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    given = BaseModelOutput(last_hidden_state=hidden)
    with sparing_buffers(model), _picking_before_head(model, ids.shape[1], position):
        logits: torch.Tensor = model(
            encoder_outputs=given,
            attention_mask=mask,
            decoder_input_ids=ids,
            # Some hide ids that are padding, and the start often is.
            decoder_attention_mask=torch.ones_like(ids),
            use_cache=False,
            return_dict=True,
        ).logits
    return _pick(logits, ids.shape[1], position)[:, 0]


@contextmanager
def _picking_before_head(model: Any, length: int, position: torch.Tensor) -> Iterator[None]:
    """Let the model's head see the hidden states of one position alone."""
    head = model.get_output_embeddings()
    if head is None:
        yield
        return

    def pick(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (_pick(given[0], length, position), *given[1:])

    hook = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()


def _pick(tensor: torch.Tensor, length: int, position: torch.Tensor) -> torch.Tensor:
    """Return one position of a tensor ``(rows, length, width)``, as ``(rows, 1, width)``."""
    import torch

    # What was picked before the head needs no picking.
    if tensor.shape[1] != length or length == 1:
        return tensor
    wanted = torch.arange(length, device=tensor.device) == position
    return (tensor * wanted.to(tensor.dtype)[None, :, None]).sum(1, keepdim=True)
