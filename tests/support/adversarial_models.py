"""Faults that a trace has and does not show on its own input: each with its cause and its probes.

Most are written as a changed ``forward`` over tiny real models. In the ``architecture`` eager
computes it too, rightly, and the trace keeps the branch or value of its own input: what happens to
real model code. In the ``conversion`` the traced copy alone has it: what a converter can do wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers

from tests.support.tiny import BERT, PAIR, ROBERTA

#: Gets the original ``forward`` and the named inputs, and returns what the faulty one returns.
Changed = Callable[..., Any]
_SEP = 2
_LAST_ID = 255
_MASSIVE = 400.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way to be wrong.

    Attributes:
        name: Name in the test's name.
        cause: Cause in one line.
        caught_by: Probes that must fail, all of them.
        changed: The faulty forward.
        where: Place that computes it; see the module.
        checkpoint: Name of a tiny model.
        task: Task of the conversion.
        spared: Probes that must pass, since the fault does not touch them.
        alone: Whether no other probe fails.
        silent: Whether the trace equals eager on the traced input.
        exact: Whether padding changes eager's outputs, so that only exact lengths are taken.
        length: The one standard length.
        batch: Rows in one traced call.
    """

    name: str
    cause: str
    caught_by: tuple[str, ...]
    changed: Changed
    where: Literal["architecture", "conversion"]
    checkpoint: str = "bert"
    task: str = "feature-extraction"
    spared: tuple[str, ...] = ()
    alone: bool = False
    silent: bool = True
    exact: bool = False
    length: int = 8
    batch: int = 2


def change_class(monkeypatch: Any, class_name: str, changed: Changed) -> None:
    """Give a whole architecture another forward: eager and trace alike."""
    kind = getattr(transformers, class_name)
    inner = kind.forward

    @functools.wraps(inner)
    def forward(self: Any, **feed: Any) -> Any:
        return changed(functools.partial(inner, self), **feed)

    monkeypatch.setattr(kind, "forward", forward)


def change_instance(model: Any, changed: Changed) -> None:
    """Give one model object another forward."""
    inner = model.forward

    @functools.wraps(inner)
    def forward(**feed: Any) -> Any:
        return changed(inner, **feed)

    model.forward = forward


def scale(outputs: Any, factor: float | torch.Tensor = 1.5) -> Any:
    """Change the first output where it is clearly seen."""
    name = next(iter(outputs))
    outputs[name] = outputs[name] * factor
    return outputs


def _parity(run: Changed, *, input_ids: Any, **rest: Any) -> Any:
    outputs = run(input_ids=input_ids, **rest)
    return scale(outputs) if int(input_ids.sum()) % 2 else outputs


def _decoder_parity(run: Changed, *, decoder_input_ids: Any, **rest: Any) -> Any:
    outputs = run(decoder_input_ids=decoder_input_ids, **rest)
    return scale(outputs) if int(decoder_input_ids.sum()) % 2 else outputs


def _last_id(run: Changed, *, input_ids: Any, **rest: Any) -> Any:
    outputs = run(input_ids=input_ids, **rest)
    return scale(outputs) if bool((input_ids == _LAST_ID).sum() > 2) else outputs


def _few_ids(run: Changed, *, input_ids: Any, **rest: Any) -> Any:
    outputs = run(input_ids=input_ids, **rest)
    return scale(outputs) if len(input_ids.unique()) < 2 else outputs


def _separators(run: Changed, *, input_ids: Any, **rest: Any) -> Any:
    outputs = run(input_ids=input_ids, **rest)
    return scale(outputs) if int((input_ids == _SEP).sum(1).min()) else outputs


def _global_separators(run: Changed, *, input_ids: Any, **rest: Any) -> Any:
    return run(input_ids=input_ids, global_attention_mask=(input_ids == _SEP).long(), **rest)


def _any_padding(run: Changed, *, attention_mask: Any, **rest: Any) -> Any:
    outputs = run(attention_mask=attention_mask, **rest)
    return outputs if bool(attention_mask.all()) else scale(outputs)


