"""AWS Neuron's runtime: check that this host has one that fits, and load programs with it.

Package, versions and generation of the cores are checked before a program is loaded, because the
runtime reports no more than a status number. Sources: AWS's documentation of torch_neuronx
(core placement, ``replace_weights``), of torch_neuron (archived) and of Neuron's sysfs tree.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracefleet.errors import ArtifactError, BackendUnavailableError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import Toolchain

if TYPE_CHECKING:
    import torch

#: backend -> the package whose import registers its operators and opens its runtime.
PACKAGES = {"neuronx": "torch_neuronx", "neuron": "torch_neuron"}
#: backend -> its distributions, the compiler first, in the order of a toolchain.
DISTRIBUTIONS = {
    "neuronx": ("neuronx-cc", "torch-neuronx"),
    "neuron": ("neuron-cc", "torch-neuron"),
}
_HOSTS = {"neuronx": "an Inf2 or Trn instance", "neuron": "an Inf1 instance"}
#: target -> generation of its NeuronCores. A program runs on no other generation.
GENERATIONS = {"inf1": 1, "inf2": 2, "trn1": 2, "trn1n": 2, "trn2": 3, "trn3": 4}
#: Where the driver reports the NeuronCores of each device ("NCv2").
SYSFS = Path("/sys/devices/virtual/neuron_device")


def target_of(manifest: Manifest) -> str:
    """Return the instance family that a conversion was compiled for."""
    return manifest.options.get("neuronx.target", "inf1")


def check_host(backend: str, toolchain: Toolchain, target: str) -> None:
    """Refuse a host that can't run a conversion, before anything is loaded.

    Raises:
        BackendUnavailableError: a package is missing or older than what compiled the conversion,
            or the device has NeuronCores of another generation.
    """
    import_runtime(backend)
    check_versions(backend, toolchain)
    check_generation(target)


def import_runtime(backend: str) -> Any:
    """Import a backend's package, without which ``torch.jit.load`` knows no Neuron operator.

    Raises:
        BackendUnavailableError: it can't be imported.
    """
    package = PACKAGES[backend]
    try:
        return importlib.import_module(package)
    except Exception as error:  # a missing library raises OSError, a bad pair of versions anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BackendUnavailableError(
            f"backend {backend!r}: expected the package {package} of AWS's Neuron SDK, got "
            f"{reason}. Run on {_HOSTS[backend]} with {' and '.join(DISTRIBUTIONS[backend])} from "
            "AWS's package repository (infra/neuron has images); the public index holds "
            "placeholders."
        ) from error


def find_installed(backend: str) -> dict[str, str]:
    """Return the versions of the backend's distributions that are installed on this host."""
    found = {}
    for name in DISTRIBUTIONS[backend]:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def format_toolchain(found: Mapping[str, str]) -> str:
    """Return versions in the form of a toolchain: ``neuronx-cc==2.27 torch-neuronx==2.9``."""
    return " ".join(f"{name}=={number}" for name, number in found.items())


def check_versions(backend: str, toolchain: Toolchain) -> None:
    """Refuse packages that are older than those that compiled a conversion.

    Raises:
        BackendUnavailableError: a package is older.
    """
    # A runtime loads programs of older compilers, not of newer ones (aws-neuron-sdk #820, #1061).
    built = dict(re.findall(r"([\w-]+)==(\S+)", toolchain.compiler or ""))
    for name, here in find_installed(backend).items():
        if name in built and parse_version(here) < parse_version(built[name]):
            raise BackendUnavailableError(
                f"{name}: expected at least {built[name]}, which compiled this conversion, got "
                f"{here}. An older runtime can't load it: upgrade {name} and Neuron's runtime "
                "here, or convert with the older version."
            )


def check_generation(target: str) -> None:
    """Refuse a device whose NeuronCores can't run programs for ``target``.

    If the driver doesn't report the generation, nothing is refused and the runtime decides.

    Raises:
        BackendUnavailableError: its cores are of another generation.
    """
    here = find_core_generation()
    wanted = GENERATIONS[target]
    if here is not None and here != wanted:
        raise BackendUnavailableError(
            f"device: expected NeuronCores v{wanted} ({target}), got v{here}. A program runs on "
            "the generation that it was compiled for: open it there, or convert for this one."
        )


