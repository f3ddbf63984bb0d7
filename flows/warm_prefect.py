"""What a warm server has ready for a flow run (see ``flows.warm_server``).

Prefect's engine and our flow are imported here. The models' fork server, with torch and
transformers, is a process beside it: what it imports for a child that may not reach the network
(``tasks.preload``) must not be in the process that fetches.
"""

from __future__ import annotations

import contextlib
import gc
import importlib

import flows.convert_checkpoint  # noqa: F401
from flows.warm_key import ROOT
from tasks import child
from tasks.warm import adopt_server

# Imported by every run, but only when it comes to it. What another version has not is no loss.
_LATE = (
    "anyio._core._sockets",
    "encodings.idna",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "multiprocessing.popen_forkserver",
    "prefect._internal.metrics",
    "prefect.deployments.steps.core",
    "prefect.flow_engine",
    "prefect.flow_runs",
    "prefect.task_engine",
    "prefect.task_runners",
    "prefect.utilities.visualization",
    "rich._emoji_codes",
)
for name in _LATE:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)

# What is here stays: not looking at it again keeps its pages shared with the runs.
gc.collect()
gc.freeze()


def before_fork() -> None:
    """Keep the models' fork server running; it finds our code where it is started."""
    with contextlib.chdir(ROOT):
        child.warm_up()


def after_fork() -> None:
    """Let the run use the models' fork server."""
    adopt_server()
