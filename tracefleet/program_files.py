"""Names of Neuron's programs in a conversion's folder: one archive for each part and length."""

from __future__ import annotations

from tracefleet.errors import ManifestError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import FileEntry

#: The model's own call; then the two that a search makes, of an encoder-decoder that generates.
FORWARD, ENCODE, DECODE = "length", "encode", "decode"
SEARCH = (ENCODE, DECODE)


def program_path(length: int, part: str = FORWARD) -> str:
    """Return the path of one standard length's program in its conversion's folder."""
    return f"model/{part}-{length}.pt"


def find_programs(manifest: Manifest) -> dict[str, dict[int, FileEntry]]:
    """Return the archive of each standard length, for each part that the conversion has.

    Raises:
        ManifestError: a length has no archive, or an archive belongs to no length.
    """
    parts = (FORWARD, *SEARCH) if manifest.generation is not None else (FORWARD,)
    found = {file.path: file for file in manifest.archives}
    wanted = [program_path(length, part) for part in parts for length in manifest.lengths]
    if found.keys() != set(wanted):
        raise ManifestError(
            f"manifest: expected {sorted(wanted)}, the programs of each length, got "
            f"{sorted(found)}. This conversion can't be opened on Neuron."
        )
    programs: dict[str, dict[int, FileEntry]] = {}
    for part in parts:
        programs[part] = {length: found[program_path(length, part)] for length in manifest.lengths}
    return programs
