"""How a checkpoint generates: its own generation config as constants, or why it can't be kept.

The bundle's loop has greedy and beam search, as transformers 5 does them. An option of the config
that the loop lacks would change the answers: it is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from tasks.errors import GenerationError
from tracefleet.decoding import Decoding

#: What a request says: the checkpoint's own search, greedy search instead, or no generation.
Choice = Literal["own", "greedy", "none"]
#: Its models have an encoder and a decoder.
GENERATING_TASK = "text2text-generation"
#: Options that ask for another search than greedy and beams: a request may ask for greedy instead.
_OTHER_SEARCHES: Mapping[str, tuple[object, ...]] = {
    "do_sample": (False,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0, 0.0),
    "constraints": (),
    "force_words_ids": (),
    "penalty_alpha": (),
    "dola_layers": (),
    "num_return_sequences": (1,),
    "prompt_lookup_num_tokens": (),
    "use_mtp": (False,),
    "low_memory": (False,),
}
#: Options that change scores or ends in a way that the loop lacks; values that ask for nothing.
_OTHER_SCORES: Mapping[str, tuple[object, ...]] = {
    "sequence_bias": (),
    "guidance_scale": (1, 1.0),
    "encoder_repetition_penalty": (1, 1.0),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
    "stop_strings": (),
    "max_time": (),
    "token_healing": (False,),
}
#: Options that change no id of a search without sampling: widths of sampling, what is returned, how
#: a cache or a compiler works, and an assistant's (there is none).
_WITHOUT_EFFECT = (
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff"),
    *("eta_cutoff", "output_attentions", "output_hidden_states", "output_scores"),
    *("output_logits", "return_dict_in_generate", "use_cache", "cache_implementation"),
    *("cache_config", "max_cache_len", "compile_config", "disable_compile", "bos_token_id"),
    *("continuous_batching_config", "prefill_chunk_size", "is_assistant", "num_assistant_tokens"),
    *("num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind"),
    *("target_lookbehind", "assistant_early_exit", "assistant_ensemble_weight"),
    *("max_matching_ngram_size", "speculation_type", "transformers_version"),
)
#: Names of transformers' options that have another name or form here.
_IN_OTHER_WORDS = (
    *("decoder_start_token_id", "pad_token_id", "eos_token_id", "bad_words_ids"),
    "max_new_tokens",
)


def read_decoding(config: Any, choice: Choice) -> Decoding:
    """Return the constants of a model's ``generation_config``.

    Args:
        config: ``GenerationConfig`` of the loaded model.
        choice: ``own``, or ``greedy`` to search greedily whatever the config asks for.

    Raises:
        GenerationError: An option asks for something that the loop lacks, or there is no first id.
    """
    if config is None:
        raise GenerationError("generation_config: expected the model to have one, got none.")
    values = {name: value for name, value in config.to_dict().items() if value is not None}
    _refuse_others(values, type(config)().to_dict(), choice)
    start = _read_id("decoder_start_token_id", values, values.get("bos_token_id"))
    eos = _as_ids(values.get("eos_token_id"))
    pad = _read_id("pad_token_id", values, eos[0] if eos else start)
    if "max_new_tokens" in values:
        values["max_length"] = values["max_new_tokens"] + 1
    numbers = {field.name: values[field.name] for field in fields(Decoding) if field.name in values}
    read = {
        "start": start,
        "pad": pad,
        "eos": eos,
        "fill": (pad or eos[0]) if eos else -1,
        "bad_words": _read_bad_words(values, eos),
        "forced_eos_token_id": _as_ids(values.get("forced_eos_token_id")),
        "suppress_tokens": _as_ids(values.get("suppress_tokens")),
        "begin_suppress_tokens": _as_ids(values.get("begin_suppress_tokens")),
        "early_stopping": str(values.get("early_stopping", False)).lower(),
    }
    if choice == "greedy":
        read["num_beams"] = 1
    return Decoding(**{**numbers, **read})


def _refuse_others(values: dict[str, Any], defaults: dict[str, Any], choice: Choice) -> None:
    """Refuse the first option that the loop lacks; those that transformers ignores are ignored."""
    known = {*_WITHOUT_EFFECT, *_IN_OTHER_WORDS, *(field.name for field in fields(Decoding))}
    lacking = {**_OTHER_SEARCHES, **_OTHER_SCORES}
    for name, value in sorted(values.items()):
        if name in known or name.startswith("_") or value in lacking.get(name, ()):
            continue
        if choice == "greedy" and name in _OTHER_SEARCHES:
            continue
        # A field that no transformers knows is the author's own note.
        if name in lacking or (name in defaults and value != defaults[name]):
            raise GenerationError(_describe_refusal(name, value))


def _describe_refusal(name: str, value: object) -> str:
    hint = "Take it out of the checkpoint's generation_config.json."
    if name in _OTHER_SEARCHES:
        hint = "Ask for generation 'greedy' to search greedily instead."
    return (
        f"{name}: expected greedy or beam search with options that the bundle's loop has, got "
        f"{value!r} in the checkpoint's generation config. {hint}"
    )


def _read_id(name: str, values: dict[str, Any], otherwise: Any) -> int:
    found = values.get(name, otherwise)
    if not isinstance(found, int):
        raise GenerationError(
            f"{name}: expected one id in generation_config.json or config.json, got {found}. Add "
            "it to the checkpoint's generation_config.json."
        )
    return found


def _as_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _read_bad_words(values: dict[str, Any], eos: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the sequences that never come out; transformers lets an end be none of them."""
    words = [tuple(word) for word in values.get("bad_words_ids") or ()]
    return tuple(word for word in words if not (len(word) == 1 and word[0] in eos))


def search_greedily(config: Any) -> None:
    """Take everything out of a model's ``generation_config`` that asks for another search."""
    for name in _OTHER_SEARCHES:
        if hasattr(config, name):
            setattr(config, name, None)
    config.num_beams = None
