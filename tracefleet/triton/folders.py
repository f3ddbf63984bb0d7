"""Folders of a model repository: written whole or not at all, and never another's."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tracefleet.errors import ManifestError, StoreError
from tracefleet.manifest import MANIFEST, Manifest, parse
from tracefleet.manifest_types import FileEntry
from tracefleet.published import Selection, explaining_missing
from tracefleet.store import ReadableStore
from tracefleet.store.durable import name_temp

CONFIG, CHANNEL = "config.pbtxt", "channel"
#: A folder can't be made, or moved in one step, beside what is a volume of its own.
_ANOTHER_PLACE = (errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)
_FOREIGN = (
    "expected no folder, or a model that `tracefleet pull --as triton` wrote, got another one. "
    "Choose another repository, or a name with --model-name."
)


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a model, and whose it is.

    Attributes:
        model: folder of the model.
        number: the channel's number.
        channel: folder in the store of the channel.
        manifest: of the conversion.
        mark: file of the model that names the channel; one for each kind of model.
    """

    model: Path
    number: str
    channel: str
    manifest: Manifest
    mark: str = CHANNEL

    @property
    def folder(self) -> Path:
        """Folder of the version."""
        return self.model / self.number


def put(version: Version, fill: Callable[[Path], None], texts: dict[str, bytes]) -> Path:
    """Write a version of a model, beside those that are there.

    Args:
        version: whose it is.
        fill: writes the version's files into a folder.
        texts: files beside the versions; the configuration last.

    Returns:
        The version's folder; if it was there, it is left as it is.

    Raises:
        StoreError: another conversion has that name there, or a file can't be written.
    """
    _check_owner(version)
    try:
        if not version.model.exists():
            _write_new(version, fill, texts)
        elif not version.folder.exists():
            with _appearing(version.folder, version.model) as temp:
                _fill(version, fill, temp)
        # The version before its configuration: a server takes the old one with either.
        _write_all(version.model, texts)
    except OSError as error:
        raise StoreError(f"{version.model}: can't write the model there: {error}") from error
    return version.folder


def read_channels(repository: Path) -> dict[str, str]:
    """Return the name of each conversion's model in a repository, by its channel."""
    folders = sorted(path.parent for path in repository.glob(f"*/{CHANNEL}"))
    return {_read_channel(folder / CHANNEL): folder.name for folder in folders}


def copy_file(store: ReadableStore, selection: Selection, file: FileEntry, target: Path) -> None:
    """Copy a file of a conversion, checked.

    Raises:
        DigestMismatchError: it is damaged in the store.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with explaining_missing(store, selection, file) as path:
        store.download_to(path, target, size=file.size, sha256=file.sha256)


def _read_channel(mark: Path) -> str:
    return mark.read_text(errors="replace").strip()


def _write_new(version: Version, fill: Callable[[Path], None], texts: dict[str, bytes]) -> None:
    """Write a model that is not there yet, in one step where the file system has that."""
    folder = version.model
    try:
        # Beside the repository: a server takes every folder in it for a model.
        with _appearing(folder, folder.parent.resolve().parent) as temp:
            _fill(version, fill, temp / version.number)
            _write_all(temp, texts)
    except OSError as error:
        if error.errno not in _ANOTHER_PLACE:
            raise
        # The repository is a volume of its own: a model without configuration is not loaded.
        folder.mkdir(parents=True)
        with _appearing(version.folder, folder) as temp:
            _fill(version, fill, temp)


def _check_owner(version: Version) -> None:
    """Refuse a name that another conversion or channel has, or a folder that is no model of ours.

    Raises:
        StoreError: it is one of these.
    """
    folder, mark, manifest = version.model, version.model / version.mark, version.manifest
    if not folder.exists():
        return
    there = _read_versions(folder)
    # A model of another kind has another mark, one from before there were marks has none.
    marks = {path.name for path in folder.glob(f"*{CHANNEL}")}
    if not there or not marks <= {version.mark}:
        raise StoreError(f"{folder}: {_FOREIGN}")
    for one in there.values():
        if (one.source, one.variant) != (manifest.source, manifest.variant):
            raise StoreError(
                f"{folder}: expected a model of {manifest.source} ({manifest.variant.label}), got "
                f"one of {one.source} ({one.variant.label}). Choose a name with --model-name."
            )
    channel = _read_channel(mark) if mark.is_file() else version.channel
    if channel != version.channel:
        raise StoreError(
            f"{folder}: expected versions of channel {version.channel}, got those of {channel}, "
            "whose numbers are others. Choose a name with --model-name."
        )
    kept = there.get(version.number, manifest)
    if kept.key != manifest.key:
        raise StoreError(
            f"{folder}: expected version {version.number} to be {manifest.key}, got {kept.key}, of "
            "another channel. Choose a name with --model-name."
        )


def _read_versions(folder: Path) -> dict[str, Manifest]:
    """Return the manifest of each version of a model.

    Raises:
        StoreError: one is not ours.
    """
    try:
        found = sorted(folder.glob(f"*/{MANIFEST}"))
        return {path.parent.name: parse(path.read_bytes()) for path in found}
    except (OSError, ManifestError) as error:
        raise StoreError(f"{folder}: {_FOREIGN}") from error


@contextmanager
def _appearing(target: Path, around: Path) -> Iterator[Path]:
    """Let a folder be filled that appears under its name when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = name_temp(around)
    temp.mkdir()
    try:
        yield temp
        temp.rename(target)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _fill(version: Version, fill: Callable[[Path], None], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    fill(folder)
    (folder / MANIFEST).write_bytes(version.manifest.to_bytes())


def _write_all(folder: Path, texts: dict[str, bytes]) -> None:
    for name, data in texts.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != data:
            temp = name_temp(folder)
            temp.write_bytes(data)
            temp.replace(path)
