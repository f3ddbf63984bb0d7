"""The texts of an opened conversion: its `TextSpec`, its tokenizer, and ids made by them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from tracefleet.errors import InputTooLongError, TextRefusedError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import FileEntry
from tracefleet.text.files import SENTENCE_SIMILARITY, read_spec
from tracefleet.text.opening import Tokenizer, open_tokenizer
from tracefleet.text.rows import add_prompt
from tracefleet.text.spec import TextSpec
from tracefleet.text.tokenize import TOKENIZER, Row, TextTokenizer

#: Inputs that are made of texts -> attribute of the library's encodings.
_FIELDS = {"input_ids": "ids", "token_type_ids": "type_ids"}
_OLD = (
    "it was published before conversions carried their prompts and max_seq_length, without which "
    "its vectors could be others than the checkpoint's"
)


class Texts:
    """Makes ids of texts; reads the tokenizer when it is first needed, once for all threads."""

    def __init__(self, manifest: Manifest, read: Callable[[FileEntry], bytes] | None) -> None:
        self._manifest, self._read_entry = manifest, read
        self._lock = threading.RLock()

    @cached_property
    def spec(self) -> TextSpec:
        """The manifest's section ``text``, or what the published files say in its place."""
        if self._manifest.text is not None:
            return self._manifest.text
        return read_spec(self._read, self._manifest.variant.task)

    @property
    def tokenizer(self) -> Tokenizer:
        """The conversion's tokenizer.

        Raises:
            TextRefusedError: it has none that makes the ids of the checkpoint's own.
        """
        with self._lock:
            return self._tokenizer

    @property
    def positions(self) -> TextTokenizer:
        """The tokenizer, where it tells the position of each token in its text.

        Raises:
            TextRefusedError: it does not, or see ``tokenizer``.
        """
        tokenizer = self.tokenizer
        if not isinstance(tokenizer, TextTokenizer):
            raise self.refuse("its tokenizer does not tell where in a text a token is")
        return tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        manifest, spec = self._manifest, self.spec
        if spec.refused is not None:
            raise self.refuse(spec.refused)
        if manifest.text is None and manifest.variant.task == SENTENCE_SIMILARITY:
            raise self.refuse(_OLD)
        tokenizer = open_tokenizer(spec, self._read)
        if tokenizer is None:
            pieces = spec.pieces
            wanted = TOKENIZER if pieces is None else f"{pieces.model} and {pieces.vocabulary}"
            raise self.refuse(f"it was published without {wanted}")
        return tokenizer

    def refuse(self, reason: str) -> TextRefusedError:
        """Return the error for texts that this conversion can't take."""
        return TextRefusedError(
            f"{self._manifest.source}: expected ids, got texts, which this conversion can't take: "
            f"{reason}. Give ids instead (--ids on the command line), or convert the checkpoint "
            "again, with its tokenizer beside it."
        )

    def prompted(self, rows: list[Row], prompt: str | None, name: str | None) -> list[Row]:
        """Return rows with the prompt that a call asked for, or the default one."""
        found = self.spec.find_prompt(prompt, name)
        return add_prompt(rows, found) if found else rows

    def encode(self, rows: Sequence[Row], *, truncate: bool) -> list[Any]:
        """Return the encoding of each row.

        Args:
            rows: texts or pairs, prompts included.
            truncate: whether to cut rows to the least of the largest standard length and the
                checkpoint's own limit.

        Raises:
            InputTooLongError: a row is longer than the largest standard length, and is not cut.
            TextRefusedError: see ``tokenizer``.
            ValueError: a row has no tokens.
        """
        largest, spec = self._manifest.lengths[-1], self.spec
        most = min(largest, spec.max_tokens or largest)
        limit = most if truncate else None
        encodings = self.tokenizer.encode_all(rows, most=limit, side=spec.truncation_side)
        for place, encoding in enumerate(encodings):
            self._check_size(place, len(encoding.ids), largest)
        return encodings

    def _check_size(self, place: int, size: int, largest: int) -> None:
        if size > largest:
            raise InputTooLongError(
                f"text {place}: {size} tokens; expected at most {largest}, the largest standard "
                "length. Shorten it, pass truncate=True (--truncate), or convert with a longer "
                "length."
            )
        if size == 0:
            raise ValueError(
                f"text {place}: expected at least one token, got a text of which the tokenizer "
                "makes none. Leave it out."
            )

    def feed(self, encodings: Sequence[Any]) -> dict[str, list[list[int]]]:
        """Return the model's inputs by name, one list of numbers for each row."""
        names = {spec.name for spec in self._manifest.inputs}
        made = {}
        for name, field in _FIELDS.items():
            if name in names:
                made[name] = [list(getattr(one, field)) for one in encodings]
        return made

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens.

        Raises:
            TextRefusedError: see ``tokenizer``.
        """
        return self.tokenizer.decode(ids, skip_special=True, clean_up=self.spec.clean_up_spaces)

    def _read(self, name: str) -> bytes | None:
        """Return the checked bytes of a published file of the checkpoint."""
        path = f"model/{name}"
        for file in self._manifest.files:
            if file.path == path and self._read_entry is not None:
                return self._read_entry(file)
        return None
