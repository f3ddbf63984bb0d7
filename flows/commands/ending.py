"""An interrupted command ends within seconds, also where Prefect's server does not answer.

Ctrl-C in a terminal reaches the embedded server too, which ends at once. Prefect's client then
asks it again for minutes, in threads that Prefect's task runner and Python itself wait for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import psutil

from tracefleet.program import INTERRUPTED

#: A step's child ends within 0.2 s, and an embedded server within 2 s.
HERE_SECONDS = 8.0
#: To cancel runs in the pools takes requests, each with 15 s of patience (flows.engine.cancelled).
POOLS_SECONDS = 40.0
_GONE = {
    True: "Prefect's server did not answer: what runs in the pools may go on "
    "(prefect flow-run cancel ID)",
    False: "a conversion is published only if its channel line was printed",
}


@contextmanager
def ending_soon(*, pools: bool) -> Iterator[None]:
    """Let Ctrl-C end this process: in order if that takes seconds, else at once.

    Within it the first SIGINT is a ``KeyboardInterrupt`` as ever, and begins the time that an
    orderly end has; a second one ends the process at once. In another thread than the main one,
    and where SIGINT is ignored (``nohup``, a shell's background job), nothing changes.

    Args:
        pools: workers elsewhere convert, and have to be told.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, lambda *_: _end(pools=pools))
        seconds = POOLS_SECONDS if pools else HERE_SECONDS
        timer = threading.Timer(seconds, _end, kwargs={"pools": pools})
        timer.daemon = True  # it outlives this context: Python waits for threads at its exit too
        timer.start()
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        # Not after an interrupt: until the process is gone a second one ends it.
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


def _end(*, pools: bool) -> NoReturn:
    """End this process and what it started, now; the store is right at whatever moment."""
    # Not print: the main thread may be printing where the signal met it.
    os.write(2, f"interrupted; {_GONE[pools]}\n".encode())
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(INTERRUPTED)
