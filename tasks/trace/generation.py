"""Record what a search needs of an encoder-decoder: ``encode``, ``prefill`` and ``step``.

All are methods of the bundle that has ``forward``, over its one copy of the weights:

* ``encode(input_ids, attention_mask)``: the source's hidden states.
* ``prefill(hidden, attention_mask, ids)``: the first step. Returns its logits, then keys and values
  of every layer for the decoder itself, then those for the source, which are computed here alone.
* ``step(attention_mask, ids, position, own, cross)``: one token a row; returns its logits. ``own``
  holds keys and values of every layer, of any capacity, and gets the token's at ``position``.

Caches belong to the caller, and positions are tensors: one graph serves every length, every number
of rows and every capacity. That its program is the same at other shapes is compared, and the gate
proves the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tasks.child_main import report_progress
from tasks.errors import ConversionError, GenerationError, first_line
from tasks.model.facts import ModelFacts
from tasks.model.feeds import make_uneven_feed
from tasks.model.generation import Choice, read_decoding
from tasks.model.state import sparing_buffers
from tasks.trace.compare import same_method
from tracefleet.decoding import Decoding
from tracefleet.generation_types import Generation
from tracefleet.reader.search_script import search_source

if TYPE_CHECKING:
    import torch
    from torch import nn

#: Beams are searched otherwise by earlier ones.
_TRANSFORMERS = 5
#: Rows and tokens of the source of the recorded calls, and the size of their cache.
_SHAPE = (2, 7, 9)


def encode(self: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run the encoder; ids and mask of shape ``(rows, tokens)``."""
    encoder = self.model.get_encoder()
    with sparing_buffers(self.model):
        hidden: torch.Tensor = encoder(input_ids=ids, attention_mask=mask, return_dict=True)[0]
    return hidden


