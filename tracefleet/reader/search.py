"""One call of a bundle's ``generate`` on checked inputs: ids in, ids out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracefleet.errors import AnswerTooLongError, NoGenerationError
from tracefleet.generation_types import Generation
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import General
from tracefleet.reader.inputs import arrange

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a call says of its search; None: as the config says.

    Attributes:
        max_new_tokens: most ids of an answer, beside the first one.
        num_beams: number of beams.
        first_token: id that answers begin with after the start.
    """

    max_new_tokens: int | None = None
    num_beams: int | None = None
    first_token: int | None = None


AS_CONFIGURED = Search()
_ENCODER = ("input_ids", "attention_mask")
#: The encoder runs every row as it is.
_AS_IT_IS = General(shortest=1, rows=1, tokens=1)


def search(
    manifest: Manifest,
    module: torch.jit.ScriptModule,
    device: str,
    given: Mapping[str, Any],
    asked: Search,
) -> torch.Tensor:
    """Run the bundle's search.

    Raises:
        NoGenerationError: it has none.
        InputTooLongError, AnswerTooLongError: over the largest standard length.
        ValueError: what no search takes.
    """
    import torch

    made, first = find_generation(manifest), asked.first_token
    limit = made.max_new_tokens if asked.max_new_tokens is None else asked.max_new_tokens
    beams = made.num_beams if asked.num_beams is None else asked.num_beams
    _check_numbers(limit, beams, manifest.lengths[-1])
    more = [] if first is None else [_check_first(first)]
    tensors = [tensor.to(device) for tensor in _arrange(manifest, given)]
    with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        try:
            answer: torch.Tensor = module.generate(*tensors, limit, beams, *more)
        except (RuntimeError, IndexError) as error:
            if "index out of range" not in str(error):
                raise
            raise ValueError(
                "input_ids or first_token: an id is outside the model's vocabulary (largest given: "
                f"{int(tensors[0].max())}). Use the tokenizer of {manifest.source}."
            ) from error
    return answer


def cut_answer(ids: list[int], eos: tuple[int, ...]) -> list[int]:
    """Return an answer up to its end; its first id, the start, may be an end itself."""
    for place, one in enumerate(ids[1:], 1):
        if one in eos:
            return ids[: place + 1]
    return ids


def find_generation(manifest: Manifest) -> Generation:
    """Return what the bundle's ``generate`` does.

    Raises:
        NoGenerationError: it has none; the message has the manifest's reason.
    """
    if manifest.generation is not None:
        return manifest.generation
    why = manifest.without_generation
    if why is None:
        why = f"task {manifest.variant.task} on {manifest.variant.backend} has none"
    raise NoGenerationError(
        f"{manifest.source}: expected a conversion that generates, got one that does not: {why} "
        "Call the model itself for one forward, or convert an encoder-decoder for "
        "text2text-generation with these versions."
    )


def _arrange(manifest: Manifest, given: Mapping[str, Any]) -> Sequence[torch.Tensor]:
    specs = [spec for spec in manifest.inputs if spec.name in _ENCODER]
    tensors = arrange(specs, manifest.lengths, given, _AS_IT_IS)
    empty = (tensors[1].sum(1) == 0).nonzero()
    if len(empty):
        raise ValueError(
            f"attention_mask: expected at least one token in each row, got none in row "
            f"{int(empty[0])}"
        )
    return tensors


def _check_numbers(limit: int, beams: int, longest: int) -> None:
    for name, value in (("max_new_tokens", limit), ("num_beams", beams)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    if limit > longest:
        raise AnswerTooLongError(
            f"max_new_tokens: expected at most {longest}, the largest standard length of this "
            f"conversion, got {limit}. Ask for fewer, or convert with a larger length."
        )


def _check_first(token: int) -> int:
    if isinstance(token, bool) or not isinstance(token, int) or token < 0:
        raise ValueError(f"first_token: expected an id of the vocabulary, got {token!r}")
    return token
