"""Which warm server serves a run, and where it listens (see ``flows.warm``).

A fork has whatever its server imported. So a server is known by everything that shapes an import:
environment, interpreter, our code, Prefect's settings files, and what the kernel hands down to a
child. Another environment or an edited file is another server. Standard library alone: every run's
command imports this.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
import stat
import struct
import sys
import tempfile
from pathlib import Path

PROTOCOL = 1
PACKAGES = ("flows", "tasks", "tracefleet")
ROOT = Path(__file__).resolve().parent.parent
# Prefect reads these from the working directory when it is imported.
_SETTINGS = (".env", "prefect.toml", "pyproject.toml")
# What a shell changes from start to start; a run gets its own all the same.
_VARY = {"_", "PWD", "OLDPWD", "SHLVL"}


class WarmError(Exception):
    """There is no warm start for this run; the message says why."""


def folder() -> Path:
    """Return the private folder of sockets and locks, made if need be.

    Raises:
        WarmError: it is not ours alone: who writes there would get our environment.
    """
    parent = os.environ.get("XDG_RUNTIME_DIR")
    path = (
        Path(parent) / "tracefleet"
        if parent
        else Path(tempfile.gettempdir()) / f"tracefleet-{os.geteuid()}"
    )
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise WarmError(
            f"{path}: expected a folder of user {os.geteuid()} with mode 0700, "
            f"got owner {found.st_uid} and {stat.filemode(found.st_mode)}"
        )
    return path


def shared(environment: dict[str, str]) -> dict[str, str]:
    """Return what runs have in common: the environment that a server is started with."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("PREFECT__") and name not in _VARY
    }


def identity(program: list[str], environment: dict[str, str]) -> str:
    """Return the name of the server that may serve a program in an environment.

    Only a digest: environments hold secrets, and file names are for everyone to read.
    """
    facts = [
        PROTOCOL,
        program,
        [sys.executable, sys.version, list(sys.flags)],
        code(),
        str(start_folder()),
        _stamps([Path(name) for name in _SETTINGS] + [_profiles(environment)]),
        _inherited(),
        sorted(shared(environment).items()),
    ]
    return hashlib.sha256(json.dumps(facts).encode(errors="surrogateescape")).hexdigest()[:24]


def code() -> str:
    """Return a digest of our code as it is on disk, and of when packages were last installed."""
    files = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    installed = [Path(entry) for entry in sys.path[1:] if entry.endswith("-packages")]
    return hashlib.sha256(json.dumps(_stamps(files + installed)).encode()).hexdigest()


def peer_user(connection: socket.socket) -> int:
    """Return whose process is at the other end, as the kernel knows it."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("iII", credentials)[1])


def start_folder() -> Path | None:
    """Return where a server has to be started; None: anywhere, for no settings file is here."""
    here = Path.cwd()
    return here if any((here / name).exists() for name in _SETTINGS) else None


def _profiles(environment: dict[str, str]) -> Path:
    home = environment.get("PREFECT_HOME") or "~/.prefect"
    path = environment.get("PREFECT_PROFILES_PATH") or f"{home}/profiles.toml"
    return Path(path.replace("$PREFECT_HOME", home)).expanduser()


def _stamps(paths: list[Path]) -> list[tuple[str, int, int]]:
    stamps = []
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            continue
        stamps.append((str(path), found.st_size, found.st_mtime_ns))
    return stamps


def _inherited() -> list[object]:
    """Return what a child gets from its parent without being told: a run must get its worker's."""
    namespaces = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    status = Path("/proc/self/status").read_text()
    wanted = ("Umask:", "Uid:", "Gid:", "Groups:", "CapEff:", "Seccomp:", "NoNewPrivs:")
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return [
        Path("/proc/self/cgroup").read_text(),
        [str(Path("/proc/self/ns", name).readlink()) for name in namespaces],
        [line for line in status.splitlines() if line.startswith(wanted)],
        [resource.getrlimit(getattr(resource, name)) for name in limits],
        sorted(os.sched_getaffinity(0)),
        os.getpriority(os.PRIO_PROCESS, 0),
    ]
