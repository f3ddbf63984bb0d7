"""``tracefleet-pipeline``: installed into empty environments, from Python, and in a clone."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

import tracefleet_pipeline
from tracefleet_pipeline import ConversionError, api, house

ROOT = Path(__file__).parent.parent
#: Somebody's own module, where the commands are typed.
HOSTILE = "raise SystemExit('somebody else')"


def call(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("PREFECT_")}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [*map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=cwd,
    )


def done(*words: str | Path, cwd: Path | None = None) -> str:
    found = call(*words, cwd=cwd)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels, by their distribution's name."""
    out = tmp_path_factory.mktemp("dist")
    for project in (ROOT, ROOT / "tracefleet_pipeline"):
        words = ("-m", "build", "--wheel", "--no-isolation", "--outdir", out, project)
        done(sys.executable, *words)
    return {path.name.split("-")[0]: path for path in out.glob("*.whl")}


def install(environment: Path, wheel: Path) -> None:
    python = environment / "bin/python"
    words = ("install", "--quiet", "--no-index", "--disable-pip-version-check")
    done(sys.executable, "-m", "pip", "--python", python, *words, wheel)


@pytest.fixture(scope="module")
def reader(wheels: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with the reader alone."""
    environment = tmp_path_factory.mktemp("reader") / "venv"
    done(sys.executable, "-m", "venv", "--without-pip", environment)
    install(environment, wheels["tracefleet"])
    return environment / "bin"


@pytest.fixture(scope="module")
def pipeline(wheels: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with both, and this one's torch and the like; pip checks what they need."""
    environment = tmp_path_factory.mktemp("pipeline") / "venv"
    done(sys.executable, "-m", "venv", "--without-pip", environment)
    install(environment, wheels["tracefleet"])
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    install(environment, wheels["tracefleet_pipeline"])
    return environment / "bin"


def test_both_wheels_have_the_licence_and_one_has_the_house(wheels: Mapping[str, Path]):
    assert set(wheels) == {"tracefleet", "tracefleet_pipeline"}
    licence = (ROOT / "LICENSE").read_bytes()
    assert b"Apache License" in licence
    for wheel in wheels.values():
        archive = zipfile.ZipFile(wheel)
        [name] = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
        assert archive.read(name) == licence
    names = zipfile.ZipFile(wheels["tracefleet_pipeline"]).namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    expected = {
        f"tracefleet_pipeline/house/{path.relative_to(ROOT)}"
        for folder in ("flows", "tasks")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in inside if "/house/" in name} == expected
    assert {name.split("/")[0] for name in inside} == {"tracefleet_pipeline"}
    assert "tracefleet_pipeline/hatch_build.py" not in inside


def test_the_sdist_has_the_licence(tmp_path: Path):
    words = ("-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT)
    done(sys.executable, *words)
    [sdist] = tmp_path.glob("*.tar.gz")
    listed = done("tar", "--list", "--file", sdist).splitlines()
    assert {name.partition("/")[2] for name in listed} >= {"LICENSE", "tracefleet/cli.py"}


def test_a_reader_alone_says_how_to_get_the_pipeline(reader: Path, tmp_path: Path):
    refused = call(reader / "tracefleet", "convert", "./model", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "pip install tracefleet-pipeline" in refused.stderr
    assert "convert:" not in done(reader / "tracefleet", "--help")


def test_the_installed_pipeline_converts_and_leaves_no_name_behind(
    pipeline: Path, checkpoint, tmp_path: Path
):
    program = pipeline / "tracefleet"
    assert "  convert  " in done(program, "--help", cwd=tmp_path)
    (tmp_path / "tasks.py").write_text(HOSTILE)
    (tmp_path / "flows").mkdir()
    folder = checkpoint("bert-cls")
    words = ("convert", folder, "--lengths", "8,16", "--store", "S")
    assert "published and validated" in done(program, *words, cwd=tmp_path)
    assert "text-classification" in done(program, "list", "S", cwd=tmp_path)
    assert "0 would be removed" in done(program, "gc", "--store", "S", "--dry-run", cwd=tmp_path)
    for name in ("flows.convert", "tasks.child"):
        gone = call(pipeline / "python", "-I", "-c", f"import {name}", cwd=tmp_path)
        assert "ModuleNotFoundError" in gone.stderr


def test_what_needs_no_pipeline_does_not_import_it(pipeline: Path, tmp_path: Path):
    code = (
        "import sys; from tracefleet.cli import main; main(sys.argv[1:]); "
        "print([n for n in sys.modules if n.split('.')[0] in ('tracefleet_pipeline', 'flows')])"
    )
    listed = done(pipeline / "python", "-c", code, "list", tmp_path, cwd=tmp_path)
    assert listed.splitlines()[-1] == "[]"
    control = done(pipeline / "python", "-c", code, "schema", "request", cwd=tmp_path)
    assert "flows.commands.schema" in control


# From Python


def test_convert_from_python_tells_its_progress_and_returns_what_came_of_it(
    checkpoint, tmp_path: Path
):
    lines: list[str] = []
    folder = checkpoint("bert-cls")
    result = tracefleet_pipeline.convert(
        folder, store=tmp_path / "S", lengths=[8], progress=lines.append
    )
    assert (result.status, result.number, result.channel) == ("published", 1, "latest")
    assert result.manifest.lengths == (8,)
    assert result.manifest.source == f"file://{folder}"
    assert result.report is not None
    assert Path(result.report.removeprefix("file://")).is_file()
    assert (Path(result.url.removeprefix("file://")) / "manifest.json").is_file()
    assert "tracing length 8" in lines
    assert result.open()([[5, 6, 7]])["logits"].shape == (1, 3)
    again = tracefleet_pipeline.convert(
        str(folder), store=str(tmp_path / "S"), lengths=[8], task="text-classification"
    )
    assert (again.status, again.report, again.manifest) == (
        "already published",
        result.report,
        result.manifest,
    )


def test_an_error_from_python_has_its_type_and_message(checkpoint, tmp_path: Path):
    folder, store = checkpoint("bert-cls"), tmp_path / "S"
    with pytest.raises(ConversionError, match=r"did you mean 'embeddings'\?$") as wrong:
        tracefleet_pipeline.convert(folder, store=store, lengths=[8], task="embedings")
    assert wrong.value.type == "UsageError"
    with pytest.raises(ConversionError, match="nowhere") as absent:
        tracefleet_pipeline.convert(Path("nowhere"), store=store, lengths=[8])
    assert absent.value.type == "RequestError"
    assert not store.exists()


def test_a_process_that_dies_is_an_error_with_its_last_lines():
    with pytest.raises(ConversionError, match=r"(?s)without a result.*last words") as dead:
        api._read("", ["first", "last words"])
    assert dead.value.type == "ConversionCrashedError"


def test_options_are_written_as_the_command_line_takes_them():
    options = {"lengths": [8, 16], "allow_pickle": True, "task": None, "trust_remote_code": False,
               "neuronx": {"target": "inf2", "optlevel": "2"}, "batch": 4}  # fmt: skip
    assert api._write_options(options) == [
        "--lengths=8,16", "--allow-pickle", "--neuronx=target=inf2,optlevel=2", "--batch=4",
    ]  # fmt: skip


def test_every_argument_of_convert_is_a_field_of_the_request():
    import inspect

    from tasks.request.conversion import ConversionRequest

    names = set(inspect.signature(tracefleet_pipeline.convert).parameters)
    fields = {"model": "source", "name": "publish_as"}
    known = {fields.get(name, name) for name in names - {"progress"}}
    assert known == set(ConversionRequest.model_fields)


def test_in_a_clone_the_house_is_its_root():
    assert house.find_house() == ROOT
