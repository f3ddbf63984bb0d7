"""CTranslate2 as a peer of ``make bench-generate``, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Runs one call: ids, number of beams, new tokens of every answer.
Run = Callable[[list[list[int]], int, int], Any]
COMPUTE_TYPES = ("float32", "int8")


def open_ctranslate2(folder: Path, work: Path, compute_type: str) -> Run | str:
    """Convert a checkpoint and return what runs it, or why it can't be measured.

    Args:
        folder: Checkpoint with random weights, without a tokenizer.
        work: Folder for the converted model.
        compute_type: One of ``COMPUTE_TYPES``.
    """
    import torch

    try:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter
    except ImportError:
        return "ctranslate2 is not installed"

    class Converter(TransformersConverter):  # type: ignore[misc]
        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            return _Words(folder)

    target = work / f"{folder.name}-{compute_type}"
    try:
        Converter(str(folder)).convert(str(target), quantization=compute_type)
    except Exception as error:  # the converter has no error of its own
        return f"its converter does not take the checkpoint: {error}"
    threads = torch.get_num_threads()
    translator = ctranslate2.Translator(
        str(target), device="cpu", compute_type=compute_type, intra_threads=threads
    )

    def run(ids: list[list[int]], beams: int, tokens: int) -> Any:
        rows = [[f"t{one}" for one in row] for row in ids]
        lengths = {"max_decoding_length": tokens, "min_decoding_length": tokens}
        return translator.translate_batch(rows, beam_size=beams, **lengths)

    return run


class _Words:
    """Stands for the tokenizer, of which the converter wants the vocabulary alone."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder)
        self._names = [f"t{place}" for place in range(config.vocab_size)]
        if config.pad_token_id == config.vocab_size - 1:  # Marian's, which the converter removes
            self._names[-1] = "<pad>"
        self.eos_token = self._names[config.eos_token_id]
        self.pad_token = self.bos_token = self._names[config.pad_token_id]
        self.unk_token = self._names[3]

    def convert_ids_to_tokens(self, place: int) -> str:
        return self._names[place]

    def get_vocab(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self._names)}
