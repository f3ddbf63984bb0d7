"""Plan the search of a device's programs: what it does, or why there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.backends.base import Job
from tasks.errors import ConversionError, GenerationError, first_line
from tasks.model.feeds import make_uneven_feed
from tasks.model.generation import read_decoding
from tasks.model.state import sparing_buffers
from tasks.trace.generation import check_version, describe_generation
from tasks.trace.padded import make_decoder, make_encoder
from tasks.validate.difference import compare
from tracefleet.decoding import Decoding
from tracefleet.generation_types import Generation

if TYPE_CHECKING:
    import torch

#: Rows of the eager calls that are compared, and the tokens before the padding.
_ROWS, _TOKENS = 2, 3


def plan_search(model: Any, job: Job) -> Generation:
    """Return what a search over padded programs does; eager has to compute alike with padding.

    Args:
        model: Eager model.
        job: Job of the conversion.

    Raises:
        GenerationError: Its checkpoint can't be searched so; the message has the reason.
    """
    check_version()
    decoding = read_decoding(getattr(model, "generation_config", None), job.generation)
    try:
        own, padded = _compute_both(model, job, decoding)
    except ConversionError:
        raise
    except Exception as error:
        raise GenerationError(
            f"{job.facts.architecture}: expected eager to run its encoder and its decoder by "
            f"themselves, got {type(error).__name__}: {first_line(error)}."
        ) from error
    found = compare(padded.float(), own.float(), job.tolerance)
    if not found.passed:
        raise GenerationError(
            f"{job.facts.architecture}: expected a decoder whose padding changes nothing, as a "
            f"program of a fixed length needs it, got a relative error of {found.max_rel:.3g}. "
            "Convert it for jit to generate."
        )
    return describe_generation(decoding, 0, job.lengths[-1])


def _compute_both(model: Any, job: Job, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eager's logits after some tokens, from its own call and from a padded one."""
    import torch
    from torch.nn.functional import pad

    length = job.lengths[0]
    tokens = min(_TOKENS, length)
    feed = make_uneven_feed(job.facts, batch=_ROWS, length=length, seed=length)
    ids, mask = feed["input_ids"], feed["attention_mask"]
    begun = ids[:, :tokens].clone()
    begun[:, 0] = decoding.start
    given = {"decoder_input_ids": begun, "decoder_attention_mask": torch.ones_like(begun)}
    padded = pad(begun, (0, length - tokens), value=decoding.pad)
    with torch.no_grad(), sparing_buffers(model):
        own = model(input_ids=ids, attention_mask=mask, use_cache=False, **given).logits[:, -1]
        hidden = make_encoder(model)(ids, mask)
        position = torch.tensor([tokens - 1])
        return own, make_decoder(model)(padded, mask, hidden, position)
