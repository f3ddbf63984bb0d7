"""Convert from Python: ``convert`` is ``tracefleet convert`` in a process of its own.

So nothing of the pipeline is imported into the caller's process: it loads no second torch, and its
``flows`` and ``tasks`` hide no module of the caller's.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tracefleet
from tracefleet.canonical import canonical_json

Dtype = Literal["float32", "float16", "bfloat16", "int8"]
_LOG_LINES = 20
#: Where to read on, for who sees a command line.
_HELP = " (python -m tracefleet_pipeline"


class ConversionError(Exception):
    """A checkpoint was refused, or its conversion failed; nothing was published.

    Attributes:
        type: Name of the pipeline's error, such as ``NumericsMismatchError``; ``UsageError`` for
            arguments that are wrong.
    """

    def __init__(self, message: str, *, type: str) -> None:  # noqa: A002 - as in JSON
        self.type = type
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the type when the error crosses a process boundary."""
        return _rebuild, (str(self), self.type)


def _rebuild(message: str, kind: str) -> ConversionError:
    return ConversionError(message, type=kind)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What came of a request.

    Attributes:
        status: ``published``, ``already published``, ``compiled`` (for a device that is not here),
            ``compiled before`` or ``withdrawn``.
        url: URL of its folder in the store.
        store: The store, as it was given.
        channel: Channel that points to it.
        number: Number of the channel's entry.
        report: URL of the HTML report; None if nothing was converted anew.
        withdrawn: Why it was withdrawn after an earlier publication; None: it was not.
        manifest: Its manifest.
    """

    status: str
    url: str
    store: str
    channel: str
    number: int
    report: str | None
    withdrawn: str | None
    manifest: tracefleet.Manifest

    def open(self, **options: Any) -> tracefleet.Model:
        """Open it with ``tracefleet.open``; ``options`` are further ones of that function."""
        variant = self.manifest.variant
        return tracefleet.open(
            self.store,
            self.manifest.source,
            task=variant.task,
            backend=variant.backend,
            dtype=variant.dtype,
            batch=variant.batch,
            channel=self.channel,
            **options,
        )


def convert(
    model: str | Path,
    *,
    store: str | Path = "./store",
    lengths: Sequence[int] | None = None,
    task: str | None = None,
    dtype: Dtype | None = None,
    backend: str | None = None,
    batch: int | None = None,
    channel: str | None = None,
    name: str | None = None,
    generation: Literal["own", "greedy", "none"] | None = None,
    revision: str | None = None,
    rtol: float | None = None,
    accept_tolerance_risk: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    timeout_seconds: float | None = None,
    memory_limit_mb: int | None = None,
    threads: int | None = None,
    neuronx: Mapping[str, str] | None = None,
    neuron: Mapping[str, str] | None = None,
    progress: Callable[[str], object] | None = None,
) -> Conversion:
    """Convert one checkpoint, or find that it was converted before.

    Arguments that are left out have the defaults of ``tracefleet convert``, whose options they are.

    Args:
        model: ``org/name`` of the hub, a folder, or ``s3://bucket/prefix``.
        store: Root of the store.
        lengths: Standard lengths in tokens.
        task: Hugging Face task name; the checkpoint's own.
        dtype: Of the weights in the artifact.
        backend: ``jit``, ``neuronx`` or ``neuron``.
        batch: Rows in one traced call.
        channel: Channel that will point to the conversion.
        name: Name that readers open the conversion by, such as ``support-classifier``.
        generation: How an encoder-decoder's artifact generates: as the checkpoint says (``own``),
            greedily, or not at all.
        revision: Branch, tag or commit of a hub source.
        rtol: Relative tolerance instead of the dtype's own.
        accept_tolerance_risk: Let ``rtol`` be looser than its ceiling.
        allow_pickle: Read pickled weights.
        trust_remote_code: Run the checkpoint's code.
        timeout_seconds: Limit for each step.
        memory_limit_mb: Limit for each child process.
        threads: Torch threads.
        neuronx: How backend neuronx compiles.
        neuron: How backend neuron compiles.
        progress: Called with the text of each step, in the caller's thread.

    Raises:
        ConversionError: It was refused or failed; the message says what to do.
    """
    given = dict(locals())
    options = {name: given[name] for name in given if name not in ("model", "progress", "store")}
    words = ["convert", _absolute(model), "--store", _absolute(store), *_write_options(options)]
    document = _run(words, progress or (lambda line: None))
    return Conversion(
        status=document["status"],
        url=document["url"],
        store=_absolute(store),
        channel=document["channel"],
        number=document["number"],
        report=document["report"],
        withdrawn=document["withdrawn"],
        manifest=tracefleet.parse(canonical_json(document["manifest"])),
    )


def _absolute(place: str | Path) -> str:
    """Return a path as one that can't be mistaken for a name of the hub."""
    return str(place.expanduser().absolute()) if isinstance(place, Path) else place


def _write_options(options: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words[-1] += f"={_write(value)}"
    return words


def _write(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}={one}" for name, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(str, value))
    return str(value)


def _run(words: Sequence[str], progress: Callable[[str], object]) -> dict[str, Any]:
    """Run one command, tell each line of its progress, and return its document."""
    command = [sys.executable, "-m", "tracefleet_pipeline", *words, "--json", "--engine", "none"]
    start = functools.partial(subprocess.Popen, command, stderr=subprocess.PIPE, encoding="utf-8")
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        with start(stdout=out, env=_environment()) as process:
            try:
                tail = _follow(process, progress)
            finally:
                # After an interrupt or an error of `progress` it must not go on unseen.
                process.terminate()
        out.seek(0)
        return _read(out.read(), tail)


def _follow(process: subprocess.Popen[str], progress: Callable[[str], object]) -> list[str]:
    """Tell each line, wait for the end, and return the last lines."""
    assert process.stderr is not None
    tail: list[str] = []
    for line in process.stderr:
        tail = [*tail[1 - _LOG_LINES :], line.rstrip("\n")]
        if not line.startswith("error: "):
            progress(tail[-1])
    process.wait()
    return tail


def _environment() -> dict[str, str]:
    """Return an environment in which the child finds this package, installed or not.

    It does not look into the working directory, where somebody's own ``json.py`` may lie.
    """
    here = str(Path(__file__).resolve().parent.parent)
    paths = [here, os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, paths))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _read(text: str, tail: Sequence[str]) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(text)
    except ValueError:
        last = "\n".join(tail) or "(none)"
        message = f"the conversion's process ended without a result; its last lines:\n{last}"
        raise ConversionError(message, type="ConversionCrashedError") from None
    if "error" in document:
        message, kind = document["error"]["message"], document["error"]["type"]
        raise ConversionError(message.partition(_HELP)[0], type=kind)
    return document
