"""Which files of a checkpoint one conversion needs: no more are fetched, none is guessed.

A checkpoint often carries its weights four times over, for four frameworks; one form is enough.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from tasks.errors import UnsafeCheckpointError, UnsupportedCheckpointError
from tasks.fetch.source import SourceRequest, join_names, safe_path
from tracefleet.text.files import PROMPTS, SENTENCE_CONFIGS

CONFIG = "config.json"
CARD = "README.md"
SAFETENSORS_INDEX = "model.safetensors.index.json"
MODULES = "modules.json"
MAX_INDEX_BYTES = 64 << 20

#: What a consumer needs to turn text into ids; published beside the bundle. The names are those of
#: ``VOCAB_FILES_NAMES`` in the tokenizers of transformers 5.23.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "source.spm",
    "target.spm",
    "target_vocab.json",
    "spm.model",  # DeBERTa-v3 has no other
    "spm_char.model",
    "sentencepiece.model",
    "prophetnet.tokenizer",
    "bpe.codes",
    "dict.txt",
    "vocab-src.json",
    "vocab-tgt.json",
    "entity_vocab.json",
    "word_shape.json",
    "word_pronunciation.json",
    "byte_maps.json",
    "emoji.json",
)
#: What a consumer needs to turn images and sounds into inputs; published beside the bundle too.
#: Its own file, and the one in which a tokenizer or another processor may be combined with it.
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_DESCRIPTION = (
    CARD,
    "generation_config.json",
    *TOKENIZER,
    *PROCESSOR,
    # How sentence-transformers pools token vectors into one; see also _modules.
    MODULES,
    "1_Pooling/config.json",
    # What it does to texts: prompts, max_seq_length, lower-casing.
    PROMPTS,
    *SENTENCE_CONFIGS,
)
# Whole file, index of shards, ending of a shard; the first form that is there is taken.
_SAFETENSORS = ("model.safetensors", SAFETENSORS_INDEX, ".safetensors")
_PICKLE = ("pytorch_model.bin", "pytorch_model.bin.index.json", ".bin")


class Listing(Protocol):
    """A source, opened at one commit."""

    def names(self) -> Sequence[str]:
        """Return the files beside ``config.json``; deeper ones may be left out."""

    def has(self, path: str) -> bool:
        """Whether there is such a file."""

    def read(self, path: str, limit: int) -> bytes:
        """Return a small file's bytes, at most ``limit`` of them."""


def list_needed_files(listing: Listing, request: SourceRequest) -> tuple[str, ...]:
    """Return the paths that a conversion needs, sorted.

    Raises:
        UnsupportedCheckpointError: there is no ``config.json``, or there are no weights.
        UnsafeCheckpointError: only pickle weights, or an index that names what is not there.
    """
    if not listing.has(CONFIG):
        raise UnsupportedCheckpointError(
            f"{request.source}: no {CONFIG}; expected a Hugging Face checkpoint, got a place with "
            f"{join_names(listing.names())}. Name the folder in which {CONFIG} lies."
        )
    paths = {CONFIG, *_weights(listing, request)}
    paths.update(path for path in _DESCRIPTION if listing.has(path))
    paths.update(_modules(listing, request))
    if request.trust_remote_code:
        own = (name for name in listing.names() if name.endswith(".py") and "/" not in name)
        paths.update(safe_path(name, origin=request.source) for name in own)
    return tuple(sorted(paths))


def parse_index(data: bytes, *, origin: str, ending: str = ".safetensors") -> dict[str, str]:
    """Return an index's map from tensor to shard.

    Raises:
        UnsafeCheckpointError: not an index, or it names files that a shard can't be.
    """
    try:
        weight_map = json.loads(data)["weight_map"]
        pairs = list(weight_map.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnsafeCheckpointError(
            f"{origin}: expected JSON with a weight_map of tensors to shards, got "
            f"{data[:40]!r}…. The index is damaged; restore the checkpoint."
        ) from error
    if not pairs:
        raise UnsafeCheckpointError(
            f"{origin}: expected a weight_map with at least one tensor, got an empty one. "
            "The index is damaged; restore the checkpoint."
        )
    for _, shard in pairs:
        # An index of safetensors must not be a way to have a pickle loaded.
        if not safe_path(shard, origin=origin).endswith(ending):
            raise UnsafeCheckpointError(
                f"{origin}: expected shards that end in {ending}, got {shard!r}. "
                "Do not use this checkpoint."
            )
    return dict(pairs)


def _modules(listing: Listing, request: SourceRequest) -> set[str]:
    """Configs of what sentence-transformers puts behind the checkpoint, and weights of Dense."""
    if not listing.has(MODULES):
        return set()
    origin = f"{request.source}/{MODULES}"
    try:
        listed = json.loads(listing.read(MODULES, MAX_INDEX_BYTES))
        modules = [(safe_path(m["path"], origin=origin), m["type"]) for m in listed if m["path"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()  # tasks.model.pooling refuses it by name, if the request asks for it
    paths = {f"{folder}/{CONFIG}" for folder, _ in modules}
    forms = (_SAFETENSORS[0], _PICKLE[0]) if request.allow_pickle else _SAFETENSORS[:1]
    for folder, kind in modules:
        held = [f"{folder}/{form}" for form in forms if listing.has(f"{folder}/{form}")]
        paths.update(held[:1] if str(kind).endswith(".Dense") else [])
    return {path for path in paths if listing.has(path)}


def _weights(listing: Listing, request: SourceRequest) -> set[str]:
    if safetensors := _weights_in(listing, request, *_SAFETENSORS):
        return safetensors
    if not any(listing.has(name) for name in _PICKLE[:2]):
        raise UnsupportedCheckpointError(
            f"{request.source}: no weights; expected {_SAFETENSORS[0]} or {SAFETENSORS_INDEX}, got "
            f"{join_names(listing.names())}. Save the model with save_pretrained() and name that "
            "folder."
        )
    if not request.allow_pickle:
        raise UnsafeCheckpointError(
            f"{request.source}: expected safetensors, got pickle weights only, which can run code "
            "when they are opened. Convert them once in a place that you trust with "
            "save_pretrained(), or set allow_pickle (--allow-pickle) to have them read with "
            "weights_only=True."
        )
    return _weights_in(listing, request, *_PICKLE)


def _weights_in(
    listing: Listing, request: SourceRequest, whole: str, index: str, ending: str
) -> set[str]:
    if listing.has(whole):
        return {whole}
    if not listing.has(index):
        return set()
    origin = f"{request.source}/{index}"
    data = listing.read(index, MAX_INDEX_BYTES)
    shards = set(parse_index(data, origin=origin, ending=ending).values())
    if missing := [shard for shard in shards if not listing.has(shard)]:
        raise UnsafeCheckpointError(
            f"{origin}: expected all {len(shards)} shards that it names, got none of "
            f"{join_names(missing)}. The checkpoint is incomplete; upload or copy it again."
        )
    return {index, *shards}
