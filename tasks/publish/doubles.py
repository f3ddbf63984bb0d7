"""Publish programs of the tests' contract double into stores of tests alone.

The contract double of Neuron's packages (``tests/neuron_double``) marks whatever it compiles. Its
numbers are computed by this machine's CPU and prove nothing about a device.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

from tasks.errors import UnsafeCheckpointError
from tracefleet.manifest import Manifest
from tracefleet.store import ReadableStore

#: Mark in the state of every module that the double compiled, and so in the archive's pickles.
STAMP = "NEURON-CONTRACT-DOUBLE"
#: File at the root of the stores that accept the double's programs: those of tests.
TEST_STORE = f"{STAMP}.txt"
_VERSION = "+double"


def refuse_doubles(store: ReadableStore, manifest: Manifest, files: Iterable[Path]) -> None:
    """Refuse a conversion that the double compiled, unless the store is marked as a test's.

    Args:
        store: Store to publish to.
        manifest: Manifest, whose toolchain names the compiler.
        files: Local files of the conversion.

    Raises:
        UnsafeCheckpointError: the double compiled it.
    """
    compiler = manifest.toolchain.compiler or ""
    stamped = [path.name for path in files if is_double(path)]
    if (not stamped and _VERSION not in compiler) or _is_test_store(store):
        return
    raise UnsafeCheckpointError(
        f"publish: expected what AWS's packages compiled, got {', '.join(stamped) or compiler}, "
        "made by the contract double of the tests. Nothing was published. Take tests/neuron_double "
        f"off the Python path and convert again; only a store with {TEST_STORE} at its root "
        "accepts such a conversion."
    )


def is_double(path: Path) -> bool:
    """Return whether a file is an archive that the double made."""
    if path.suffix != ".pt" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith(".pkl")]
        return any(STAMP.encode() in archive.read(name) for name in pickles)


def _is_test_store(store: ReadableStore) -> bool:
    try:
        store.read(TEST_STORE)
    except FileNotFoundError:
        return False
    return True
