"""A store made by an earlier commit, and the checkpoints that it was made from.

    python -m tests.support.store_before CHECKOUT

makes ``tests/data/store-before`` anew with the code of another checkout: its command line alone is
used. Checkpoints that are there are kept, as their bytes are part of every conversion key.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.support import tiny
from tests.support.hub_server import Hub, start
from tests.support.neuron_support import NO_DEVICE, on, store_for_doubles

FOLDER = Path(__file__).parent.parent / "data" / "store-before"
FLEET = FOLDER / "fleet.yaml"
CHECKPOINTS, STORE, PLAN = FOLDER / "checkpoints", FOLDER / "store", FOLDER / "plan.json"
ENTRIES = tuple(yaml.safe_load(FLEET.read_text())["entries"])
#: Who ran it, where and for how long: not kept.
_OF_ONE_RUN = ("attestations", "publishing", "reports")


def push_checkpoints(hub: Hub) -> None:
    """Commit each checkpoint to a branch of its name."""
    for folder in sorted(CHECKPOINTS.iterdir()):
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        hub.push(files, branch=folder.name)


def _save_checkpoints() -> None:
    from tasks.sweep.tiny import Case, build

    for name in ("bert-cls", "bert-mlm", "longformer-mlm"):
        tiny.save(name, CHECKPOINTS)
    if not (CHECKPOINTS / "nystromformer").exists():
        case = Case(model_type="nystromformer", task="question-answering")
        build(case, CHECKPOINTS / "nystromformer")
    if not (CHECKPOINTS / "sentences").exists():
        _save_sentences(CHECKPOINTS / "sentences")


def _save_sentences(folder: Path) -> None:
    tiny.save("bert", CHECKPOINTS).rename(folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def main(checkout: Path) -> None:
    """Make the store with a checkout's code."""
    _save_checkpoints()
    hub = Hub()
    server = start(hub)
    push_checkpoints(hub)
    with tempfile.TemporaryDirectory() as work, on(**NO_DEVICE):
        store = store_for_doubles(Path(work))
        environment = {
            **os.environ,
            "PYTHONPATH": f"{checkout}{os.pathsep}{os.environ['PYTHONPATH']}",
            "HF_ENDPOINT": hub.url,
            "HF_HOME": f"{work}/hf",
        }
        common = ["--store", store, "--json", "--quiet"]
        for entry in ENTRIES:
            command = ["convert", "--fleet", str(FLEET), "--entry", entry, "--engine", "none"]
            _flows([*command, *common], checkout, environment)
        plan = _flows(["plan", str(FLEET), *common], checkout, environment)
        for name in _OF_ONE_RUN:
            shutil.rmtree(Path(work) / "store" / name, ignore_errors=True)
        shutil.rmtree(STORE, ignore_errors=True)
        shutil.copytree(Path(work) / "store", STORE)
    PLAN.write_text(json.dumps(without_store(json.loads(plan)), indent=2) + "\n")
    server.shutdown()


def without_store(plan: dict[str, Any]) -> dict[str, Any]:
    """Return a plan without the store's URL, which is another one in every test."""
    for row in plan["rows"]:
        del row["wanted"]["store"]
    return plan


def _flows(arguments: list[str], checkout: Path, environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "flows", *arguments]
    return subprocess.run(
        command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
