"""A tiny bundle that keeps the contract, published by hand, for the tests of the consumer's side.

torch is imported where used: the racing child processes must start fast.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from tracefleet.channel import advance, channel_folder, conversion_folder
from tracefleet.manifest import BUNDLE_MEDIA_TYPE, Manifest
from tracefleet.manifest_types import (
    FileEntry,
    InputSpec,
    OutputSpec,
    Toolchain,
    Variant,
)
from tracefleet.store import Store
from tracefleet.store.folder import FileStore
from tracefleet.verdict_types import (
    Accuracy,
    LengthVerdict,
    Tolerance,
    Validation,
)

SOURCE = "hf://acme/tiny-bert"
LENGTHS = (4, 8)
VOCABULARY = 32
WORDS = ["[PAD]", "[UNK]", "hello", "world", "again"]


def example_manifest(**changes: Any) -> Manifest:
    """A manifest with something in every field."""
    ids = InputSpec(name="input_ids", dtype="int64", axes=("batch", "length"), pad_value=0)
    mask = dataclasses.replace(ids, name="attention_mask", fill_value=1)
    kinds = dataclasses.replace(ids, name="token_type_ids", fill_value=0)
    verdicts = tuple(
        LengthVerdict(
            length=length,
            probes=17,
            vacuous=("right-padding",),
            max_abs_error=4.5e-07,
            max_rel_error=1.25e-07,
            min_cosine=0.99999994,
            top1_agreement=1.0,
            passed=True,
        )
        for length in LENGTHS
    )
    whole: dict[str, Any] = {
        "key": hashlib.sha256(b"key").hexdigest(),
        "source": SOURCE,
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "license": "apache-2.0",
        "variant": Variant(task="feature-extraction"),
        "lengths": LENGTHS,
        "options": {"attention": "sdpa"},
        "inputs": (ids, mask, kinds),
        "outputs": (
            OutputSpec(name="last_hidden_state", dtype="float32", axes=("batch", "length", "4")),
            OutputSpec(name="pooler_output", dtype="float32", axes=("batch", "4")),
        ),
        "tied_groups": (("decoder.weight", "embeddings.weight"),),
        "same_program": True,
        "general": None,
        "routed": None,
        "device": "cpu",
        "follows_device": True,
        "text": None,
        "files": (
            entry("model/1/model.pt", b"weights", BUNDLE_MEDIA_TYPE),
            entry("model/config.json", b"{}", "application/json"),
        ),
        "toolchain": Toolchain(python="3.11", torch="2.13.0", transformers="5.23.0"),
        "recipe": 1,
        "validation": Validation(
            verdict="validated",
            tolerance=Tolerance(atol=1e-06, rtol=1e-05),
            lengths=verdicts,
            negative_controls=("weight-error",),
            accuracy=Accuracy(max_rel_error=0.03, min_cosine=0.996, top1_agreement=1.0),
        ),
    }
    return Manifest(**{**whole, **changes})


def entry(path: str, data: bytes, media_type: str = "application/octet-stream") -> FileEntry:
    digest = hashlib.sha256(data).hexdigest()
    return FileEntry(path=path, size=len(data), sha256=digest, media_type=media_type)


def publish(
    store: Store,
    *,
    source: str = SOURCE,
    variant: Variant | None = None,
    channel: str = "latest",
    bundle: bytes | None = None,
    extra: dict[str, bytes] | None = None,
    **changes: Any,
) -> Manifest:
    """Publish a tiny conversion as the pipeline does: files, manifest, channel."""
    data = {
        "model/1/model.pt": bundle or tiny_bundle(),
        "model/config.json": b"{}",
        **(extra or {}),
    }
    files = tuple(
        entry(path, data[path], BUNDLE_MEDIA_TYPE if path.endswith(".pt") else "text/plain")
        for path in sorted(data)
    )
    variant = variant or Variant(task="feature-extraction")
    key = hashlib.sha256(repr((source, variant, channel, changes)).encode()).hexdigest()
    manifest = example_manifest(
        **{"key": key, "source": source, "variant": variant, "files": files, **changes}
    )
    folder = conversion_folder(source, manifest.key)
    with tempfile.TemporaryDirectory() as scratch:
        for file in files:
            local = Path(scratch) / "file"
            local.write_bytes(data[file.path])
            path = f"{folder}/{file.path}"
            store.put_file(path, local, size=file.size, sha256=file.sha256)
    store.put_new(f"{folder}/{manifest.file_name}", manifest.to_bytes())
    channel = channel_folder(source, variant, channel)
    advance(store, channel, manifest_digest=manifest.digest, key=manifest.key)
    return manifest


def path_in(store: FileStore, manifest: Manifest, path: str) -> Path:
    """Where a file of a published conversion lies."""
    return store.root / conversion_folder(manifest.source, manifest.key) / path


def flip_byte(path: Path, position: int = 100) -> None:
    """Damage one byte and keep the size."""
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 0xFF
    path.write_bytes(data)


@functools.cache
def tiny_bundle() -> bytes:
    """An archive that keeps the bundle's contract at lengths 4 and 8, batch 1."""
    return _saved(_tiny_module())


