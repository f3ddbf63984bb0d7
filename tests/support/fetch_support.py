"""Checkpoints as plain bytes, for the tests of fetch, which never opens a tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

CARD = b"---\nlicense: apache-2.0\nlanguage: en\n---\n# Tiny\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"


def safetensors(tensors: Mapping[str, bytes]) -> bytes:
    """The safetensors form of uint8 tensors."""
    header, end = {}, 0
    for name, data in tensors.items():
        offsets = [end, end + len(data)]
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": offsets}
        end += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(tensors.values())


def whole(weights: bytes = b"weights") -> dict[str, bytes]:
    """A checkpoint in one file, among files that nobody needs."""
    return {
        "README.md": CARD,
        "config.json": b'{"model_type": "bert"}',
        "tokenizer.json": b"{}",
        "vocab.txt": b"[PAD]\n",
        "modules.json": b"[]",
        "1_Pooling/config.json": b"{}",
        "model.safetensors": safetensors({"a": weights, "b": b"bias"}),
        "pytorch_model.bin": b"a pickle",
        "tf_model.h5": b"another framework",
        "modeling_tiny.py": b"raise SystemExit",
        "onnx/model.onnx": b"another format",
    }


def sharded() -> dict[str, bytes]:
    """A checkpoint in two shards, with a third that its index does not name."""
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    return {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        "model-1.safetensors": safetensors({"a": b"aaaa"}),
        "model-2.safetensors": safetensors({"b": b"bb"}),
        "model-3.safetensors": safetensors({"c": b"c"}),
    }


NEEDED_OF_WHOLE = (
    "1_Pooling/config.json",
    "README.md",
    "config.json",
    "model.safetensors",
    "modules.json",
    "tokenizer.json",
    "vocab.txt",
)


def write(folder: Path, files: Mapping[str, bytes]) -> str:
    """Write the files and return their folder as a source."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return f"file://{folder}"
