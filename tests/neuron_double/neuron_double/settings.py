"""What the imitated machine is like and which faults strike: one variable, read in one place.

``NEURON_DOUBLE="device=inf2;cores=2;fault=exit70"`` sets it for a process and what it starts. The
children of a multiprocessing fork server keep the environment that the server once had, but they
get the parent's ``sys.path``: so ``configured`` also puts a folder with the same text there, and
that folder wins. It holds ``.dist-info`` folders for configured versions too, so that
``importlib.metadata`` reports them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "NEURON_DOUBLE"
#: The folder to put on the path: it holds the packages and their ``.dist-info`` folders.
FOLDER = Path(__file__).resolve().parent.parent
_FILE = "neuron_double.settings"
_PACKAGES = ("torch_neuronx", "torch_neuron")

NEURONX_CC, NEURON_CC = "2.27.5334.0", "1.24.0.0"
TORCH_NEURONX, TORCH_NEURON = "2.9.0.2.15.32035+double", "1.13.1.2.11.13.0+double"

#: device -> (generation of its NeuronCores, cores of the smallest instance, bytes per core)
DEVICES = {
    "inf1": ("v1", 4, 2 << 30),
    "inf2": ("v2", 2, 16 << 30),
    "trn1": ("v2", 2, 16 << 30),
    "trn2": ("v3", 4, 24 << 30),
    "trn3": ("v4", 4, 36 << 30),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The imitated machine; every field is a ``name=value`` of the variable.

    Attributes:
        device: none, inf1, inf2, trn1, trn2 or trn3.
        cores: NeuronCores of the machine; 0: as many as the smallest instance has.
        busy: cores that another process holds.
        core_memory: bytes of one core; 0: as the device has.
        fault: strikes every compilation: ``exit<status>`` (exit70), killed (-9), hang, segfault,
            limit2gb, no_compiler, or a diagnostic's code (NCC_EVRF007).
        fault_shape: strikes only where the first input has this shape: ``2x16``.
        strikes: how many subgraphs of one Inf1 trace the fault strikes; 0: all.
        run_fault: ``numerical``, ``nan`` or ``wrong`` (outputs off by a quarter) at every run.
        analyze_fault: ``deadlock`` (unless it is told of transformers) or ``no-device``.
        unsupported: more operators that the compiler refuses: ``aten::tanh,aten::erf``.
        compiler: version of the compiler; empty: the newest known.
        runtime_reads: newest compiler whose programs the runtime loads; empty: the newest known.
        torch_neuronx: version of that package; empty: the newest known.
        auto_cast: what the compiler does without ``--auto-cast``: none or matmult.
        legacy: how torch-neuron of 2021 runs without a device: empty (it refuses), garbage, cpu.
        constant_limit: bytes of weights that fit an Inf1 program without separate_weights.
        seconds_per_op: time that one compilation takes for each operator.
    """

    device: str = "inf2"
    cores: int = 0
    busy: int = 0
    core_memory: int = 0
    fault: str = ""
    fault_shape: str = ""
    strikes: int = 0
    run_fault: str = ""
    analyze_fault: str = ""
    unsupported: str = ""
    compiler: str = ""
    runtime_reads: str = ""
    torch_neuronx: str = ""
    auto_cast: str = "none"
    legacy: str = ""
    constant_limit: int = 1_900_000_000
    seconds_per_op: float = 20e-6

    def __post_init__(self) -> None:
        if self.device != "none" and self.device not in DEVICES:
            raise ValueError(f"device: expected none or one of {list(DEVICES)}, got {self.device}")

    @property
    def generation(self) -> str:
        """The device's NeuronCores: v1 to v4; empty without a device."""
        return DEVICES[self.device][0] if self.device != "none" else ""

    @property
    def core_count(self) -> int:
        """Cores of the machine."""
        return 0 if self.device == "none" else self.cores or DEVICES[self.device][1]

    @property
    def bytes_per_core(self) -> int:
        """Memory of one core."""
        return 0 if self.device == "none" else self.core_memory or DEVICES[self.device][2]

    def render(self) -> str:
        """Return the variable's text; ``parse`` reads it back."""
        default = Settings()
        pairs = dataclasses.asdict(self).items()
        return ";".join(f"{k}={v}" for k, v in pairs if v != getattr(default, k))


def parse(text: str) -> Settings:
    """Read ``name=value;name=value``; unknown names are refused."""
    kinds = {name: type(value) for name, value in dataclasses.asdict(Settings()).items()}
    values: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in text.split(";"))):
        name, _, value = pair.partition("=")
        if name not in kinds:
            raise ValueError(f"{VARIABLE}: expected one of {list(kinds)}, got {name!r}")
        values[name] = kinds[name](value)
    return Settings(**values)


def current() -> Settings:
    """Return the settings in force: the path's first, else the environment's."""
    for entry in sys.path:
        # A string test first: this runs at every call of a model.
        if Path(entry).name.startswith(_FILE):
            return parse((Path(entry) / _FILE).read_text())
    return parse(os.environ.get(VARIABLE, ""))


@contextlib.contextmanager
def configured(**settings: Any) -> Iterator[Settings]:
    """Make the double importable with these settings: here, in subprocesses and in fork children.

    Afterwards the path, the environment and ``sys.modules`` are as before. A nested call starts
    from the defaults again.
    """
    wanted = Settings(**settings)
    kept_path, kept = list(sys.path), {n: os.environ.get(n) for n in (VARIABLE, "PYTHONPATH")}
    with tempfile.TemporaryDirectory(prefix=_FILE) as folder:
        (Path(folder) / _FILE).write_text(wanted.render())
        _write_versions(Path(folder), wanted)
        sys.path[:0] = [folder, str(FOLDER)]
        os.environ[VARIABLE] = wanted.render()
        inherited = [kept["PYTHONPATH"]] if kept["PYTHONPATH"] else []
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, str(FOLDER), *inherited])
        try:
            yield wanted
        finally:
            sys.path[:] = kept_path
            _restore(kept)
            if str(FOLDER) not in kept_path:
                _forget_packages()


def _restore(kept: dict[str, str | None]) -> None:
    for name, value in kept.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _forget_packages() -> None:
    """Let ``import torch_neuronx`` fail again, as on a machine without it."""
    for name in [n for n in sys.modules if n.split(".")[0] in _PACKAGES]:
        del sys.modules[name]
    if "torch" in sys.modules:
        vars(sys.modules["torch"]).pop("neuron", None)


def _write_versions(folder: Path, settings: Settings) -> None:
    """Let ``importlib.metadata`` find the configured versions before the usual ones."""
    compiler = "neuron_cc" if settings.device == "inf1" else "neuronx_cc"
    for name, version in ((compiler, settings.compiler), ("torch_neuronx", settings.torch_neuronx)):
        if version:
            write_distribution(folder, name, version)


def write_distribution(folder: Path, name: str, version: str) -> None:
    """Write the ``.dist-info`` folder of one distribution."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    public = name.replace("_", "-")
    text = f"Metadata-Version: 2.1\nName: {public}\nVersion: {version}\n"
    (info / "METADATA").write_text(f"{text}Summary: Contract double, not the Neuron SDK\n")
