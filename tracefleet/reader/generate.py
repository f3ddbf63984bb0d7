"""Answers of encoder-decoders: a call of the bundle's ``generate``, in ids or in texts.

The search itself is in the archive. Here inputs are checked with errors of their own types, and
what a call leaves out is what the checkpoint's generation config says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tracefleet.manifest import Manifest
from tracefleet.reader.search import AS_CONFIGURED, Search, cut_answer, find_generation, search
from tracefleet.reader.texts import Texts
from tracefleet.text.rows import is_single, is_text, read_rows
from tracefleet.text.tokenize import Row

if TYPE_CHECKING:
    import torch

#: Texts of nearly the same length that are answered together.
_TOGETHER = 16


class Generating:
    """The method ``generate`` of an opened conversion."""

    manifest: Manifest
    device: str
    _module: torch.jit.ScriptModule
    _texts: Texts

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        first_token: int | str | None = None,
        truncate: bool = False,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> Any:
        """Return an encoder-decoder's answers, as ``model.generate`` of transformers returns them.

        Texts get texts, ids get ids. What is left out is as the checkpoint's generation config
        says: ``manifest.generation`` has it, and what was proved.

        Args:
            input_ids: a text or a list of texts; or ids, as for a call of the model.
            attention_mask: as for a call of the model; texts bring their own.
            max_new_tokens: most ids of an answer, beside the first one.
            num_beams: number of beams; 1 is greedy search.
            first_token: id, or token, that answers begin with after the start, such as a language's
                (``forced_bos_token_id`` of transformers).
            truncate: whether texts are cut to the largest standard length.
            prompt: put before each text.
            prompt_name: name of one of the checkpoint's prompts, such as T5's
                ``translation_en_to_de``.

        Returns:
            The answer of one text, or a list with one for each text, without special tokens. Of
            ids: ids of shape ``(rows, tokens)``, the start first, filled up at their ends, as a
            torch tensor if an input is one, else as a NumPy array.

        Raises:
            NoGenerationError: the conversion does not generate; the message says why.
            InputTooLongError: a source has more tokens than the largest standard length.
            AnswerTooLongError: ``max_new_tokens`` is over the largest standard length.
            TextRefusedError: this conversion takes no texts.
            ValueError: what no search takes: an empty row, no beams, an unknown id or token.
        """
        import torch

        if isinstance(input_ids, Mapping):
            given = {"attention_mask": attention_mask, **input_ids}
        else:
            given = {"input_ids": input_ids, "attention_mask": attention_mask}
        find_generation(self.manifest)
        first = _find_token(self._texts, first_token)
        asked = Search(max_new_tokens=max_new_tokens, num_beams=num_beams, first_token=first)
        if is_text(given.get("input_ids")):
            return self._answer(given, asked, truncate, prompt, prompt_name)
        if truncate or prompt or prompt_name:
            raise ValueError("truncate, prompt, prompt_name: expected texts beside them, got ids")
        answer = search(self.manifest, self._module, self.device, given, asked)
        if any(isinstance(value, torch.Tensor) for value in given.values()):
            return answer
        return answer.cpu().numpy()

    def _answer(
        self,
        given: Mapping[str, Any],
        asked: Search,
        truncate: bool,
        prompt: str | None,
        prompt_name: str | None,
    ) -> Any:
        """Return the answer of each text, or of the only one."""
        if given["attention_mask"] is not None:
            raise ValueError("attention_mask: expected none beside texts, which bring their own")
        rows = self._texts.prompted(read_rows(given["input_ids"]), prompt, prompt_name)
        answers = self._write(rows, truncate=truncate, asked=asked)
        return answers[0] if is_single(given["input_ids"]) else answers

    def _write(
        self, rows: list[Row], *, truncate: bool, asked: Search = AS_CONFIGURED
    ) -> list[str]:
        """Answer each text with a text; those of nearly the same length run together."""
        made = find_generation(self.manifest)
        if any(not isinstance(row, str) for row in rows):
            raise ValueError("text2text-generation: expected texts, got pairs of texts")
        encodings = self._texts.encode(rows, truncate=truncate)
        ordered = sorted(range(len(rows)), key=lambda place: len(encodings[place].ids))
        answers = [""] * len(rows)
        for start in range(0, len(ordered), _TOGETHER):
            places = ordered[start : start + _TOGETHER]
            given = self._texts.feed([encodings[place] for place in places])
            found = search(self.manifest, self._module, self.device, given, asked)
            for place, ids in zip(places, found.tolist(), strict=True):
                answers[place] = self._texts.decode(cut_answer(ids, made.eos))
        return answers


def _find_token(texts: Texts, token: int | str | None) -> int | None:
    """Return the id of a token that is named by its text; ids stay as they are."""
    if not isinstance(token, str):
        return token
    found = texts.tokenizer.find_id(token)
    if found is None:
        raise ValueError(
            f"first_token: expected a token of the vocabulary, such as a language's code, got "
            f"{token!r}"
        )
    return found