def _no_mask_if_full(run: Changed, *, attention_mask: Any, **rest: Any) -> Any:
    # What transformers 4 did outside of tracing: no mask is faster, and the same.
    shown = torch.ones_like(attention_mask) if bool(attention_mask.all()) else attention_mask
    return run(attention_mask=shown, **rest)


def _left_padding(run: Changed, *, attention_mask: Any, **rest: Any) -> Any:
    outputs = run(attention_mask=attention_mask, **rest)
    return outputs if bool(attention_mask[:, 0].all()) else scale(outputs)


def _hole(run: Changed, *, attention_mask: Any, **rest: Any) -> Any:
    outputs = run(attention_mask=attention_mask, **rest)
    holes = attention_mask[:, 0].bool() & (attention_mask.diff(dim=1) > 0).any(1)
    return scale(outputs) if bool(holes.any()) else outputs


def _lonely_token(run: Changed, *, attention_mask: Any, **rest: Any) -> Any:
    outputs = run(attention_mask=attention_mask, **rest)
    return scale(outputs) if bool((attention_mask.sum(1) == 1).any()) else outputs


def _last_token(run: Changed, *, attention_mask: Any, **rest: Any) -> Any:
    outputs = run(attention_mask=attention_mask, **rest)
    last = (attention_mask.sum(1) - 1).tolist()
    hidden = outputs["last_hidden_state"]
    outputs["pooler_output"] = torch.stack([hidden[row, at] for row, at in enumerate(last)])
    return outputs


def _mix_rows(run: Changed, **feed: Any) -> Any:
    outputs = run(**feed)
    hidden = outputs["last_hidden_state"]
    outputs["last_hidden_state"] = hidden + 0.01 * hidden[:, :1].mean(0, keepdim=True)
    return outputs


def _pairs(run: Changed, *, input_ids: Any, **rest: Any) -> Any:
    outputs = run(input_ids=input_ids, **rest)
    return outputs if input_ids.shape[0] == 2 else scale(outputs)


def _bake(name: str) -> Changed:
    def change(run: Changed, **feed: Any) -> Any:
        return run(**{**feed, name: torch.tensor(feed[name].tolist())})

    return change


def _bake_positions(run: Changed, *, input_ids: Any, **rest: Any) -> Any:
    from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

    positions = RobertaEmbeddings.create_position_ids_from_input_ids(input_ids, 1)
    return run(input_ids=input_ids, position_ids=torch.tensor(positions.tolist()), **rest)


def _ignore(name: str) -> Changed:
    def change(run: Changed, **feed: Any) -> Any:
        return run(**{**feed, name: torch.ones_like(feed[name])})

    return change


def _constant(run: Changed, **feed: Any) -> Any:
    outputs = run(**feed)
    for name, tensor in outputs.items():
        outputs[name] = torch.tensor(tensor.tolist())
    return outputs


def _swap(run: Changed, **feed: Any) -> Any:
    outputs = run(**feed)
    outputs["start_logits"], outputs["end_logits"] = outputs["end_logits"], outputs["start_logits"]
    return outputs


def _noisy(run: Changed, **feed: Any) -> Any:
    outputs = run(**feed)
    name = next(iter(outputs))
    outputs[name] = outputs[name] + 1e-3 * torch.randn_like(outputs[name])
    return outputs


def _round(steps: float) -> Changed:
    def change(run: Changed, **feed: Any) -> Any:
        outputs = run(**feed)
        name = next(iter(outputs))
        step = outputs[name].abs().max() / steps
        outputs[name] = (outputs[name] / step).round() * step
        return outputs

    return change


_FRESH = tuple(f"fresh-{seed}" for seed in range(8))
_MASKED = ("left-pad", "hole", "one-token")
_PADDED = ("right-pad-1", "right-pad-2", "right-pad-4")
_QA: dict[str, Any] = {"checkpoint": "roberta-qa", "task": "question-answering"}
_PAIR: dict[str, Any] = {"checkpoint": "bart", "task": "text2text-generation"}

