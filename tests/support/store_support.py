"""Conversions to publish and readers to watch: shared by the tests of faults, crashes and races."""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tasks.publish.files import describe_files
from tasks.publish.find import find_published
from tasks.publish.identity import Identity
from tasks.trace.bundle import TracedFile
from tests.support.reader_support import SOURCE, example_manifest
from tracefleet.channel import conversion_folder
from tracefleet.errors import ArtifactError, NoSuchVariantError
from tracefleet.manifest import Manifest
from tracefleet.published import load_manifest, select
from tracefleet.store import Store
from tracefleet.store.streams import CheckedSink
from tracefleet.triton.config import make_config


def conversion(folder: Path, number: int, *, size: int = 1000) -> tuple[Manifest, dict[str, Path]]:
    """A conversion with a bundle of ``size`` bytes; the same number gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = example_manifest(options={"n": str(number)})
    data = random.Random(number).randbytes(size)
    (folder / "model.pt").write_bytes(data)
    (folder / "config.json").write_text(f'{{"n": {number}}}')
    (folder / "config.pbtxt").write_bytes(make_config(plain.inputs, plain.outputs, (8,)).encode())
    bundle = TracedFile(
        path=folder / "model.pt",
        size=size,
        sha256=hashlib.sha256(data).hexdigest(),
        weight_bytes=size,
    )
    files = {bundle.published: bundle.path, "model/config.pbtxt": folder / "config.pbtxt"}
    files["model/config.json"] = folder / "config.json"
    manifest = example_manifest(
        options=plain.options, key=Identity.of(plain).key, files=describe_files(files, [bundle])
    )
    return manifest, files


def contents(store: Store, manifest: Manifest) -> dict[str, str]:
    """Digest of every file below the conversion's folder, by path in it."""
    folder = conversion_folder(manifest.source, manifest.key)
    found = {}
    for file in store.walk(folder):
        sink = CheckedSink(file.path)
        store.copy_out(file.path, sink)
        found[file.path.removeprefix(f"{folder}/")] = sink.sha256
    return found


def whole(manifest: Manifest) -> dict[str, str]:
    """What ``contents`` gives of a conversion that is published whole."""
    files = {file.path: file.sha256 for file in manifest.published}
    return files | {"manifest.json": manifest.digest}


def check_never_half(store: Store, manifest: Manifest) -> bool:
    """Return whether a conversion is visible; if it is, every file has to be there and right."""
    visible = find_published(store, manifest.source, manifest.key) is not None
    if visible:
        assert contents(store, manifest) == whole(manifest)
    return visible


@dataclass
class Look:
    """What a reader saw in the channel at one moment."""

    number: int
    key: str


def look(store: Store, *, channel: str = "latest") -> Look:
    """Read the current conversion as consumers do, with every digest checked.

    Raises:
        ArtifactError: a reader met a half or a wrong conversion.
    """
    selection = select(store, SOURCE, channel=channel)
    manifest = load_manifest(store, selection)
    for file in manifest.published:
        path = selection.path_of(file)
        sink = CheckedSink(path)
        try:
            store.copy_out(path, sink)
        except FileNotFoundError as error:
            raise ArtifactError(f"{path}: named by a manifest, and missing") from error
        sink.check(size=file.size, sha256=file.sha256)
    return Look(selection.number, manifest.key)


@dataclass
class Watcher:
    """A reader that reads the channel over and over, every byte of it, and remembers trouble."""

    store: Store
    seen: list[int] = field(default_factory=list)
    trouble: list[BaseException] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watcher:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                self.seen.append(look(self.store).number)
            except NoSuchVariantError:
                if self.seen:
                    raise
            except BaseException as error:
                self.trouble.append(error)
            # Half of the time at most: what it watches needs the processor too.
            time.sleep(max(0.02, time.monotonic() - began))

    def check(self) -> None:
        assert self.trouble == []
        assert self.seen, "the reader never saw anything"
        assert self.seen == sorted(self.seen), "the channel went back"


def normalised(store: Store) -> dict[str, str]:
    """Everything that lasts in a store: digests by path; of channel entries what is no chance."""
    found = {}
    for file in store.walk(""):
        if file.path.split("/")[0] in ("conversions", "channels"):
            sink = CheckedSink(file.path)
            store.copy_out(file.path, sink)
            entry = file.path.startswith("channels/")
            found[file.path] = _without_nonce(store.read(file.path)) if entry else sink.sha256
    return found


def _without_nonce(entry: bytes) -> str:
    return re.sub(rb'"nonce":"[0-9a-f]+",', b"", entry).decode()