@functools.cache
def tiny_seq2seq_bundle() -> bytes:
    """An encoder-decoder: two length axes, a decoder without a mask."""
    import torch

    class Seq2Seq(torch.nn.Module):
        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            decoder_input_ids: torch.Tensor,
        ) -> tuple[torch.Tensor]:
            context = (input_ids * attention_mask).sum(1, keepdim=True)
            return ((decoder_input_ids.cumsum(1) + context).unsqueeze(2).float(),)

    return _saved(Seq2Seq())


SEQ2SEQ: dict[str, Any] = {
    "variant": Variant(task="text2text-generation"),
    "inputs": (
        InputSpec(name="input_ids", dtype="int64", axes=("batch", "length"), pad_value=0),
        InputSpec(
            name="attention_mask",
            dtype="int64",
            axes=("batch", "length"),
            pad_value=0,
            fill_value=1,
        ),
        InputSpec(
            name="decoder_input_ids", dtype="int64", axes=("batch", "decoder_length"), pad_value=0
        ),
    ),
    "outputs": (OutputSpec(name="logits", dtype="float32", axes=("batch", "decoder_length", "1")),),
}


def _saved(module: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module.eval()), buffer)
    return buffer.getvalue()


def _tiny_module() -> Any:
    import torch
    from torch import Tensor

    class Tiny(torch.nn.Module):
        """Rows of embeddings plus the masked mean of the row: padding and masks both matter."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.ids = torch.nn.Embedding(VOCABULARY, 4)
            self.kinds = torch.nn.Embedding(2, 4)

        def traced(self, ids: Tensor, mask: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
            embedded = (self.ids(ids) + self.kinds(kinds)) * mask.unsqueeze(2)
            mean = embedded.sum(1) / mask.sum(1, keepdim=True)
            return embedded + mean.unsqueeze(1), mean

        @torch.jit.export
        def forward_4(self, ids: Tensor, mask: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
            if ids.size(0) != 1 or ids.size(1) != 4:
                raise ValueError("expected (1, 4)")
            return self.traced(ids, mask, kinds)

        @torch.jit.export
        def forward_8(self, ids: Tensor, mask: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
            if ids.size(0) != 1 or ids.size(1) != 8:
                raise ValueError("expected (1, 8)")
            return self.traced(ids, mask, kinds)

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
        ) -> tuple[Tensor, Tensor]:
            length = input_ids.size(1)
            standard = 4 if length <= 4 else 8
            if length > 8:
                raise ValueError("too long")
            ids = torch.constant_pad_nd(input_ids, [0, standard - length], 0)
            mask = torch.constant_pad_nd(attention_mask, [0, standard - length], 0)
            kinds = torch.constant_pad_nd(token_type_ids, [0, standard - length], 0)
            hidden, pooled = self.traced(ids, mask, kinds)
            return hidden.narrow(1, 0, length), pooled

    return Tiny()


def tokenizer_json() -> bytes:
    """A tokenizer of whole words that pads and cuts unless it is told not to."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    text: str = tokenizer.to_str()
    return text.encode()


def race(work: Callable[..., Any], *arguments: Any, racers: int = 8) -> list[Any]:
    """Run ``work(index, *arguments)`` in processes that start together; return their results."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(racers), context.Queue()
    processes = [
        context.Process(target=_racer, args=(work, barrier, queue, index, arguments))
        for index in range(racers)
    ]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    queue.close()
    queue.join_thread()
    return results


def _racer(work: Any, barrier: Barrier, queue: Any, index: int, arguments: Any) -> None:
    try:
        barrier.wait(60)
        queue.put(work(index, *arguments))
    except BaseException as error:
        queue.put(error)
        raise


def put_rounds(index: int, root: Path, rounds: int) -> list[bool]:
    """Try to create the same files as every other racer; return which this one created."""
    store = FileStore(root=root)
    return [store.put_new(f"log/{n}", f"racer {index}".encode() * 1000) for n in range(rounds)]


def put_same_file(index: int, root: Path, local: Path, sha256: str) -> bool:
    """Put one immutable file that all racers put."""
    size = local.stat().st_size
    FileStore(root=root).put_file("files/same", local, size=size, sha256=sha256)
    return True


def commit_rounds(index: int, root: Path, rounds: int) -> list[int]:
    """Commit ``rounds`` different manifests to one channel; return the numbers they got."""
    store = FileStore(root=root)
    return [
        advance(
            store,
            "channels/a",
            manifest_digest=hashlib.sha256(f"{index} {n}".encode()).hexdigest(),
            key="0" * 64,
        )
        for n in range(rounds)
    ]