#: Code that looks at values while it runs: eager is right, and the trace keeps one way for ever.
ARCHITECTURES = (
    Fault(
        name="a branch on the token ids",
        cause="`if` over a sum of the ids",
        changed=_parity,
        caught_by=("fresh-2", "fresh-3", "repeated-ids"),
        where="architecture",
    ),
    Fault(
        name="a branch on the last id of the vocabulary",
        cause="`if` over an id that random rows seldom hold several times",
        changed=_last_id,
        caught_by=("edge-ids",),
        alone=True,
        where="architecture",
    ),
    Fault(
        name="a branch on how many ids differ",
        cause="`if len(ids.unique())`: the experts that are hit, in small",
        changed=_few_ids,
        caught_by=("constant-ids",),
        alone=True,
        where="architecture",
    ),
    Fault(
        name="a branch on the number of special tokens",
        cause="`if` over a count of separators, which ordinary ids leave out",
        changed=_separators,
        caught_by=("special-ids",),
        alone=True,
        where="architecture",
        **_QA,
    ),
    Fault(
        name="global attention on separators",
        cause="Longformer asks `is_index_global_attn.any()` of the traced input",
        changed=_global_separators,
        caught_by=("special-ids",),
        alone=True,
        where="architecture",
        checkpoint="longformer-mlm",
        task="fill-mask",
    ),
    Fault(
        name="a branch on whether anything is padded",
        cause="`if mask.all()`, where padding is minded: exact lengths",
        changed=_any_padding,
        caught_by=(*_FRESH, "constant-ids"),
        spared=(*_MASKED, *_PADDED),
        where="architecture",
        exact=True,
    ),
    Fault(
        name="a branch on left padding",
        cause="`if mask[:, 0].all()`",
        changed=_left_padding,
        caught_by=("left-pad", "one-token"),
        alone=True,
        where="architecture",
    ),
    Fault(
        name="a branch on a hole in the mask",
        cause="`if` over a token that is shown behind a hidden one",
        changed=_hole,
        caught_by=("hole",),
        alone=True,
        where="architecture",
    ),
    Fault(
        name="a branch on a lonely token",
        cause="`if` over rows of one visible token",
        changed=_lonely_token,
        caught_by=("right-pad-1", "one-token"),
        alone=True,
        where="architecture",
    ),
    Fault(
        name="an index from tolist",
        cause="the last token's place is a Python integer",
        changed=_last_token,
        caught_by=(*_FRESH, *_PADDED),
        where="architecture",
    ),
    Fault(
        name="a branch on the decoder's ids",
        cause="`if` over a sum of the decoder's ids",
        changed=_decoder_parity,
        caught_by=("fresh-0", "fresh-2"),
        where="architecture",
        **_PAIR,
    ),
    Fault(
        name="rows that see each other",
        cause="a mean over the batch",
        changed=_mix_rows,
        caught_by=("batch-3",),
        alone=True,
        where="architecture",
    ),
    Fault(
        name="a branch on the batch size",
        cause="`if ids.shape[0] == 2`, the batch that was traced",
        changed=_pairs,
        caught_by=("batch-3",),
        alone=True,
        where="architecture",
    ),
)

