"""Which arguments of ``forward`` an artifact takes, and what each of them means.

Decided from the signature and the config. An argument that a model's tokenizer or processor always
gives has to be built: traced without it, the model would compute with a default that is baked in.
What can't be built is refused with its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.errors import UnsupportedCheckpointError
from tasks.model.vocabulary import Vocabulary, read_json

Kind = Literal["ids", "mask", "segments", "other-ids", "boxes", "values"]

_DECODER = ("decoder_input_ids", "decoder_attention_mask")
#: Heads that make the decoder's ids from the encoder's; BART, T5 and their kin.
_OWN_DECODER_IDS = ("ForSequenceClassification", "ForQuestionAnswering")
#: Ids beside the tokens': the config's field with their number, and the switch without which the
#: model ignores them.
_OTHER_IDS = {
    # RoCBert: the characters' shapes and sounds
    "input_shape_ids": ("shape_vocab_size", "enable_shape"),
    "input_pronunciation_ids": ("pronunciation_vocab_size", "enable_pronunciation"),
    "langs": ("n_langs", "use_lang_emb"),  # XLM: the language of each token
    "task_type_ids": ("task_type_vocab_size", "use_task_id"),  # ERNIE 2
}
#: Number of token types of models that compare types and have no table of them.
_COMPARED_TYPES = {"funnel": 3, "xlnet": 3}
#: Other ids that no tokenizer makes; the model assumes 0 where they are left out.
_ZERO_IDS = ("task_type_ids",)
#: Inputs that only a processor can make; without them the model computes something else.
_UNBUILT = {
    "xpath_tags_seq": "paths of HTML tags (MarkupLM)",
    "entity_ids": "ids of entities with their places (LUKE)",
}
#: Heads that work without them (transformers documents entity_ids as optional for these).
_OPTIONAL = {"entity_ids": ("LukeModel", "LukeForMaskedLM", "LukeForSequenceClassification")}


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One argument of ``forward``, in the order of its signature.

    Attributes:
        name: Name in the signature.
        kind: Meaning of its values: token ``ids``, a ``mask`` of 0 and 1, ``segments`` or
            ``other-ids`` (ids of a vocabulary of their own), ``boxes`` (x0, y0, x1, y1), real
            ``values``.
        axes: ``batch``, ``length``, ``decoder_length`` or fixed sizes.
        dtype: ``int64``, or the variant's for values.
        bounds: Number of ids; one number for each column where the last axis is fixed.
        pad: Value that fills up to a standard length; None: padding would change the result.
        fill: Value of the whole argument when a caller leaves it out; None: required.
    """

    name: str
    kind: Kind
    axes: tuple[str, ...]
    dtype: str = "int64"
    bounds: tuple[int, ...] = ()
    pad: int | None = 0
    fill: int | None = None


def text_arguments(
    kind: Any, config: Any, vocabulary: Vocabulary, choices: int | None
) -> tuple[Argument, ...]:
    """Return the arguments of a model that reads token ids.

    Args:
        kind: Class of the model.
        config: Configuration of the model.
        vocabulary: Token ids of the model.
        choices: Rows of ids that belong to one question; None for other tasks.

    Raises:
        UnsupportedCheckpointError: It takes no ids, or something that only its processor can make.
    """
    names = list(inspect.signature(kind.forward).parameters)
    if "input_ids" not in names:
        raise UnsupportedCheckpointError(
            f"{kind.__name__}: expected forward() to take input_ids, got {names}. "
            "Only models that read token ids can be converted for this task: ask for another."
        )
    _check_buildable(kind, names)
    inner = () if choices is None else (str(choices),)
    known = _find_known(config, vocabulary, inner)
    pair = bool(getattr(config, "is_encoder_decoder", False))
    if not pair or kind.__name__.endswith(_OWN_DECODER_IDS):
        known = {name: one for name, one in known.items() if name not in _DECODER}
    return tuple(known[name] for name in names if name in known)


