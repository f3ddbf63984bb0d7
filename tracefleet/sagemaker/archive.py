"""Write ``model.tar.gz``: a conversion as SageMaker takes it.

Unpacked, it is a store of one conversion with a folder ``code`` beside it: ``inference.py``, the
reader itself as this host has it, and ``requirements.txt``. The reader travels as source: a line of
requirements.txt can't name a wheel beside it, because pip reads such a path from the folder that it
is started in, and an index that has the reader is not reachable from everywhere. The same
conversion and reader make the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from tracefleet.errors import DigestMismatchError, NoFormError, StoreError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import JIT
from tracefleet.published import Selection, load_manifest, open_verified
from tracefleet.single import SingleStore, describe
from tracefleet.store import ReadableStore
from tracefleet.store.durable import flush, name_temp, sha256_of
from tracefleet.verdict_types import VALIDATED

ARCHIVE = "model.tar.gz"
_CODE = "code"
_INFERENCE = """\
# Called by SageMaker's container. What it does is in tracefleet/sagemaker/handlers.py beside it.
from tracefleet.sagemaker.handlers import input_fn, model_fn, output_fn, predict_fn

__all__ = ["input_fn", "model_fn", "output_fn", "predict_fn"]
"""
_REQUIREMENTS = """\
# What the reader needs beside torch (2.6 or newer) and numpy, which the container brings: another
# numpy would break its scipy. The golden samples are run at the start, so that another version of
# torch that computes something else is found before the first request.
"""
#: As they were tested; equal to the project's constraints.txt.
_PINS = {"safetensors": "0.8.0", "tokenizers": "0.23.3"}
_PIECES_PINS = {"sentencepiece": "0.2.3"}
_SOURCES = (".py", ".json", ".typed")


def check_form(manifest: Manifest) -> None:
    """Refuse a conversion that SageMaker's containers for Python can't run.

    Raises:
        NoFormError: it is for Neuron, or no device has validated it yet.
    """
    obstacle = None
    if manifest.variant.backend != JIT:
        obstacle = (
            f"backend {manifest.variant.backend}: its programs need AWS Neuron's container and the "
            "package versions that compiled them"
        )
    elif manifest.validation.verdict != VALIDATED:
        obstacle = f"it is {manifest.validation.verdict}, and only validated ones are handed on"
    if obstacle is not None:
        raise NoFormError(
            f"{manifest.source}: no form for SageMaker: {obstacle}. Pull it as it is (without "
            "--as), or convert it for backend 'jit'."
        )


def write_archive(store: ReadableStore, selection: Selection, folder: Path) -> Path:
    """Write a conversion's ``model.tar.gz``, which appears whole and checked, or not at all.

    Args:
        store: store of the conversion.
        selection: the conversion.
        folder: where the archive is to be; it is made if it is not there.

    Returns:
        The archive. One of the same bytes that is there already is left as it is.

    Raises:
        NoFormError: SageMaker can't run it.
        StoreError: another archive is there, or it can't be written.
        DigestMismatchError: a file in the store is damaged.
    """
    check_form(load_manifest(store, selection))
    single, target = describe(store, selection), folder / ARCHIVE
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    temp = name_temp(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temp.open("xb") as file:
            _write(store, selection, single, file)
            flush(file)
        _check(temp, single)
        _place(temp, target)
    except OSError as error:
        raise StoreError(f"{target}: can't write the archive there: {error}") from error
    finally:
        temp.unlink(missing_ok=True)
        if not target.exists():
            _remove(made)
    return target


def _place(temp: Path, target: Path) -> None:
    if not target.exists():
        temp.rename(target)
    elif not target.is_file() or sha256_of(target) != sha256_of(temp):
        raise StoreError(
            f"{target}: expected none, or the same archive, got another one. Name another folder, "
            "or remove it."
        )


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write(store: ReadableStore, selection: Selection, single: SingleStore, file: BinaryIO) -> None:
    # Weights get 7 % smaller at best, and packing them would take longer than sending them.
    with (
        gzip.GzipFile("", "wb", compresslevel=0, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path, data in sorted({**single.small, **_read_code(single.manifest)}.items()):
            tar.addfile(_head(path, len(data)), io.BytesIO(data))
        for path, entry in sorted(single.files.items()):
            with open_verified(store, selection, entry) as handle:
                tar.addfile(_head(path, entry.size), handle)


def _head(path: str, size: int) -> tarfile.TarInfo:
    """Return what an archive says of a file: the same on every host, at any time."""
    head = tarfile.TarInfo(path)
    head.size, head.mode = size, 0o644
    return head


def _read_code(manifest: Manifest) -> dict[str, bytes]:
    """Return the files of the folder ``code``."""
    pins = dict(_PINS)
    if manifest.text is not None and manifest.text.pieces is not None:
        pins |= _PIECES_PINS
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
    code = {
        f"{_CODE}/inference.py": _INFERENCE.encode(),
        f"{_CODE}/requirements.txt": (_REQUIREMENTS + "".join(lines)).encode(),
    }
    root = Path(__file__).parents[1]
    for path in _find_sources(root):
        code[f"{_CODE}/{root.name}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return code


def _find_sources(root: Path) -> Iterator[Path]:
    for path in root.rglob("*"):
        if path.suffix in _SOURCES and "__pycache__" not in path.parts:
            yield path


def _check(path: Path, single: SingleStore) -> None:
    """Read an archive as SageMaker will, and compare every byte of the conversion.

    Raises:
        DigestMismatchError: a file is not the one that the manifest names.
        StoreError: a file is missing, there twice, or no Python.
    """
    digests: dict[str, str] = {}
    with tarfile.open(path, "r:gz") as tar:
        for head in tar:
            held = tar.extractfile(head)
            if held is None or head.name in digests:
                raise StoreError(f"{path}: expected files, each once, got {head.name} once more")
            digests[head.name] = _digest(held, head.name)
    expected = {name: file.sha256 for name, file in single.files.items()}
    for name, data in single.small.items():
        expected[name] = hashlib.sha256(data).hexdigest()
    for name, digest in expected.items():
        if digests.get(name) != digest:
            raise DigestMismatchError(name, expected=digest, got=digests.get(name, "no file"))


def _digest(held: IO[bytes], name: str) -> str:
    """Return the digest of a file; one of Python must be Python."""
    digest = hashlib.sha256()
    if name.endswith(".py"):
        source = held.read()
        compile(source, name, "exec")
        digest.update(source)
    while block := held.read(1 << 18):
        digest.update(block)
    return digest.hexdigest()