def prefill(
    self: Any, hidden: torch.Tensor, mask: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Run the decoder's first step, as transformers' ``generate`` does."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    logits = _decode(self.model, hidden, mask, ids, cache)
    found = [logits]
    for part in (cache.self_attention_cache, cache.cross_attention_cache):
        for layer in part.layers:
            found += [layer.keys, layer.values]
    return tuple(found)


def step(
    self: Any,
    mask: torch.Tensor,
    ids: torch.Tensor,
    position: torch.Tensor,
    own: list[torch.Tensor],
    cross: list[torch.Tensor],
) -> torch.Tensor:
    """Run the decoder on one token a row, with caches that the caller holds."""
    import torch

    cache = _given_cache(own, cross, position)
    # The source's own states are in the cache: only their shape is looked at.
    hidden = cross[0][:, 0, :, :1]
    shown = torch.ones((ids.shape[0], own[0].shape[2]), dtype=torch.int64, device=ids.device)
    return _decode(self.model, hidden, mask, ids, cache, decoder_attention_mask=shown)


def _decode(
    model: Any,
    hidden: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    cache: Any,
    **more: torch.Tensor,
) -> torch.Tensor:
    """Return the logits of the last token, shape ``(rows, vocabulary)``."""
    from transformers.modeling_outputs import BaseModelOutput

    given = BaseModelOutput(last_hidden_state=hidden)
    with sparing_buffers(model):
        outputs = model(
            encoder_outputs=given,
            attention_mask=mask,
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **more,
        )
    logits: torch.Tensor = outputs.logits[:, -1]
    return logits


def _given_cache(own: list[torch.Tensor], cross: list[torch.Tensor], position: Any) -> Any:
    """Make transformers' cache of tensors: the decoder's are written to, the source's only read."""
    from transformers.cache_utils import Cache, EncoderDecoderCache

    kind = _layer_class()
    layers = [kind(*pair, position) for pair in zip(own[::2], own[1::2], strict=True)]
    source = [kind(*pair, None) for pair in zip(cross[::2], cross[1::2], strict=True)]
    cache = EncoderDecoderCache(Cache(layers=layers), Cache(layers=source))
    cache.is_updated = dict.fromkeys(range(len(layers)), True)
    return cache


@functools.cache
def _layer_class() -> Any:
    from transformers.cache_utils import StaticLayer

    class GivenLayer(StaticLayer):  # type: ignore[misc]
        """Keys and values that the caller made; the newest are written at a position."""

        def __init__(self, keys: Any, values: Any, position: Any) -> None:
            super().__init__(max_cache_len=keys.shape[2])
            self.keys, self.values, self.position = keys, values, position
            self.is_initialized = True

        def update(self, keys: Any, values: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            for held, new in ((self.keys, keys), (self.values, values)):
                held.index_copy_(2, self.position.view(1), new)
            return self.keys, self.values

        def get_mask_sizes(self, query_length: int) -> tuple[Any, int]:
            return self.keys.shape[2], 0

        def get_seq_length(self) -> Any:
            return self.keys.shape[2] if self.position is None else self.position

    return GivenLayer


#: What a bundle's search is made of, by the names of the methods.
METHODS: dict[str, Callable[..., Any]] = {"encode": encode, "prefill": prefill, "step": step}


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search of a bundle, or why it has none.

    Attributes:
        source: TorchScript of its methods, in order.
        generation: Its facts; None: there is none.
        missing: Why there is none; None: there is, or it was not asked for.
    """

    source: tuple[str, ...] = ()
    generation: Generation | None = None
    missing: str | None = None


NO_SEARCH = Search()


def add_generation(
    traced: torch.jit.ScriptModule,
    model: Any,
    facts: ModelFacts,
    lengths: tuple[int, ...],
    choice: Choice,
    record: Callable[..., torch.jit.ScriptModule],
) -> tuple[torch.jit.ScriptModule, Search]:
    """Return a module that has the methods of a search too, or the same one and why it has none.

    Args:
        traced: Recorded module.
        model: Untied model.
        facts: Facts of the model.
        lengths: Standard lengths, ascending: the sizes of a cache.
        choice: How to search.
        record: Records the module again, with the methods whose inputs it gets by name.
    """
    report_progress("recording its generation")
    try:
        check_version()
        decoding = read_decoding(getattr(model, "generation_config", None), choice)
        examples, layers = _make_examples(model, facts, decoding, _SHAPE)
        found = record(examples)
        longest = (_SHAPE[0] + 1, lengths[-1], lengths[-1] + 1)
        other = record(_make_examples(model, facts, decoding, longest)[0])
    except ConversionError as error:
        return traced, Search(missing=str(error))
    for name in METHODS:
        if not same_method(found, other, name):
            return traced, Search(missing=f"the programs of {name} at two shapes differ")
    made = describe_generation(decoding, layers, lengths[-1])
    return found, Search(source=tuple(search_source(decoding, made.held, lengths)), generation=made)


def check_version() -> None:
    """Refuse a transformers whose search is another one.

    Raises:
        GenerationError: It is.
    """
    installed = version("transformers")
    if int(installed.partition(".")[0]) < _TRANSFORMERS:
        raise GenerationError(
            f"transformers: expected {_TRANSFORMERS} or later, whose search the bundle's loop is, "
            f"got {installed}."
        )


def describe_generation(decoding: Decoding, layers: int, capacity: int) -> Generation:
    """Return what a manifest says of a search, before it is proved."""
    return Generation(
        num_beams=decoding.num_beams,
        max_new_tokens=max(1, min(decoding.max_length - 1, capacity)),
        start=decoding.start,
        pad=decoding.pad,
        eos=decoding.eos,
        layers=layers,
        options=decoding.describe(),
        verdict=None,
    )


def _make_examples(
    model: nn.Module, facts: ModelFacts, decoding: Decoding, shape: tuple[int, int, int]
) -> tuple[dict[str, tuple[Any, ...]], int]:
    """Return inputs of each method at one of the two shapes, and the decoder's layers.

    Raises:
        GenerationError: Eager can't run, or returns no keys and values.
    """
    import torch

    try:
        with torch.no_grad(), sparing_buffers(model):
            return _run_once(model, facts, decoding, shape)
    except ConversionError:
        raise
    except Exception as error:
        raise GenerationError(
            f"{facts.architecture}: expected eager to run its encoder and its decoder by "
            f"themselves, got {type(error).__name__}: {first_line(error)}."
        ) from error


def _run_once(
    model: nn.Module, facts: ModelFacts, decoding: Decoding, shape: tuple[int, int, int]
) -> tuple[dict[str, tuple[Any, ...]], int]:
    import torch
    from torch.nn.functional import pad

    rows, tokens, capacity = shape
    feed = make_uneven_feed(facts, batch=rows, length=tokens, seed=tokens)
    ids, mask = feed["input_ids"], feed["attention_mask"]
    start = torch.full((rows, 1), decoding.start)
    holder = SimpleNamespace(model=model)
    hidden = encode(holder, ids, mask)
    _, *caches = prefill(holder, hidden, mask, start)
    layers = len(caches) // 4
    if layers == 0 or len(caches) != 4 * layers:
        raise GenerationError(
            f"{facts.architecture}: expected keys and values of the decoder and of the source for "
            f"each layer, got {len(caches)} tensors. Its cache is of another kind."
        )
    own = [pad(one, (0, 0, 0, capacity - 1)) for one in caches[: 2 * layers]]
    step_inputs = (mask, start, torch.tensor(1), own, caches[2 * layers :])
    examples = {"encode": (ids, mask), "prefill": (hidden, mask, start), "step": step_inputs}
    return examples, layers
