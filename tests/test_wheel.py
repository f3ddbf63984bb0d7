"""The wheel holds the contract alone, and importing it stays light."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "numpy", "transformers", "tokenizers", "prefect", "pydantic", "boto3", "fsspec")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(
        [*command, str(ROOT)], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = out.glob("*.whl")
    return built


def test_the_wheel_holds_tracefleet_alone(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in ours} == {"tracefleet"}
    expected = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tracefleet").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours == expected
    assert {"tracefleet/py.typed", "tracefleet/manifest.schema.json"} <= ours


def test_the_wheel_needs_nothing_and_brings_the_command(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    info = {Path(n).name: archive.read(n).decode() for n in archive.namelist() if ".dist-info" in n}
    required = [line for line in info["METADATA"].splitlines() if line.startswith("Requires-Dist")]
    assert all("extra ==" in line for line in required), required
    assert "tracefleet = tracefleet.cli:main" in info["entry_points.txt"]


def test_the_wheel_imports_by_itself_and_knows_its_version(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import tracefleet; print(tracefleet.__file__); print(tracefleet.__version__)"
    file, version = _python(code, tmp_path).splitlines()
    assert Path(file).is_relative_to(tmp_path)
    assert f"tracefleet-{version}-" in wheel.name


def test_importing_the_package_and_its_command_imports_nothing_heavy():
    code = f"import sys, tracefleet.cli; print([m for m in {HEAVY} if m in sys.modules])"
    assert _python(code, ROOT) == "[]\n"
    control = f"import sys, numpy; print([m for m in {HEAVY} if m in sys.modules])"
    assert _python(control, ROOT) == "['numpy']\n"


def test_completion_offers_the_public_names_alone():
    import tracefleet

    shown = {name for name in dir(tracefleet) if not name.startswith("_")}
    assert shown == set(tracefleet.__all__)


def test_all_names_exist_and_are_sorted():
    import tracefleet

    assert tracefleet.__all__ == sorted(tracefleet.__all__)
    assert all(hasattr(tracefleet, name) for name in tracefleet.__all__)


def _python(code: str, path: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=path,
        env={"PYTHONPATH": str(path)},
    ).stdout
