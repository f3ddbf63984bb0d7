"""An S3 server for one machine: ``python -m infra.s3_server``.

It is OpenStack Swift with its S3 interface, bound to 127.0.0.1: signatures are checked, objects
survive a restart, and of several writers with ``If-None-Match: *`` exactly one succeeds. It is
meant for trying tracefleet out and for its tests. Swift's internal ports require no signature:
every user of this machine can reach the objects.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import re
import secrets
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra import HOST

REGION = "us-east-1"
ACCESS_KEY = "tracefleet:local"
_INSTALL = "pip install '.[s3server]' -c constraints.txt"

# tempauth's names are `user_<account>_<user>`, which rules out `_` in both halves.
_ACCESS_KEY = re.compile(r"[A-Za-z0-9.-]+:[A-Za-z0-9.-]+")
_SECRET = re.compile(r"[A-Za-z0-9./+=~_-]+")
# S3 user guide, "General purpose bucket naming rules".
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class StartError(Exception):
    """The server can't start; the message gives the reason and the next step."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; on failure return 1, with one line on stderr."""
    options = _build_parser().parse_args(arguments)
    try:
        _check(options)
        with _locking(options.folder):
            _check_attributes(options.folder)
            _run(options)
    except StartError as error:
        print(f"s3_server: {error}", file=sys.stderr)
        return 1
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.s3_server", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("s3-data"), help="folder of the objects"
    )
    parser.add_argument("--port", type=int, default=8333, help="0 picks a free one")
    parser.add_argument("--bucket", default="tracefleet", help="created at start if missing")
    parser.add_argument("--access-key", default=ACCESS_KEY, help="account:user")
    parser.add_argument("--secret", help="random if not given, another one at each start")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse values that Swift would accept now and fail on later."""
    if not 0 <= options.port <= 65535:
        raise StartError(f"port {options.port}: expected 0 to 65535")
    if not _BUCKET.fullmatch(options.bucket):
        raise StartError(
            f"bucket {options.bucket!r}: expected 3 to 63 of a-z, 0-9, '.' and '-'; "
            "pass another --bucket"
        )
    if not _ACCESS_KEY.fullmatch(options.access_key):
        raise StartError(
            f"access key {options.access_key!r}: expected ACCOUNT:USER of letters, digits, "
            "'.' and '-'; pass another --access-key"
        )
    if options.secret is not None and not _SECRET.fullmatch(options.secret):
        raise StartError("the secret: expected letters, digits and './+=~_-'; pass another")


@contextmanager
def _locking(folder: Path) -> Iterator[None]:
    """Create the folder and lock it."""
    # Two servers over one folder would each let a writer with `If-None-Match: *` succeed.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise StartError(f"{folder}: {error.strerror}; pass a --folder you may write") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartError(
                f"{folder}: another server uses it; stop that one or pass another --folder"
            ) from None
        yield


def _check_attributes(folder: Path) -> None:
    """Refuse a file system without extended attributes."""
    # Swift keeps an object's metadata in them.
    try:
        os.setxattr(folder / "lock", "user.tracefleet", b"1")
    except (AttributeError, OSError):
        raise StartError(
            f"{folder}: this file system has no extended attributes, which Swift needs; pass a "
            "--folder on ext4, xfs or btrfs (Linux only)"
        ) from None


def _run(options: argparse.Namespace) -> None:
    """Start Swift, print how to reach it, and serve."""
    try:
        # eventlet advises its users to move to asyncio. Only Swift could do that.
        warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
        from infra import swift_app
    except ImportError as error:
        raise StartError(f"Swift can't be imported ({error}); run: {_INSTALL}") from None
    sock = _listen(swift_app.listen, options.port)
    secret = options.secret or secrets.token_urlsafe(24)
    folder = options.folder.resolve()
    app, proxy = swift_app.build(folder, options.access_key, secret, REGION)
    swift_app.start(sock, app)
    swift_app.create_bucket(proxy, options.access_key, options.bucket)
    # Before the announcement, after which a signal may come.
    received = _catch_signals()
    _announce(sock.getsockname()[1], options, secret)
    while not received:
        # Short because a signal doesn't wake eventlet's hub.
        swift_app.sleep(0.1)


def _listen(listen: Callable[[int], Any], port: int) -> Any:
    try:
        return listen(port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = "something else uses it; stop that, or pass another --port (0 picks a free one)"
        else:
            why = f"{error.strerror}; pass another --port"
        raise StartError(f"port {port} of {HOST}: {why}") from None


def _announce(port: int, options: argparse.Namespace, secret: str) -> None:
    print(f"# S3 on {HOST}, bucket s3://{options.bucket}, objects in {options.folder}")
    print("# In another shell, paste:")
    print(f"export AWS_ENDPOINT_URL=http://{HOST}:{port}")
    print(f"export AWS_ACCESS_KEY_ID={options.access_key}")
    print(f"export AWS_SECRET_ACCESS_KEY={secret}")
    print(f"export AWS_DEFAULT_REGION={REGION}", flush=True)


def _catch_signals() -> list[int]:
    """Return a list to which SIGINT and SIGTERM are appended from now on."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.append(number))
    return received


if __name__ == "__main__":
    sys.exit(main())
