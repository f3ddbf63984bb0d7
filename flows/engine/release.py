"""Which release runs: version, commit and toolchain, as the version of every flow.

Prefect shows it as the deployment's version, and with each run as ``Flow Version``: of the worker
that ran it, and of conversions that have no deployment of their own too.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

#: What tells the commit where there is no git: the image's build writes it beside the code.
COMMIT_FILE = "COMMIT"
_ROOT = Path(__file__).parent.parent.parent
_TOOLCHAIN = ("torch", "transformers", "torch-neuronx", "torch-neuron", "neuronx-cc")
_SECONDS = 10


def describe_release(root: Path = _ROOT) -> str:
    """Return a text such as ``0.2.0+93d059c torch 2.13.0 transformers 5.23.0``.

    Args:
        root: Folder of the code; with neither a file ``COMMIT`` nor a git repository of its own no
            commit is told.
    """
    commit = _read_commit(root) or _ask_git(root)
    version = _find_version("tracefleet") or "0"
    release = f"{version}+{commit}" if commit else version
    return " ".join((release, *_list_toolchain()))


def _read_commit(root: Path) -> str:
    try:
        return (root / COMMIT_FILE).read_text("utf-8").strip()
    except OSError:
        return ""


def _ask_git(root: Path) -> str:
    # A package that was installed into somebody else's repository has no commit of that one.
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def _list_toolchain() -> Iterator[str]:
    for package in _TOOLCHAIN:
        version = _find_version(package)
        if version is not None:
            yield f"{package} {version}"


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


RELEASE = describe_release()
