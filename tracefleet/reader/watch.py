"""Serve the current conversion of a channel, and change to the next one between calls.

``tracefleet.watch`` returns a model that is called like one that was opened. In the background it
looks whether the channel has moved; the next conversion is opened, checked and warmed beside the
one that serves, which goes on serving if the next one is refused. One that is withdrawn while it
serves goes on too, and says so: whether to answer with it is for the service to decide.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracefleet.errors import StoreUnavailableError
from tracefleet.finding import find_only_source
from tracefleet.manifest import Manifest
from tracefleet.published import Selection, as_store, select
from tracefleet.reader.model import Model
from tracefleet.reader.open import open_selected
from tracefleet.reader.outputs import Outputs
from tracefleet.store import ReadableStore

logger = logging.getLogger(__name__)
_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Change:
    """What came of a channel that has moved.

    Attributes:
        number: the channel's new number.
        key: conversion key that it points to.
        refused: why it is not served, the one before being served on; None: it is served.
        withdrawn: the reason if the conversion that serves now was withdrawn; None: it was not.
    """

    number: int
    key: str
    refused: str | None = None
    withdrawn: str | None = None


class WatchedModel:
    """The conversion that a channel points to, whichever that is; use it as a `Model`.

    Each call is answered by one conversion from beginning to end. Close it, or use it as a context
    manager, to stop looking.

    Attributes:
        on_change: called, in the thread that looks, after each change and each refusal.
    """

    def __init__(
        self,
        store: ReadableStore,
        find: Callable[[], Selection],
        options: dict[str, Any],
        every: float,
        on_change: Callable[[Change], None] | None,
    ) -> None:
        self._store, self._find, self._options = store, find, options
        self.on_change = on_change
        self._seen = self._current = find()
        self._model = open_selected(store, self._current, **options)
        self._looking = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, args=(every,), name="tracefleet.watch", daemon=True
        )
        self._thread.start()

    @property
    def model(self) -> Model:
        """The model that serves at this moment; it stays usable after a change."""
        return self._model

    @property
    def manifest(self) -> Manifest:
        """Manifest of the conversion that serves at this moment."""
        return self._model.manifest

    @property
    def number(self) -> int:
        """The channel's number that serves at this moment."""
        return self._current.number

    @property
    def withdrawn(self) -> str | None:
        """Why the conversion that serves was withdrawn, at the last look; None: it was not."""
        # What was withdrawn may be a later one, which never served.
        same = self._seen.entry.key == self._current.entry.key
        return self._seen.entry.withdrawn if same else None

    def __call__(self, *inputs: Any, **named: Any) -> Outputs:
        """Call the model that serves at this moment; see `Model`."""
        return self._model(*inputs, **named)

    def predict(self, texts: Any = None, **options: Any) -> Any:
        """Answer texts by the model that serves at this moment; see `Model.predict`."""
        return self._model.predict(texts, **options)

    def stream(self, rows: Iterable[Any], *, window: int = 1024) -> Iterator[Outputs]:
        """Run rows through one conversion, that which serves when the first one is asked for."""
        yield from self._model.stream(rows, window=window)

    def look(self) -> Change | None:
        """Look now; return what came of it, or None if the channel has not moved.

        Raises:
            StoreError: the channel can't be read; what serves goes on.
        """
        with self._looking:  # one look at a time, whoever asks for it
            return self._look()

    def _look(self) -> Change | None:
        found = self._find()
        if (found.number, found.entry) == (self._seen.number, self._seen.entry):
            return None
        refused = self._change(found)
        change = Change(
            number=found.number, key=found.entry.key, refused=refused, withdrawn=self.withdrawn
        )
        if refused is None:
            logger.info("serving number %d, %s", found.number, found.entry.key[:12])
        elif change.withdrawn is not None:
            logger.error("what serves was withdrawn, and serves on: %s", refused)
        else:
            logger.warning("number %d is refused: %s", found.number, refused)
        if self.on_change is not None:
            self.on_change(change)
        return change

    def close(self) -> None:
        """Stop looking; the model goes on serving."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> WatchedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _change(self, found: Selection) -> str | None:
        """Serve another conversion; return why it is refused instead."""
        try:
            model = open_selected(self._store, found, **self._options)
            _warm(model)
        except StoreUnavailableError:
            raise  # it is tried again the next time
        except Exception as error:  # whatever is wrong with the next one, this one serves
            self._seen = found
            return f"{type(error).__name__}: {error}"
        model.on_run = self._model.on_run
        self._seen = self._current = found
        self._model = model
        return None

    def _watch(self, every: float) -> None:
        while not self._stop.wait(every):
            try:
                self.look()
            except Exception as error:  # a store that is away for a while costs no call
                logger.warning("looking failed, and is tried again: %r", error)


def watch(
    store: str | Path | ReadableStore,
    source: str | Path | None = None,
    *,
    every: float = _SECONDS,
    on_change: Callable[[Change], None] | None = None,
    task: str | None = None,
    backend: str = "jit",
    dtype: str | None = None,
    batch: int | None = None,
    channel: str = "latest",
    device: str | None = None,
    allow_unvalidated: bool = False,
    neuron_cores: tuple[int, int] | None = None,
) -> WatchedModel:
    """Open the current conversion of a source and follow its channel.

    Args:
        store: URL or path of the store, or an opened store.
        source: a name or a checkpoint, as `tracefleet.open` takes it; None: the only source there
            is now, also once there are others.
        every: seconds between two looks.
        on_change: called with each `Change`.
        task: as `tracefleet.open` takes it, and so are the others.
        backend: see there.
        dtype: see there.
        batch: see there.
        channel: the channel to follow.
        device: see there.
        allow_unvalidated: see there.
        neuron_cores: see there.

    Raises:
        ValueError: ``every`` is not positive.
        ArtifactError: nothing can be opened now; see `tracefleet.open`.
    """
    if every <= 0:
        raise ValueError(f"every: expected more than 0 seconds, got {every}")
    opened = as_store(store)
    wanted = {"task": task, "backend": backend, "dtype": dtype, "batch": batch, "channel": channel}

    # A source that is published meanwhile must not end what serves.
    address = find_only_source(opened, **wanted) if source is None else source

    def find() -> Selection:
        return select(opened, address, **wanted)  # type: ignore[arg-type]

    options = {
        "device": device,
        "allow_unvalidated": allow_unvalidated,
        "neuron_cores": neuron_cores,
    }
    return WatchedModel(opened, find, options, every, on_change)


def _warm(model: Model) -> None:
    """Read the weights into memory and run once, so that no caller waits for it."""
    import torch

    for weight in getattr(model._module, "parameters", list)():
        weight.detach().float().sum()
    tensors, batch = [], model.manifest.variant.batch
    for spec in model.manifest.inputs:
        shape = spec.shape(batch=batch, length=model.lengths[0])
        tensors.append(torch.zeros(shape, dtype=getattr(torch, spec.dtype)))
    # Some models refuse zeros for ids, as they would from any caller.
    with contextlib.suppress(RuntimeError, ValueError):
        model._run("forward", tensors)
