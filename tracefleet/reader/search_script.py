"""TorchScript of ``generate``: greedy and beam search over ``encode``, ``prefill`` and ``step``.

A bundle is saved with it; Neuron's programs get it when they are loaded.

The search is transformers 5's (``GenerationMixin._sample`` without sampling, ``_beam_search``): the
same operators on the same shapes, so that ties break alike. What it does otherwise changes no id: a
row's cross keys and values are computed once and never reordered, and caches grow through the
standard lengths. Nothing is kept in the module: many threads may call it at once.
"""

from __future__ import annotations

from tracefleet.decoding import Decoding
from tracefleet.reader.scores_script import is_one_of, write_scores

_GENERATE = """
def generate(self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int,
             num_beams: int = {num_beams}, first_token: int = {first}) -> Tensor:
    if (input_ids.dim() != 2 or attention_mask.size() != input_ids.size()
            or input_ids.numel() == 0):
        raise ValueError("generate: expected input_ids and attention_mask of one shape (rows, "
                         "tokens), at least 1 of each, got " + str(input_ids.size()) + " and "
                         + str(attention_mask.size()))
    if input_ids.size(1) > {longest}:
        raise ValueError("input has " + str(input_ids.size(1)) + " tokens; expected at most "
                         "{longest}, the largest standard length of this bundle")
    if max_new_tokens < 1 or max_new_tokens > {longest}:
        raise ValueError("max_new_tokens: expected 1 to {longest}, the largest standard length "
                         "of this bundle, got " + str(max_new_tokens))
    if num_beams < 1:
        raise ValueError("num_beams: expected at least 1, got " + str(num_beams))
    if bool((attention_mask.sum(1) == 0).any()):
        raise ValueError("attention_mask: expected at least one token in each row, got a row "
                         "without any")
    device = input_ids.device
    ids = torch.full([input_ids.size(0), 1], {start}, dtype=torch.int64, device=device)
    found = self.prefill(self.encode(input_ids, attention_mask), attention_mask, ids)
    logits, own, cross = found[0], [{own}], [{cross}]
    if num_beams == 1:
        return self._search_greedily(input_ids, attention_mask, max_new_tokens, first_token,
                                     ids, logits, own, cross)
    return self._search_beams(
        input_ids.repeat_interleave(num_beams, 0), attention_mask.repeat_interleave(num_beams, 0),
        max_new_tokens, num_beams, first_token, logits.repeat_interleave(num_beams, 0),
        [one.repeat_interleave(num_beams, 0) for one in own],
        [one.repeat_interleave(num_beams, 0) for one in cross])
"""
_GROW = """
def _grow(self, own: List[Tensor], tokens: int) -> List[Tensor]:
    size = own[0].size(2)
    if tokens <= size:
        return own
    capacity = tokens
    for standard in {capacities}:
        if standard >= tokens:
            capacity = standard
    return [torch.constant_pad_nd(one, [0, 0, 0, capacity - size]) for one in own]
"""
_GREEDY = """
def _search_greedily(self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int,
                     first_token: int, ids: Tensor, logits: Tensor,
                     own: List[Tensor], cross: List[Tensor]) -> Tensor:
    open_rows = torch.ones([ids.size(0)], dtype=torch.bool, device=ids.device)
    for tokens in range(1, max_new_tokens + 1):
        scores = self._score(logits.float(), ids, input_ids, max_new_tokens, first_token)
        token = torch.where(open_rows, scores.argmax(-1), {pad})
        ids = torch.cat([ids, token.unsqueeze(1)], 1)
        open_rows = open_rows & ~({ended})
        if tokens == max_new_tokens or not bool(open_rows.any()):
            break
        own = self._grow(own, tokens + 1)
        position = torch.tensor(tokens, device=ids.device)
        logits = self.step(attention_mask, token.unsqueeze(1), position, own, cross)
    return ids
"""
_GATHER = """
def _gather(self, held: Tensor, places: Tensor) -> Tensor:
    if held.dim() == 3:
        return torch.gather(held, 1, places.unsqueeze(2).expand(-1, -1, held.size(2)))
    return torch.gather(held, 1, places)
"""
_BEAMS = """
def _search_beams(self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int,
                  num_beams: int, first_token: int, logits: Tensor,
                  own: List[Tensor], cross: List[Tensor]) -> Tensor:
    device = input_ids.device
    rows, most, kept = input_ids.size(0) // num_beams, max_new_tokens + 1, num_beams * {kept}
    open_ids = torch.full([rows, num_beams, most], {fill}, dtype=torch.int64, device=device)
    open_ids[:, :, 0] = {start}
    open_scores = torch.zeros([rows, num_beams], device=device)
    open_scores[:, 1:] = -1e9
    ids = open_ids.clone()
    lengths = torch.zeros([rows, num_beams], dtype=torch.int64, device=device)
    scores = torch.full([rows, num_beams], -1e9, device=device)
    finished = torch.zeros([rows, num_beams], dtype=torch.bool, device=device)
    improvable = torch.ones([rows, 1], dtype=torch.bool, device=device)
    first_beams = torch.arange(kept, device=device).unsqueeze(0) < num_beams
    offsets = torch.arange(rows, device=device).unsqueeze(1) * num_beams
    for tokens in range(1, most):
        flat = open_ids[:, :, :tokens].reshape(rows * num_beams, tokens)
        logs = torch.log_softmax(logits.float(), -1)
        logs = self._score(logs, flat, input_ids, max_new_tokens, first_token)
        vocabulary = logs.size(1)
        logs = logs.reshape(rows, num_beams, vocabulary) + open_scores.unsqueeze(2)
        best, chosen = logs.reshape(rows, -1).topk(kept)
        parents, token = chosen // vocabulary, chosen % vocabulary
        tried = self._gather(open_ids, parents)
        tried[:, :, tokens] = token
        ended = {ended}
        if tokens == max_new_tokens:
            ended = torch.ones_like(ended)
        still_open = best + ended.to(torch.float32) * -1e9
        following = still_open.topk(num_beams)[1]
        open_ids = self._gather(tried, following)
        open_scores = self._gather(still_open, following)
        just_finished = ended & first_beams
        final = best / (float(tokens) ** {length_penalty})
        {full}
        final = final + (~improvable).to(torch.float32) * -1e9
        final = final + (~just_finished).to(torch.float32) * -1e9
        merged = torch.cat([scores, final], 1)
        winners = merged.topk(num_beams)[1]
        scores = self._gather(merged, winners)
        ids = self._gather(torch.cat([ids, tried], 1), winners)
        all_lengths = torch.cat([lengths, torch.full_like(token, tokens)], 1)
        lengths = self._gather(all_lengths, winners)
        finished = self._gather(torch.cat([finished, just_finished], 1), winners)
        possible = open_scores[:, :1] / (float({hoped}) ** {length_penalty})
        worst = torch.where(finished, scores.min(1, keepdim=True)[0], -1e9)
        improvable = improvable & (possible > worst).any(-1, keepdim=True)
        if bool(ended.all()) or not bool(improvable.any()){stop}:
            break
        order = (self._gather(parents, following) + offsets).reshape(-1)
        own = [one.index_select(0, order) for one in self._grow(own, tokens + 1)]
        position = torch.tensor(tokens, device=device)
        newest = open_ids[:, :, tokens].reshape(-1, 1)
        logits = self.step(attention_mask, newest, position, own, cross)
    return ids[:, 0, :1 + int(lengths[:, 0].max())]
"""


