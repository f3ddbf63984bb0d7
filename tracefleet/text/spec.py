"""What belongs to a conversion's texts: the section ``text`` of its manifest."""

from __future__ import annotations

from dataclasses import dataclass

from tracefleet.errors import ManifestError

SIDES = ("left", "right")
#: Roles of tokens in ``TextSpec.special``, as transformers' tokenizers name them.
ROLES = ("cls", "mask", "pad", "unk")


@dataclass(frozen=True, kw_only=True)
class PieceSpec:
    """A SentencePiece tokenizer with a vocabulary of its own; see ``tracefleet.text.pieces``.

    Attributes:
        model: path of the SentencePiece model in the conversion's folder.
        vocabulary: path of the ids of pieces, JSON.
        begin: tokens that every row begins with, such as the source's language.
        end: tokens that every row ends with.
        unknown: token of pieces that the vocabulary lacks.
        special: ids of tokens that are taken out of a text as they are, and left out of answers.
        added: ids of further tokens that the vocabulary lacks, such as languages.
        codes: whether a text may begin with a token such as ``>>fr<<``.
    """

    model: str
    vocabulary: str
    begin: tuple[str, ...] = ()
    end: tuple[str, ...]
    unknown: str
    special: dict[str, int]
    added: dict[str, int]
    codes: bool = False

    def __post_init__(self) -> None:
        """Refuse what no tokenizer has."""
        tokens = {**self.added, **self.special}
        if not self.special or not all(tokens) or min(tokens.values()) < 0:
            raise ManifestError("text: pieces expected special tokens and their ids, got others")
        try:
            "".join((*tokens, *self.begin, *self.end, self.unknown)).encode()
        except UnicodeEncodeError as error:
            raise ManifestError(
                f"text: pieces expected tokens that UTF-8 can hold: {error}"
            ) from None


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """How texts become ids, and outputs become answers.

    Attributes:
        tokenizer: path of ``tokenizer.json`` in the conversion's folder; None: there is none.
        pieces: the tokenizer of a conversion without that file; None: there is none.
        refused: why texts can't be taken, such as a tokenizer that does more than its file says;
            None: they can.
        max_tokens: most tokens that the checkpoint's own tools give it; None: they name no limit.
        truncation_side: side from which a long text loses tokens: ``left`` or ``right``.
        padding_side: side on which the tokenizer pads; of a question and its context it tells
            which comes first.
        lower_case: whether texts are lower-cased before the tokenizer's own rules.
        prompts: texts that are put before a text, by their names.
        default_prompt: name of the prompt of a call that names none; None: no prompt.
        special: special tokens by their roles, some of ``ROLES``.
        clean_up_spaces: whether decoded text loses the spaces before punctuation.
        labels: names of the classes, by their positions in the logits.
        problem_type: the config's ``problem_type``, such as ``multi_label_classification``.
    """

    tokenizer: str | None = None
    pieces: PieceSpec | None = None
    refused: str | None = None
    max_tokens: int | None = None
    truncation_side: str = "right"
    padding_side: str = "right"
    lower_case: bool = False
    prompts: dict[str, str]
    default_prompt: str | None = None
    special: dict[str, str]
    clean_up_spaces: bool = False
    labels: tuple[str, ...] = ()
    problem_type: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no tokenizer does."""
        for name in ("truncation_side", "padding_side"):
            if getattr(self, name) not in SIDES:
                raise ManifestError(
                    f"text: {name} expected one of {SIDES}, got {getattr(self, name)!r}"
                )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ManifestError(f"text: max_tokens expected at least 1, got {self.max_tokens}")

    def label(self, place: int) -> str:
        """Return the name of a class; one without a name is ``LABEL_`` and its position."""
        return self.labels[place] if place < len(self.labels) else f"LABEL_{place}"

    def find_prompt(self, prompt: str | None = None, name: str | None = None) -> str:
        """Return the text that goes before each text of a call.

        Args:
            prompt: the prompt itself; an empty one: none, whatever the default is.
            name: name of one of ``prompts``; None: ``default_prompt``.

        Raises:
            ValueError: both are given, or there is no prompt of that name.
        """
        if prompt is not None and name is not None:
            raise ValueError("expected prompt or prompt_name, got both")
        if prompt is not None:
            return prompt
        name = name if name is not None else self.default_prompt
        if name is None:
            return ""
        if name not in self.prompts:
            raise ValueError(
                f"prompt_name: expected one of {sorted(self.prompts)}, got {name!r}. Give the "
                "prompt itself with prompt."
            )
        return self.prompts[name]
