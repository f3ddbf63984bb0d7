"""What was asked for on the command line, checked before any work starts."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tracefleet.bench.machine import count_cores
from tracefleet.bench.optional import import_optional
from tracefleet.errors import BenchError
from tracefleet.manifest_types import JIT

#: What a conversion can be measured against.
PEERS = ("transformers", "onnx")
#: Value of ``--json`` without a file.
STDOUT = "-"
_PLOTS = (".svg", ".png")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure.

    Attributes:
        lengths: tokens of a row; empty: some of the standard lengths.
        batches: rows of a call.
        threads: numbers of threads.
        rounds: how often each peer has its turn in each case.
        dtypes: dtypes of the conversions; empty: every one that is published.
        against: peers that have to take part; empty: those that can.
        texts: file of texts, one a line; None: built-in ones.
        checkpoint: folder of the checkpoint; None: the source itself, if it is at hand.
        json: file for the figures, or ``-`` for standard output; None: nowhere.
        plot: file for a picture; None: none is made.
    """

    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    rounds: int
    dtypes: tuple[str, ...]
    against: tuple[str, ...]
    texts: Path | None
    checkpoint: Path | None
    json: str | None
    plot: Path | None


def read_request(arguments: argparse.Namespace) -> Request:
    """Return what was asked for.

    Raises:
        BenchError: something of it can't be measured here; the message names the option.
    """
    _check_backend(arguments.backend)
    return Request(
        lengths=_read_numbers("lengths", arguments.lengths),
        batches=_read_numbers("batches", arguments.batches),
        threads=_choose_threads(_read_numbers("threads", arguments.threads)),
        rounds=_read_rounds(arguments.rounds),
        dtypes=_read_words(arguments.dtype),
        against=_check_peers(_read_words(arguments.against)),
        texts=arguments.texts,
        checkpoint=_check_checkpoint(arguments.checkpoint),
        json=_check_json(arguments.json),
        plot=_check_plot(arguments.plot),
    )


def _read_words(text: str | None) -> tuple[str, ...]:
    words = (text or "").replace(",", " ").split()
    return tuple(dict.fromkeys(words))


def _read_numbers(option: str, text: str | None) -> tuple[int, ...]:
    """Return whole numbers of at least 1, each once; none if the option was left out."""
    words = _read_words(text)
    wrong = [word for word in words if not word.isdecimal() or int(word) < 1]
    if wrong or (text is not None and not words):
        raise BenchError(
            f"{option}: expected whole numbers of at least 1 such as 1,8,32, got {text!r}. "
            f"Correct them, or leave --{option} out."
        )
    return tuple(map(int, words))


def _read_rounds(text: str) -> int:
    numbers = _read_numbers("rounds", text)
    if len(numbers) != 1:
        raise BenchError(f"rounds: expected one number such as 5, got {text!r}. Name one.")
    return numbers[0]


def _choose_threads(threads: tuple[int, ...]) -> tuple[int, ...]:
    """Return the numbers of threads: one and all cores, if none was named."""
    cores = count_cores()
    if not threads:
        return tuple(sorted({1, cores}))
    if max(threads) > cores:
        # Threads that share a core wait for each other at every product.
        raise BenchError(
            f"threads: expected at most {cores}, the cores that this process may use, got "
            f"{max(threads)}. Name fewer: more threads than cores measure waiting."
        )
    return threads


def _check_backend(backend: str | None) -> None:
    if backend not in (None, JIT):
        raise BenchError(
            f"backend: expected {JIT}, got {backend!r}: the peers run on the CPU, and so does what "
            "is measured. Leave --backend out; conversions for Neuron are timed on their device by "
            "the pipeline, in the report of each conversion."
        )


def _check_peers(names: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise BenchError(
            f"against: expected some of {', '.join(PEERS)}, got {', '.join(unknown)}. Leave "
            "--against out for all that can take part."
        )
    return names


def _check_checkpoint(folder: Path | None) -> Path | None:
    if folder is not None and not (folder / "config.json").is_file():
        raise BenchError(
            f"checkpoint: expected a folder with config.json, got {folder}. Name the folder that "
            "the conversion was made of."
        )
    return folder


def _check_json(target: str | None) -> str | None:
    if target not in (None, STDOUT):
        _check_folder("json", Path(target))
    return target


def _check_plot(path: Path | None) -> Path | None:
    """Refuse a picture that can't be drawn, before hours are measured for it."""
    if path is None:
        return None
    if path.suffix not in _PLOTS:
        raise BenchError(
            f"plot: expected a file that ends in {' or '.join(_PLOTS)}, got {path}. Rename it."
        )
    _check_folder("plot", path)
    try:
        import_optional("matplotlib.figure")
    except BenchError as error:
        raise BenchError(f"plot: {error}, or leave --plot out") from error
    return path


def _check_folder(option: str, path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise BenchError(
            f"{option}: expected a file in a folder that exists, got {path}. Make the folder, or "
            "name another one."
        )