def find_core_generation() -> int | None:
    """Return the generation of this host's NeuronCores; None: the driver doesn't report it."""
    # Driver 2.31 moved nodes of the tree, so they are searched for by name.
    for path in sorted(SYSFS.glob("neuron*/**/arch_type")):
        with contextlib.suppress(OSError):
            found = re.search(r"NCv(\d+)", path.read_text())
            if found:
                return int(found[1])
    return None


def load(backend: str, source: Any, *, cores: tuple[int, int] | None = None) -> Any:
    """Load one program, on given NeuronCores or where the runtime puts it.

    Args:
        backend: ``neuronx`` or ``neuron``.
        source: a path or an open file with the program.
        cores: the first core and how many; None: the next core in turn.

    Raises:
        BackendUnavailableError: no device, no such core, or not enough memory on it.
        ArtifactError: the program does not load for another reason.
    """
    import torch

    runtime = import_runtime(backend)
    try:
        # No map_location: the runtime chooses the device.
        with _placing(runtime, cores):
            return torch.jit.load(source).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise _refusal(error) from error


def _refusal(error: Exception) -> ArtifactError:
    """Return the error, with advice, for the runtime's failure to load a program."""
    text = str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else text
    for pattern, kind, advice in _REFUSALS:
        if re.search(pattern, text):
            return kind(f"expected Neuron's runtime to load the program, got: {last}. {advice}")
    return ArtifactError(
        f"expected Neuron's runtime to load the program, got: {last}. Its bytes are as published; "
        "compare the manifest's toolchain with this host's."
    )


_REFUSALS: tuple[tuple[str, type[ArtifactError], str], ...] = (
    (
        r"could not be initialized|num_devices",
        BackendUnavailableError,
        "This host has no Neuron device, or no driver: run on a Neuron instance, give the "
        "container --device=/dev/neuron0, and look at `neuron-ls`.",
    ),
    (
        r"not available|status=9\b|start_nc|nc_count",
        BackendUnavailableError,
        "Another process holds the NeuronCores, or the host has fewer: see `neuron-top`, "
        "NEURON_RT_NUM_CORES and NEURON_RT_VISIBLE_CORES.",
    ),
    (
        r"status=4\b|Allocation Failure",
        BackendUnavailableError,
        "The programs of all lengths don't fit the core's memory: place them on more cores, or "
        "convert with fewer lengths.",
    ),
    (
        r"status=(2|10)\b|NEFF version|Unsupported NEFF",
        BackendUnavailableError,
        "It was compiled for other NeuronCores or by a newer compiler than this runtime knows: "
        "compare the manifest's toolchain and target with `neuron-ls` and this host's packages.",
    ),
)


def _placing(runtime: Any, cores: tuple[int, int] | None) -> AbstractContextManager[Any]:
    if cores is None:
        return contextlib.nullcontext()
    context: AbstractContextManager[Any] = find_placement(runtime).neuron_cores_context(*cores)
    return context


def find_placement(runtime: Any) -> Any:
    """Return the module with a package's placement calls."""
    # Up to Neuron 2.24, and on Inf1, they are in `experimental`.
    return runtime if hasattr(runtime, "neuron_cores_context") else runtime.experimental


def replace_weights(
    programs: Iterable[torch.jit.ScriptModule], weights: Mapping[str, torch.Tensor]
) -> None:
    """Replace every program's weights in place; the weights must be separate from the programs.

    Args:
        programs: programs that ``load`` returned.
        weights: tensors by their names in the checkpoint's model.
    """
    runtime = import_runtime("neuronx")
    # The recorded module holds the checkpoint's model under this name.
    named = {f"model.{name}": tensor for name, tensor in weights.items()}
    for program in programs:
        runtime.replace_weights(program, named)


def parse_version(text: str) -> tuple[int, ...]:
    """Return a version's numbers, without the local part; empty where there are none."""
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0]))