def check_tokenizer(folder: Path, kind: Any, config: Any, inputs: Sequence[str]) -> None:
    """Refuse a checkpoint whose tokenizer makes an input that the artifact lacks.

    The reverse is no fault: a tokenizer that leaves ``token_type_ids`` out, though the model has
    two types, means the first type everywhere. The artifact keeps them as an input that is filled
    with 0, so that consumers with and without them get eager's outputs.

    Args:
        folder: Folder of the checkpoint; without a tokenizer's config nothing is refused.
        kind: Class of the model.
        config: Configuration of the model.
        inputs: Names of the artifact's inputs.

    Raises:
        UnsupportedCheckpointError: ``model_input_names`` has an argument of ``forward`` that is
            no input of the artifact.
        UnsafeCheckpointError: The tokenizer's config is damaged.
    """
    named = read_json(folder / "tokenizer_config.json").get("model_input_names") or []
    taken = inspect.signature(kind.forward).parameters
    lacking = [name for name in named if name in taken and name not in inputs]
    if hasattr(config, "type_vocab_size"):
        # They are an input unless there is one type alone, and then they have no effect.
        lacking = [name for name in lacking if name != "token_type_ids"]
    if lacking:
        raise UnsupportedCheckpointError(
            f"tokenizer_config.json: expected model_input_names among {', '.join(inputs)}, got "
            f"{', '.join(lacking)}, which {kind.__name__} takes and which can't be made here. "
            "Traced without it, the model would be another one; if texts are really embedded "
            "without it, take it out of model_input_names."
        )


def _check_buildable(kind: Any, names: list[str]) -> None:
    for name, meaning in _UNBUILT.items():
        if name in names and kind.__name__ not in _OPTIONAL.get(name, ()):
            raise UnsupportedCheckpointError(
                f"{kind.__name__}: expected inputs that can be made from text alone, got {name}: "
                f"{meaning}. Traced without it, the model would be another one: name a "
                "checkpoint that reads text alone."
            )


def _find_known(config: Any, vocabulary: Vocabulary, inner: tuple[str, ...]) -> dict[str, Argument]:
    axes, decoder = ("batch", *inner, "length"), ("batch", "decoder_length")
    pad = vocabulary.pad
    known = [
        Argument(name="input_ids", kind="ids", axes=axes, bounds=(vocabulary.size,), pad=pad),
        Argument(name="attention_mask", kind="mask", axes=axes, fill=1),
        Argument(
            name="decoder_input_ids",
            kind="ids",
            axes=decoder,
            bounds=(vocabulary.size,),
            pad=pad,
        ),
        Argument(name="decoder_attention_mask", kind="mask", axes=decoder, fill=1),
        *_find_segments(config, axes),
        *_find_boxes(config, axes),
    ]
    return {one.name: one for one in [*known, *_find_other_ids(config, axes)]}


def _find_other_ids(config: Any, axes: tuple[str, ...]) -> list[Argument]:
    found = []
    for name, (field, switch) in _OTHER_IDS.items():
        count = getattr(config, field, 0) or 0
        if isinstance(count, int) and count > 1 and getattr(config, switch, False):
            fill = 0 if name in _ZERO_IDS else None
            found.append(
                Argument(name=name, kind="other-ids", axes=axes, bounds=(count,), fill=fill)
            )
    return found


def _find_segments(config: Any, axes: tuple[str, ...]) -> list[Argument]:
    """Return the token types; TAPAS has seven columns, Gemma 3 takes the argument and has none."""
    # Where they are left out, nearly every model assumes the first type: fill is 0, and
    # tasks.validate.left_out requires them of the others.
    columns = getattr(config, "type_vocab_sizes", None)
    if columns:
        bounds = tuple(int(size) for size in columns)
        axes = (*axes, str(len(bounds)))
    else:
        default = _COMPARED_TYPES.get(config.model_type, 0)
        bounds = (getattr(config, "type_vocab_size", default) or 0,)
    if min(bounds) < 2:
        return []
    return [Argument(name="token_type_ids", kind="segments", axes=axes, bounds=bounds, fill=0)]


def _find_boxes(config: Any, axes: tuple[str, ...]) -> list[Argument]:
    """Return places of tokens on a page: whole numbers in LayoutLM, parts of the page in BROS."""
    count = getattr(config, "max_2d_position_embeddings", 0) or 0
    axes = (*axes, "4")
    if getattr(config, "bbox_scale", None):
        return [Argument(name="bbox", kind="boxes", axes=axes, dtype="float32", bounds=(1,))]
    return [Argument(name="bbox", kind="boxes", axes=axes, bounds=(count,))] if count > 1 else []
