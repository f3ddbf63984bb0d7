"""The ways to serve rows that ``benchmarks.serve`` compares."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.cpp.build import compile_source
from tracefleet import Model

_CPP = Path(__file__).parent / "serve.cpp"

Rows = list[list[int]]


@dataclass(frozen=True)
class Peer:
    """One way to serve rows.

    Attributes:
        name: of the way.
        run: runs all rows that it is given, in batches of so many.
    """

    name: str
    run: Callable[[Rows, int], float | None]
    """Returns the seconds, if the peer measures them itself."""


def load_eager(checkpoint: Path) -> Any:
    """Return the model of transformers."""
    import transformers

    return transformers.AutoModel.from_pretrained(checkpoint).eval()


def make_eager(model: Any) -> Callable[[Rows, int], None]:
    """Return what runs rows through a model of transformers, each batch padded to its longest."""
    import torch

    def run(rows: Rows, batch: int) -> None:
        with torch.inference_mode():
            for ids, mask in pad_batches(rows, batch):
                model(input_ids=ids, attention_mask=mask)

    return run


def make_quantised(model: Any) -> Callable[[Rows, int], None]:
    """Return the same for torch's own dynamic quantisation, with one range for a whole call."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    return make_eager(made)


def make_reader(model: Model) -> Callable[[Rows, int], None]:
    """Return what runs the same padded batches through an artifact."""

    def run(rows: Rows, batch: int) -> None:
        for ids, mask in pad_batches(rows, batch):
            model(ids, mask)

    return run


def make_whole(model: Model) -> Callable[[Rows, int], None]:
    """Return what runs all rows in one call."""

    def run(rows: Rows, _batch: int) -> None:
        model(rows)

    return run


def share(run: Callable[[Rows, int], Any], callers: int) -> Callable[[Rows, int], None]:
    """Return what shares the rows among threads that call at once."""

    def run_all(rows: Rows, batch: int) -> None:
        parts = [rows[start::callers] for start in range(callers)]
        threads = [threading.Thread(target=run, args=(part, batch)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run_all


@contextlib.contextmanager
def serving_in_cpp(bundle: Path, threads: int) -> Iterator[Callable[[Rows, int], float]]:
    """Yield what runs the same padded batches in a C++ process; it returns the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        binary = compile_source(_CPP, Path(folder) / "serve")
        process = subprocess.Popen(
            [str(binary), str(bundle), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield lambda rows, batch: _ask(process, Path(folder), rows, batch)
        finally:
            process.communicate(timeout=60)


def _ask(process: subprocess.Popen[str], folder: Path, rows: Rows, batch: int) -> float:
    import torch

    assert process.stdin is not None
    assert process.stdout is not None
    path = folder / f"{len(rows)}-{batch}-{hash(tuple(map(len, rows)))}.pt"
    if not path.exists():
        buffer = io.BytesIO()
        torch.save([one for pair in pad_batches(rows, batch) for one in pair], buffer)
        path.write_bytes(buffer.getvalue())
    process.stdin.write(f"{path}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def pad_batches(rows: Rows, batch: int) -> Iterator[tuple[Any, Any]]:
    """Yield ids and mask of each batch, padded to its longest row."""
    import torch

    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        longest = max(map(len, part))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in part])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in part])
        yield ids, mask
