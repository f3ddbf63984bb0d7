"""What eager generates: the reference of ``generate``'s gate, from the untouched checkpoint.

Two kinds of it. Logits of every step, teacher-forced: eager computes those of all tokens in one
pass without a cache, so that nothing of the search is on both sides. And whole answers of
``model.generate`` with the checkpoint's own config, greedy and with beams, each with the closest of
its choices: where eager itself hardly prefers one token to another, equal ids prove nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.child_main import report_progress
from tasks.errors import GenerationError, first_line
from tasks.model.facts import LoadOptions, ModelFacts
from tasks.model.generation import Choice, search_greedily
from tasks.model.load import load_eager
from tasks.model.quantise import quantise
from tasks.samples.make import Samples
from tasks.validate.generation_cases import (
    LIMIT,
    Case,
    choose_positions,
    draw_rows,
    draw_tokens,
    make_cases,
)
from tasks.validate.level_noise import QUIET, Noise, measure_noise
from tasks.validate.near_ties import NearTies
from tracefleet.generation_types import Generation
from tracefleet.manifest_types import INT8

if TYPE_CHECKING:
    import torch

    from tasks.model.feeds import Feed

#: Part of the largest logit by which a pass with a cache may differ from one without: half
#: precision rounds each otherwise, and FSMT, which leaves its causal mask out, is 0.4 apart.
_APART = 0.05
#: Name of the decoder's own keys and values, before their place.
OWN = "forced/own/"
#: Beams that every conversion is proved with, beside the checkpoint's own number.
_BEAMS = (1, 4)


@dataclass(frozen=True, kw_only=True)
class GenerationReference:
    """Eager's answers and logits, in a file of this machine.

    Attributes:
        path: Safetensors with the tensors of every case.
        cases: The calls.
        beams: Numbers of beams, ascending.
        lengths: Standard lengths: the sizes of a cache.
        generation: What the bundle's ``generate`` does.
        noise: How far eager's own steps are from its pass over all tokens, in int8.
    """

    path: Path
    cases: tuple[Case, ...]
    beams: tuple[int, ...]
    lengths: tuple[int, ...]
    generation: Generation
    noise: Noise = QUIET


def compute_generation(
    checkpoint: Path,
    options: LoadOptions,
    facts: ModelFacts,
    generation: Generation,
    lengths: tuple[int, ...],
    choice: Choice,
    samples: Samples | None,
    target: Path,
) -> GenerationReference:
    """Compute and store what eager generates; the whole job of one child.

    Args:
        checkpoint: Folder of the checkpoint.
        options: Task, dtype and what is trusted.
        facts: Facts of the model.
        generation: What the bundle's ``generate`` does.
        lengths: Standard lengths, ascending.
        choice: How it searches.
        samples: Real inputs of the checkpoint; None: there are none.
        target: File to write.

    Raises:
        GenerationError: Eager itself can't generate.
    """
    import torch
    from safetensors.torch import save_file

    report_progress("loading the eager reference of generation")
    model = load_eager(checkpoint, options)
    if options.dtype == INT8:
        quantise(model)
    if choice == "greedy":
        search_greedily(model.generation_config)
    cases = list(make_cases(facts, lengths, samples))
    beams = tuple(sorted({*_BEAMS, generation.num_beams}))
    try:
        with torch.no_grad():
            tensors = _force(model, facts, generation, lengths)
            noise = _measure_noise(model, tensors, lengths) if options.dtype == INT8 else QUIET
            for case, feed in cases:
                tensors |= _answer(model, generation, case, feed, beams)
    except GenerationError:
        raise
    except Exception as error:
        raise GenerationError(
            f"{facts.architecture}: expected eager to generate, got {type(error).__name__}: "
            f"{first_line(error)}. There is nothing to compare with."
        ) from error
    # Views of one storage can't be saved, nor can what is not contiguous.
    whole = {name: _copy(tensor) for name, tensor in tensors.items()}
    save_file(whole, target)
    made = tuple(case for case, _ in cases)
    return GenerationReference(
        path=target, cases=made, beams=beams, lengths=lengths, generation=generation, noise=noise
    )


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.clone(memory_format=torch.contiguous_format)


def _answer(
    model: Any, generation: Generation, case: Case, feed: Feed, beams: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    """Return one case's inputs, and eager's answers with every number of beams."""
    report_progress(f"eager generates {case.name}")
    tensors = {f"{case.name}/{name}": tensor for name, tensor in feed.items()}
    for count in beams:
        ties = NearTies(len(feed["input_ids"]), generation.eos)
        tensors[f"{case.name}/{count}"] = _generate(model, feed, case.limit, count, ties)
        tensors[f"{case.name}/{count}/ties"] = ties.smallest
    return tensors


def _generate(model: Any, feed: Feed, limit: int, beams: int, ties: NearTies) -> torch.Tensor:
    from transformers import LogitsProcessorList

    options: dict[str, Any] = {"max_new_tokens": limit, "num_beams": beams, "do_sample": False}
    if beams == 1:
        options["logits_processor"] = LogitsProcessorList([ties.see_scores])
    with ties.watching(model):
        answer: torch.Tensor = model.generate(**feed, **options)
    return answer


def _force(
    model: Any, facts: ModelFacts, generation: Generation, lengths: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    """Compute logits, keys and values of some tokens in one pass: eager's answer, then other ids.

    What a search holds of its own, ``forced/own/<n>``, is keys and values of shape ``(2, heads,
    tokens, width)``, or the tokens as ``(2, 1, tokens, 1)``: a step anywhere can begin with it.
    """
    import torch
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    most = lengths[-1]
    feed = draw_rows(facts, [most, max(1, lengths[0] // 2)])
    own = _generate(model, feed, min(LIMIT, most), 1, NearTies(2, generation.eos))
    others = draw_tokens(facts, 2, most + LIMIT)
    tokens = torch.cat([own, others[:, own.shape[1] :]], 1)[:, :most]
    # SeamlessM4T counts positions without padding in one pass, and with it step by step.
    is_padding = (tokens == generation.pad) & (torch.arange(tokens.shape[1]) > 0)
    tokens = _tell_apart(tokens.masked_fill(is_padding, int(others[0, -1])), others)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    # Without a cache T5Gemma hides padding among the decoder's ids, which generating does not.
    given = {**feed, "decoder_input_ids": tokens, "return_dict": True}
    shown = torch.ones_like(tokens)
    logits = model(**given, decoder_attention_mask=shown, use_cache=False).logits.float()
    cached = model(**given, past_key_values=cache, use_cache=True).logits.float()
    if not torch.allclose(cached, logits, rtol=0.0, atol=_APART * float(logits.abs().max())):
        raise GenerationError(
            f"{facts.architecture}: expected eager to compute the same with a cache and without, "
            "got others. There is nothing to compare the bundle's steps with."
        )
    kept = logits[:, list(choose_positions(lengths))]
    tensors = {f"forced/{name}": tensor for name, tensor in feed.items()}
    for place, own in enumerate(_list_own(generation, tokens, cache)):
        tensors[f"{OWN}{place}"] = own
    return {**tensors, "forced/tokens": tokens, "forced/logits": kept}


def _list_own(generation: Generation, tokens: torch.Tensor, cache: Any) -> list[torch.Tensor]:
    """Return what a search holds after these tokens: keys and values, or the tokens themselves."""
    if not generation.layers:
        return [tokens[:, None, :, None]]
    layers = cache.self_attention_cache.layers
    return [held for layer in layers for held in (layer.keys, layer.values)]


def _measure_noise(model: Any, tensors: dict[str, torch.Tensor], lengths: tuple[int, ...]) -> Noise:
    count = sum(name.startswith(OWN) for name in tensors)
    own = [tensors[f"{OWN}{place}"] for place in range(count)]
    return measure_noise(model, tensors, own, choose_positions(lengths))


def _tell_apart(tokens: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return tokens whose two rows differ soon: where they are equal, so is what swaps them."""
    if tokens.shape[1] > 1 and bool(tokens[0, 1] == tokens[1, 1]):
        tokens = tokens.clone()
        tokens[1, 1] = next(one for one in others[1] if one != tokens[0, 1])
    return tokens
