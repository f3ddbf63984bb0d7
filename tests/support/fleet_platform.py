"""What the tests of fleets on a real Prefect server share: the platform, checkpoints, questions.

Two files, each with a platform of its own: they mostly wait, and run beside each other.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers
import yaml

from tests.support import tiny
from tests.support.postgres import postgres
from tests.support.prefect_platform import Platform
from tracefleet.channel import find_variants
from tracefleet.store import open_store

#: Layers enough for a trace that is seen while it runs, and for a fleet that takes its time.
DEEP, DEEPER = 6, 12
FLEET = ("python", "-m", "flows", "fleet")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A provisioned server with every deployment, a coordinator and one jit worker."""
    with postgres() as database:
        platform = Platform(tmp_path_factory.mktemp("prefect"), database)
        try:
            platform.start_server()
            made = platform.run("python", "-m", "infra.provision")
            assert made.returncode == 0, made.stderr
            deploy = ("--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml")
            deployed = platform.run("prefect", *deploy)
            assert deployed.returncode == 0, deployed.stdout + deployed.stderr
            platform.start_worker("coordinator")
            platform.jit = platform.start_worker("jit")
            yield platform
        finally:
            platform.stop()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Callable[..., list[Path]]:
    """Make so many tiny checkpoints with weights of their own; deep ones take seconds to trace."""

    def make(count: int, *, layers: int = 2) -> list[Path]:
        torch.manual_seed(0)
        model = transformers.BertModel(
            transformers.BertConfig(**{**tiny.BERT, "num_hidden_layers": layers})
        )
        folders = [tmp_path / "models" / f"bert-{index}" for index in range(count)]
        for index, folder in enumerate(folders):
            with torch.no_grad():
                model.embeddings.word_embeddings.weight.normal_(std=1 + index)
            model.save_pretrained(folder)
        return folders

    return make


@pytest.fixture
def store(tmp_path: Path, platform: Platform) -> str:
    platform.forget()
    return f"file://{tmp_path}/store"


def fleet_file(folder: Path, entries: dict[str, dict[str, Any]], **defaults: Any) -> str:
    path = folder / "fleet.yaml"
    common = {"task": "feature-extraction", "lengths": [8, 16], **defaults}
    path.write_text(yaml.safe_dump({"defaults": common, "entries": entries}))
    return str(path)


def all_of(folders: list[Path]) -> dict[str, dict[str, Any]]:
    return {folder.name: {"source": f"file://{folder}"} for folder in folders}


def published(store: str) -> int:
    return len(list(find_variants(open_store(store))))


@contextmanager
def tracing(platform: Platform, store: str) -> Iterator[str]:
    """Hold a conversion in the middle of its trace; yield the identifier of its run."""
    child = platform.wait(platform.traced, every=0.05)
    child.suspend()
    try:
        running = (run for run in platform.conversions(store) if run["state_name"] == "Running")
        yield str(next(running)["id"])
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.resume()


def start_fleet(platform: Platform, fleet: str) -> str:
    """Have a coordinator's worker run a fleet; return the identifier of its run."""
    deployment = platform.ask("deployments/name/convert-fleet/adhoc")["id"]
    started = platform.ask(
        f"deployments/{deployment}/create_flow_run",
        {"parameters": {"fleet": fleet}, "state": {"type": "SCHEDULED"}},
    )
    return str(started["id"])


def states(platform: Platform, store: str) -> Counter[str]:
    return Counter(run["state_name"] for run in platform.conversions(store))
