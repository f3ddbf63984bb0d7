"""The peers of a comparison: who can take part, and how each of them is called.

All of them get the same tensors and return named outputs, so that they can be compared. Rows of
unequal lengths go to a conversion in one call, which sorts and groups them; the others get them in
padded batches, as their users do it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracefleet.bench.cases import PADDED_ROWS, Case, Feed, Inputs, make_feed, pad_rows
from tracefleet.bench.conversions import Conversion
from tracefleet.bench.eager import Eager, find_checkpoint, load_eager
from tracefleet.bench.onnx import OnnxModel, export
from tracefleet.bench.optional import find_version, first_line, import_optional
from tracefleet.bench.request import PEERS, Request
from tracefleet.bench.results import Absent, PeerFacts
from tracefleet.errors import BackendUnavailableError, BenchError
from tracefleet.manifest import Manifest
from tracefleet.reader.open import open_selected
from tracefleet.store import ReadableStore

#: Named results of one call, or of each padded batch of it.
Results = list[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way to compute the outputs.

    Attributes:
        facts: its name, and what it is.
        run: computes a case; only this is timed.
        use_threads: called before cases with another number of threads, after torch was told.
    """

    facts: PeerFacts
    run: Callable[[Case], Results]
    use_threads: Callable[[int], None] = lambda _: None

    @property
    def name(self) -> str:
        """Its name."""
        return self.facts.name


def gather_peers(
    store: ReadableStore,
    conversions: Sequence[Conversion],
    inputs: Inputs,
    request: Request,
    scratch: Path,
) -> tuple[list[Peer], list[Absent]]:
    """Return the peers, eager first, and those that can't take part.

    Args:
        store: store of the conversions.
        conversions: what is compared.
        inputs: what they take.
        request: who was asked for.
        scratch: folder for an exported model; it is needed while peers are measured.

    Raises:
        BenchError: one that was asked for by name can't take part, or no conversion can.
        ArtifactError: a conversion is damaged.
    """
    ours = [_open_conversion(store, one) for one in conversions]
    refused = [one for one in ours if isinstance(one, Absent)]
    if len(refused) == len(ours) or (refused and request.dtypes):
        raise BenchError("; ".join(f"{one.name}: {one.reason}" for one in refused))
    eager, onnx = _gather_others(inputs, request, scratch)
    everyone = [*eager, *ours, *onnx]
    present = [one for one in everyone if isinstance(one, Peer)]
    return present, [one for one in everyone if isinstance(one, Absent)]


def _open_conversion(store: ReadableStore, conversion: Conversion) -> Peer | Absent:
    try:
        model = open_selected(store, conversion.selection)
    except BackendUnavailableError as error:  # int8 on another CPU than x86
        return Absent(name=conversion.name, reason=first_line(error))

    def run(case: Case) -> Results:
        return [model(case.texts) if case.texts else model(**case.feed)]

    key = conversion.manifest.key
    facts = PeerFacts(name=conversion.name, details=f"conversion {key[:12]}", key=key)
    return Peer(facts=facts, run=run)


def _gather_others(
    inputs: Inputs, request: Request, scratch: Path
) -> tuple[list[Peer | Absent], list[Peer | Absent]]:
    """Return eager and ONNX Runtime, each if it was not left out."""
    manifest = inputs.manifest

    @functools.cache
    def load() -> Eager:
        return load_eager(find_checkpoint(manifest, request.checkpoint), manifest)

    def make_onnx() -> Peer:
        import_optional("onnxruntime")
        import_optional("onnx")  # torch's export reads its own graph with it
        return _make_onnx_peer(load(), inputs, scratch / "model.onnx")

    makers = {"transformers": lambda: _make_eager_peer(load(), manifest), "onnx": make_onnx}
    found: list[list[Peer | Absent]] = []
    for name in PEERS:
        wanted = not request.against or name in request.against
        found.append([_attempt(name, makers[name], request)] if wanted else [])
    return found[0], found[1]


def _attempt(name: str, make: Callable[[], Peer], request: Request) -> Peer | Absent:
    """Return a peer, or why it can't take part; raise that if it was asked for by name."""
    try:
        return make()
    except Exception as error:  # checkpoints fail to load and to export in many ways
        if name in request.against:
            raise BenchError(f"against {name}: it can't take part: {first_line(error)}") from error
        return Absent(name=name, reason=first_line(error))


def _make_eager_peer(eager: Eager, manifest: Manifest) -> Peer:
    import torch

    def run(case: Case) -> Results:
        with torch.inference_mode():
            return [eager.forward(feed) for feed in _split(manifest, case)]

    details = f"version {find_version('transformers')}, float32"
    return Peer(facts=PeerFacts(name="transformers", details=details), run=run)


def _make_onnx_peer(eager: Eager, inputs: Inputs, path: Path) -> Peer:
    manifest = inputs.manifest
    sample = make_feed(inputs, manifest.lengths[0], 2)
    export(eager, manifest, sample, path)
    model = OnnxModel(path, manifest)

    def run(case: Case) -> Results:
        return [model.run(feed) for feed in _split(manifest, case)]

    details = f"version {find_version('onnxruntime')}, torch's own export"
    facts = PeerFacts(name="onnxruntime", details=details)
    return Peer(facts=facts, run=run, use_threads=model.use_threads)


def _split(manifest: Manifest, case: Case) -> Iterator[Feed]:
    """Yield the calls of a case: itself, or its texts in padded batches, in their order."""
    if not case.texts:
        yield case.feed
    for start in range(0, len(case.texts), PADDED_ROWS):
        yield pad_rows(manifest, case.texts[start : start + PADDED_ROWS])
