"""Prefect's settings, made before it is imported, wherever a flow is started from here."""

from __future__ import annotations

import logging
import os
from weakref import WeakSet

#: The embedded server needs more than its default 20 s on small machines; what our loggers say
#: belongs into the run's log; analytics are off. The server's automation
#: takes a run without three heartbeats of 30 s for lost (infra.automations).
SETTINGS = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_CLIENT_MAX_RETRIES": "10",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,tasks,tracefleet",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
_DATABASE = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
#: The embedded server's database, as Prefect's setting describes it: one connection, which several
#: writers take in turns. In a file each has its own, and they wait for each other's locks, up to
#: 60 s (``PRAGMA busy_timeout``, prefect.server.database.configurations). It ends with the server.
_IN_MEMORY = "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true&check_same_thread=false"


#: Packages whose errors say what is wrong: ours, and those that talk to a network.
_TELLING = ("flows", "tasks", "tracefleet")
_NETWORK = ("botocore", "httpcore", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3")
_told: WeakSet[BaseException] = WeakSet()


def prepare() -> None:
    """Set what the user's environment leaves open; to be called before Prefect is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if not any(name in os.environ for name in _DATABASE):
        os.environ[_DATABASE[0]] = _IN_MEMORY


def show_progress() -> None:
    """Let our loggers tell their progress, unless somebody has set their levels."""
    for name in SETTINGS["PREFECT_LOGGING_EXTRA_LOGGERS"].split(","):
        if (ours := logging.getLogger(name)).level == logging.NOTSET:
            ours.setLevel(logging.INFO)
    # It prints by itself.
    logging.getLogger("huggingface_hub").propagate = False
    tell_errors_once()


def tell_errors_once() -> None:
    """Let Prefect log an error that its type explains in one line, and once.

    It logs the traceback of what a task raises, then of the same error that its flow raises, then
    of the same that its process ends with. Errors that nobody foresaw keep theirs.
    """
    for name in ("prefect.task_runs", "prefect.flow_runs", "prefect.engine"):
        # The same function is added once.
        logging.getLogger(name).addFilter(_tell_once)


def _tell_once(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if error is None or not _explains_itself(error):
        return True
    record.exc_info = record.exc_text = None
    known = error in _told
    _told.add(error)
    return not known


def _explains_itself(error: BaseException) -> bool:
    package = type(error).__module__.partition(".")[0]
    return package in (*_TELLING, *_NETWORK) or isinstance(error, ConnectionError | TimeoutError)


def quieten(*, quiet: bool) -> None:
    """Leave a terminal one line for each entry; runs keep their whole log in the API.

    Args:
        quiet: warnings only.
    """
    import prefect.main  # noqa: F401  it sets logging up

    def is_for_people(record: logging.LogRecord) -> bool:
        if record.name.startswith(
            ("prefect.flow_runs", "prefect.task_runs", "tasks", "tracefleet")
        ):
            return False  # errors are told by the entry's line
        return not quiet or record.levelno >= logging.WARNING

    # Prefect's own handlers do not pass on to the root's, so all of them are asked.
    for name in (None, "prefect", *SETTINGS["PREFECT_LOGGING_EXTRA_LOGGERS"].split(",")):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.addFilter(is_for_people)


def announce_server() -> None:
    """Report that Prefect starts a server of its own, where none is configured."""
    if "PREFECT_API_URL" not in os.environ:
        logging.getLogger("flows").info("starting Prefect's embedded server (about 20 s)")


def wants_prefect(engine: str) -> bool:
    """Whether ``--engine`` means Prefect: ``auto`` does if its API's URL is set."""
    return engine == "prefect" or (engine == "auto" and "PREFECT_API_URL" in os.environ)


def has_server() -> bool:
    """Whether a Prefect server is configured, by the environment or the active profile."""
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())