def search_source(
    decoding: Decoding, held: tuple[int, int], capacities: tuple[int, ...]
) -> list[str]:
    """Return the methods to define, in order; ``generate`` is the last.

    Args:
        decoding: constants of the search.
        held: how many tensors ``prefill`` returns after its logits: the decoder's own, which
            ``step`` writes to, and the source's.
        capacities: standard lengths, ascending: sizes of a cache, and the longest source.
    """
    own, cross = held
    first = decoding.forced_bos_token_id
    words = {
        "longest": capacities[-1],
        # The smallest that fits comes last.
        "capacities": list(reversed(capacities)),
        "own": _list_found(1, own),
        "cross": _list_found(1 + own, cross),
        "ended": is_one_of("token", decoding.eos),
        "first": -1 if first is None else first,
        # transformers keeps so many candidates that enough stay open if every end is among them.
        "kept": max(2, 1 + len(decoding.eos)),
        "length_penalty": float(decoding.length_penalty),
        **_write_stopping(decoding),
    }
    for name in ("start", "pad", "fill", "num_beams"):
        words[name] = getattr(decoding, name)
    texts = (_GROW, _GREEDY, _GATHER, _BEAMS, _GENERATE)
    return [write_scores(decoding), *(text.format_map(words).lstrip("\n") for text in texts)]


def _write_stopping(decoding: Decoding) -> dict[str, object]:
    """Write what depends on when beams stop: transformers' ``early_stopping``."""
    never = decoding.early_stopping == "never" and decoding.length_penalty > 0
    hoped = "max_new_tokens" if never else "tokens"
    if decoding.early_stopping != "true":
        return {"hoped": hoped, "full": "", "stop": ""}
    full = "final = final + finished.all(-1, keepdim=True).to(torch.float32) * -1e9"
    return {"hoped": hoped, "full": full, "stop": " or bool(finished.all())"}


def _list_found(first: int, count: int) -> str:
    return ", ".join(f"found[{place}]" for place in range(first, first + count))
