"""TorchScript of ``_score``: what a checkpoint's config does to the scores of a step.

The operations come in the order in which transformers 5 builds its logits processors
(``GenerationMixin._get_logits_processor``); an option that is not asked for leaves no line.
"""

from __future__ import annotations

from collections.abc import Sequence

from tracefleet.decoding import Decoding

_HEAD = """
def _score(self, scores: Tensor, ids: Tensor, source: Tensor, max_new_tokens: int,
           first_token: int) -> Tensor:
"""
_REPETITION = """
    taken = torch.gather(scores, 1, ids)
    taken = torch.where(taken < 0, taken * {penalty}, taken / {penalty})
    scores = scores.scatter(1, ids, taken)
"""
# A column behind the vocabulary takes what matches nothing.
_NGRAM = """
    if {held}.size(1) >= {size} and ids.size(1) + 1 >= {size}:
        prefix = ids[:, ids.size(1) + 1 - {size}:].unsqueeze(1)
        windows = {held}.unfold(1, {size}, 1)
        same = (windows[:, :, :{size} - 1] == prefix).all(-1)
        last = torch.where(same, windows[:, :, {size} - 1], scores.size(1))
        banned = torch.zeros([scores.size(0), scores.size(1) + 1], device=ids.device)
        banned = banned.scatter(1, last, 1.0)[:, :scores.size(1)] > 0
        scores = scores.masked_fill(banned, -float("inf"))
"""
_BAD_WORD = """
    if ids.size(1) >= {size}:
        same = (ids[:, -{size}:] == torch.tensor({prefix}, device=ids.device)).all(1)
        scores[:, {last}] = scores[:, {last}].masked_fill(same, -float("inf"))
"""
_FIRST = """
    if first_token >= 0 and ids.size(1) == 1:
        scores = torch.full_like(scores, -float("inf"))
        scores[:, first_token] = 0.0
"""
_LAST = """
    if ids.size(1) == max_new_tokens:
        scores = torch.full_like(scores, -float("inf"))
        scores = scores.index_fill(1, torch.tensor({ids}, device=ids.device), 0.0)
"""
_BAN = "scores = scores.index_fill(1, torch.tensor({ids}, device=ids.device), -float('inf'))"
_BEGIN = "ids.size(1) == 1 + int(first_token >= 0)"


def write_scores(decoding: Decoding) -> str:
    """Return the method ``_score``; ``ids`` are the decoder's so far, ``source`` the encoder's."""
    parts = [_HEAD]
    if decoding.repetition_penalty != 1:
        parts.append(_REPETITION.format(penalty=float(decoding.repetition_penalty)))
    sizes = {"ids": decoding.no_repeat_ngram_size, "source": decoding.encoder_no_repeat_ngram_size}
    parts += [_NGRAM.format(held=held, size=size) for held, size in sizes.items() if size]
    parts += _write_bad_words(decoding.bad_words)
    if decoding.eos:
        parts += _write_least_length(decoding)
    parts.append(_FIRST)
    if decoding.forced_eos_token_id:
        parts.append(_LAST.format(ids=list(decoding.forced_eos_token_id)))
    parts += _ban(decoding.suppress_tokens)
    parts += _ban(decoding.begin_suppress_tokens, _BEGIN)
    if decoding.renormalize_logits:
        parts.append("    scores = torch.log_softmax(scores, -1)\n")
    return "".join(part.lstrip("\n") for part in [*parts, "    return scores\n"])


def is_one_of(name: str, ids: Sequence[int]) -> str:
    """Write the condition, element by element, that a tensor's ids are among these."""
    if not ids:
        return f"torch.zeros_like({name}, dtype=torch.bool)"
    return " | ".join(f"({name} == {one})" for one in ids)


def _write_bad_words(words: Sequence[Sequence[int]]) -> list[str]:
    parts = _ban([word[0] for word in words if len(word) == 1])
    for *prefix, last in words:
        if prefix:
            parts.append(_BAD_WORD.format(size=len(prefix), prefix=prefix, last=last))
    return parts


def _write_least_length(decoding: Decoding) -> list[str]:
    parts = []
    if decoding.min_length:
        parts += _ban(decoding.eos, f"ids.size(1) < {decoding.min_length}")
    if decoding.min_new_tokens:
        parts += _ban(decoding.eos, f"ids.size(1) - 1 < {decoding.min_new_tokens}")
    return parts


def _ban(ids: Sequence[int], condition: str = "") -> list[str]:
    """Write the line that takes ids out, always or under a condition."""
    if not ids:
        return []
    line = _BAN.format(ids=list(ids))
    return [f"    if {condition}:\n        {line}\n" if condition else f"    {line}\n"]
