"""`Model.predict` and what a model says of itself: the base of `Model` that knows of texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import EllipsisType
from typing import Any

from tracefleet.manifest import Manifest
from tracefleet.reader.outputs import Outputs
from tracefleet.reader.predict import Asked, classify_media, predict
from tracefleet.reader.texts import Texts
from tracefleet.text.rows import is_text, read_rows
from tracefleet.text.tokenize import Row


class Answering(ABC):
    """A model that can be asked in texts; `Model` runs it."""

    manifest: Manifest
    _texts: Texts

    @abstractmethod
    def __call__(self, *inputs: Any, **named: Any) -> Outputs:
        """Run the model; see `Model`."""

    @abstractmethod
    def stream(self, rows: Iterable[Any], *, window: int = 1024) -> Iterator[Outputs]:
        """Run rows one by one; see `Model`."""

    @abstractmethod
    def _write(self, rows: list[Row], *, truncate: bool) -> list[str]:
        """Answer texts with texts; see `Generating`."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """The standard lengths, ascending, in tokens."""
        return self.manifest.lengths

    def __repr__(self) -> str:
        manifest, variant = self.manifest, self.manifest.variant
        lengths = ", ".join(map(str, manifest.lengths))
        return f"<Model {manifest.source}: {variant.task}, lengths {lengths}, {variant.dtype}>"

    def predict(
        self,
        texts: Any = None,
        *,
        truncate: bool = False,
        prompt: str | None = None,
        prompt_name: str | None = None,
        top_k: int | EllipsisType | None = ...,
        aggregation: str = "none",
        choices: Sequence[str] | None = None,
        **named: Any,
    ) -> Any:
        """Answer texts as transformers' pipeline and sentence-transformers do for the task.

        ====================  ==================================================================
        sentence-similarity   array ``(rows, width)``, float32, as ``encode`` returns
        feature-extraction    array ``(tokens, width)`` for each text
        text-classification   ``{"label", "score"}``; with ``top_k`` a list of them, best first
        token-classification  list of entities; with ``aggregation="simple"`` whole ones
        question-answering    ``{"score", "start", "end", "answer"}``; rows are pairs
                              ``(question, context)``
        fill-mask             list of ``top_k`` (5) fillings; of several masks a list for each
        multiple-choice       ``{"choice", "index", "score"}``; give ``choices``
        text2text-generation  the text that ``generate`` writes
        ====================  ==================================================================

        Images and sounds are given by name as their processor returns them (``pixel_values=…``);
        each gets a list of ``top_k`` (5) labels.

        Args:
            texts: a text; a tuple of two texts, which is a pair; or a list of either. One text or
                pair gets its answer by itself, a list gets a list.
            truncate: whether to cut a text that is longer than the largest standard length. Without
                it such a text is refused: the answer to a part may be another one. Long contexts of
                a question are read in overlapping windows and never cut. Sentence vectors are cut
                at the checkpoint's ``max_seq_length`` without being asked, as ``encode`` does,
                where the conversion is at least as long.
            prompt: put before each text (the first of each pair); an empty one: no prompt.
            prompt_name: name of one of the checkpoint's prompts; left out: its default one.
            top_k: how many answers; None: every label; left out: the task's default.
            aggregation: ``none`` or ``simple``.
            choices: what each text is to be continued with.
            named: inputs of images or sounds.

        Raises:
            InputTooLongError: a text is too long, and is not to be cut.
            TextRefusedError: this conversion takes no texts, or its task has no answers.
            NoGenerationError: an encoder-decoder whose conversion does not generate.
            ValueError: no texts, texts mixed with pairs, no mask to fill, an unknown prompt.
        """
        asked = Asked(
            truncate=truncate,
            prompt=prompt,
            prompt_name=prompt_name,
            top_k=top_k,
            aggregation=aggregation,
            choices=choices,
        )
        if texts is None and named:
            return classify_media(self, self._texts, named, asked)
        if named:
            raise ValueError(f"predict: expected texts alone, got {sorted(named)} beside them")
        return predict(self, self._texts, texts, asked)

    def _read_texts(self, given: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return a call's inputs with ids in the place of texts."""
        if not is_text(given["input_ids"]):
            asked = sorted(name for name, value in options.items() if value)
            if asked:
                raise ValueError(f"{', '.join(asked)}: expected texts beside it, got ids")
            return given
        if given["attention_mask"] is not None:
            raise ValueError("attention_mask: expected none beside texts, which bring their own")
        rows = read_rows(given["input_ids"])
        rows = self._texts.prompted(rows, options["prompt"], options["prompt_name"])
        encodings = self._texts.encode(rows, truncate=bool(options["truncate"]))
        return {**given, **self._texts.feed(encodings)}
