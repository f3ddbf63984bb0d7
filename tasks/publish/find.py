"""Find what is published under a conversion key, and refuse what did not pass the gate."""

from __future__ import annotations

from tasks.errors import NumericsMismatchError
from tasks.model.quantise import check_accuracy
from tasks.publish.identity import Identity
from tracefleet.channel import conversion_folder
from tracefleet.errors import ManifestError
from tracefleet.manifest import CANDIDATE, MANIFEST, Manifest, parse
from tracefleet.store import ReadableStore
from tracefleet.verdict_types import UNVALIDATED_ON_DEVICE, VALIDATED, Validation

#: The only channel for conversions that no device has run.
CANDIDATE_CHANNEL = "candidate"


def find_published(store: ReadableStore, source: str, key: str) -> Manifest | None:
    """Return the manifest that is published under a key, or None.

    Raises:
        ManifestError: there is a manifest, and it can't be trusted.
    """
    manifest = find_manifest(store, source, key, MANIFEST)
    if manifest is not None:
        check_publishable(manifest.validation)
    return manifest


def find_candidate(store: ReadableStore, source: str, key: str) -> Manifest | None:
    """Return the manifest of the candidate under a key, or None.

    Raises:
        ManifestError: there is a manifest, and it can't be trusted.
    """
    return find_manifest(store, source, key, CANDIDATE)


def find_manifest(store: ReadableStore, source: str, key: str, name: str) -> Manifest | None:
    """Return the manifest of this file name under a key, or None.

    Raises:
        ManifestError: the file was moved or edited, or its verdict has another file name.
    """
    path = f"{conversion_folder(source, key)}/{name}"
    try:
        manifest = parse(store.read(path))
    except FileNotFoundError:
        return None
    identity = Identity.of(manifest).key
    if not key == manifest.key == identity:
        raise ManifestError(
            f"{path}: key expected {key}, got {manifest.key}, and its contents give {identity}. "
            "The file was moved or edited; restore it, or remove the folder and convert again."
        )
    if manifest.file_name != name:
        raise ManifestError(
            f"{path}: verdict expected another one in a file of that name, got "
            f"{manifest.validation.verdict!r}. It was not written by tracefleet; remove the folder "
            "and convert again."
        )
    return manifest


def check_publishable(validation: Validation) -> None:
    """Refuse to publish what did not pass the gate; every path to a channel calls this.

    Raises:
        NumericsMismatchError: the verdict, a length, the negative controls or the accuracy
            does not allow it.
    """
    if validation.verdict == UNVALIDATED_ON_DEVICE:
        raise NumericsMismatchError(
            f"publish: expected verdict {VALIDATED!r}, got {UNVALIDATED_ON_DEVICE!r}: no device "
            f"has run it yet, and only the channel {CANDIDATE_CHANNEL!r} may have it. Nothing was "
            "published. Run `tracefleet validate` on a host with the device."
        )
    if validation.accuracy is not None:
        check_accuracy(validation.accuracy)
    passed = validation.lengths and all(v.passed and v.probes > 0 for v in validation.lengths)
    if validation.verdict == VALIDATED and passed and validation.negative_controls:
        return
    raise NumericsMismatchError(
        "publish: expected verdict 'validated' with every length passed and a caught negative "
        f"control, got {validation.verdict!r}, lengths "
        f"{[(v.length, v.passed) for v in validation.lengths]}, controls "
        f"{validation.negative_controls}. Nothing was published. Convert the checkpoint again."
    )