#: What a conversion can do to a sound architecture.
CONVERSIONS = (
    Fault(
        name="no mask because the traced one was full",
        cause="a mask of ones is left out for speed, and the trace leaves every mask out",
        changed=_no_mask_if_full,
        caught_by=("right-pad-1", "dispatch-1"),
        alone=True,
        where="conversion",
        length=2,
        batch=1,
    ),
    Fault(
        name="a baked mask",
        cause="the traced mask as a constant",
        changed=_bake("attention_mask"),
        caught_by=("fresh-0", *_MASKED, *_PADDED),
        where="conversion",
    ),
    Fault(
        name="baked token types",
        cause="the traced segments as a constant",
        changed=_bake("token_type_ids"),
        caught_by=("other-token_type_ids",),
        where="conversion",
    ),
    Fault(
        name="baked position ids",
        cause="RoBERTa counts positions from the ids' padding; the traced ones as a constant",
        changed=_bake_positions,
        caught_by=("fresh-0", "left-pad", "one-token"),
        where="conversion",
        **_QA,
    ),
    Fault(
        name="an ignored decoder mask",
        cause="the traced decoder is causal and padded at its end, where the mask has no effect",
        changed=_ignore("decoder_attention_mask"),
        caught_by=("decoder-hole",),
        alone=True,
        where="conversion",
        **_PAIR,
    ),
    Fault(
        name="a constant output",
        cause="the traced outputs as a constant",
        changed=_constant,
        caught_by=(*_FRESH, "constant-ids", "edge-ids", "batch-3"),
        where="conversion",
    ),
    Fault(
        name="outputs in another order",
        cause="start and end have one shape",
        changed=_swap,
        caught_by=("traced-input", *_FRESH),
        where="conversion",
        silent=False,
        **_QA,
    ),
    Fault(
        name="chance in the trace",
        cause="noise is drawn inside the graph",
        changed=_noisy,
        caught_by=("traced-input", *_FRESH),
        where="conversion",
        silent=False,
    ),
    Fault(
        name="outputs in eight bits",
        cause="quantised to 1/127 of the largest value",
        changed=_round(127),
        caught_by=("traced-input", *_FRESH),
        where="conversion",
        silent=False,
    ),
)

_PAIR_SIZES = {name: size for name, size in PAIR.items() if name != "max_position_embeddings"}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 12,
    "factor": 8.0,
}
#: Architectures of the facts file that ``tests.support.tiny`` has not: name -> as there.
REAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "funnel": (
        "FunnelForMaskedLM",
        "FunnelConfig",
        {
            "vocab_size": 256,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
            "d_model": 32,
            "n_head": 4,
            "d_head": 8,
            "d_inner": 64,
        },
    ),
    "led": (
        "LEDForConditionalGeneration",
        "LEDConfig",
        {
            **_PAIR_SIZES,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "attention_window": [8],
            "max_encoder_position_embeddings": 128,
            "max_decoder_position_embeddings": 128,
        },
    ),
    "longformer-qa": (
        "LongformerForQuestionAnswering",
        "LongformerConfig",
        {**ROBERTA, "attention_window": 8, "sep_token_id": _SEP},
    ),
    "longrope": (
        "Phi3ForCausalLM",
        "Phi3Config",
        {
            **BERT,
            "num_key_value_heads": 4,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "original_max_position_embeddings": 12,
            "rope_parameters": _LONGROPE,
        },
    ),
}

#: No fault: 1e-5 is allowed, and this is 5e-7.
ROUNDED = _round(1e6)


def upcast_lost(model: Any) -> None:
    """Compute the norms of a Llama in its own half precision and not in float32."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(_half_norm, module)


def _half_norm(norm: Any, hidden: Any) -> Any:
    variance = hidden.pow(2).mean(-1, keepdim=True)
    return norm.weight * (hidden * torch.rsqrt(variance + norm.variance_epsilon))


def massive_row(weights: dict[str, torch.Tensor], token: int) -> None:
    """Give one token the massive activation that real language models have: its square is inf."""
    weights["model.embed_tokens.weight"][token, 0] = _MASSIVE


def with_infinite_mask(attention: Changed) -> Changed:
    """Replace the lowest number in an attention's mask by minus infinity."""

    def attend(
        module: Any, query: Any, key: Any, value: Any, mask: Any, *rest: Any, **options: Any
    ) -> Any:
        mask = mask.masked_fill(mask == torch.finfo(mask.dtype).min, -torch.inf)
        return attention(module, query, key, value, mask, *rest, **options)

    return attend
