"""Which release a run says it is: version, commit and toolchain, with git and without."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch
import transformers

from flows.collect_garbage import collect_garbage
from flows.convert_batch import convert_batch
from flows.convert_checkpoint import convert_checkpoint
from flows.convert_fleet import convert_fleet
from flows.engine.release import RELEASE, describe_release
from flows.promote_conversion import promote_conversion
from flows.validate_conversion import validate_conversion
from flows.validate_current import validate_current

VERSION = metadata.version("tracefleet")
TOOLCHAIN = f"torch {torch.__version__} transformers {transformers.__version__}"


def git(folder: Path, *words: str) -> None:
    own = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *own, "-C", str(folder), *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "--message", "a")
    return tmp_path


def test_every_flow_has_the_release_as_its_version():
    flows = (convert_checkpoint, convert_batch, convert_fleet, collect_garbage)
    more = (promote_conversion, validate_conversion, validate_current)
    assert {flow.version for flow in (*flows, *more)} == {RELEASE}
    assert RELEASE.startswith(VERSION)
    assert TOOLCHAIN in RELEASE


def test_a_checkout_tells_its_commit_and_whether_it_was_changed(repository: Path):
    found = subprocess.check_output(["git", "-C", str(repository), "rev-parse", "--short", "HEAD"])
    commit = found.decode().strip()
    assert describe_release(repository).startswith(f"{VERSION}+{commit} torch ")
    (repository / "a").write_text("2")
    assert describe_release(repository).startswith(f"{VERSION}+{commit}-dirty torch ")


def test_without_git_the_file_tells_it_or_nobody(repository: Path, tmp_path: Path):
    inside = repository / "site-packages"
    inside.mkdir()
    assert describe_release(inside) == f"{VERSION} {TOOLCHAIN}", "another repository's commit"
    (inside / "COMMIT").write_text("0f0f0f0\n")
    assert describe_release(inside) == f"{VERSION}+0f0f0f0 {TOOLCHAIN}"


def test_a_git_that_fails_costs_nothing_but_the_commit(
    repository: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", "/nowhere")
    assert describe_release(repository) == f"{VERSION} {TOOLCHAIN}"
