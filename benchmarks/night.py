"""A night of a fleet on a real server, and the page of its morning: ``make night``.

In the evening the fleet converts what is good, and three checkpoints are refused. At night the hub
is away, one checkpoint was replaced by a file that ends too early, and somebody's run by hand moved
a channel: the schedule's run has to tell these apart from what was known. Then a promotion waits
for a person. What is expected is checked; a folder, if given, gets pictures of the pages.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tasks.sweep.tiny import Case, build
from tests.support.hub_server import Hub, start
from tests.support.postgres import postgres
from tests.support.prefect_platform import Platform
from tests.support.webhook import Webhook, receive

#: Neutral, because it stands on every page.
WORK = Path(tempfile.gettempdir()) / "tracefleet-night"
TASK = "text-classification"
GOOD = ("intents", "languages", "reviews", "spam", "support", "topics")
#: What the morning's page has to say, by entry; all others are fresh.
EXPECTED = {
    "no-such-kind": "refused",
    "only-pickle": "refused",
    "cut-short": "refused",
    "from-hub": "failed",
    "spam": "failed",
    "support": "moved",
}
BROWSERS = ("chromium-headless-shell", "chromium")


def main() -> int:
    """Run the night, check the morning, and take pictures of it; return the exit code."""
    options = _parser().parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    work = WORK.absolute()
    _make_fleet(work)
    hub = Hub()
    start(hub)
    with receive() as webhook, _platform(work, hub, webhook) as platform:
        hub.push(_read(_make(work / "hub", 40)))
        evening = _run(platform, "convert-fleet/nightly")
        _tell("evening", evening)
        hub.status["api"] = 503
        _cut(work / "models/spam/model.safetensors")
        by_hand = {"source": str(work / "models/support"), "task": TASK, "lengths": [16]}
        asked: dict[str, Any] = {"request": {**by_hand, "store": f"file://{work}/store"}}
        _run(platform, "convert-checkpoint/jit", **asked)
        morning = _run(platform, "convert-fleet/nightly")
        _tell("morning", morning)
        where = {"store": f"file://{work}/store", "source": str(work / "models/topics")}
        promotion = _run(platform, "promote-conversion/jit", ends="Suspended", **where)
        platform.wait(lambda: webhook.of("Suspended"))
        for posted in webhook.posted:
            print(f"posted     {posted['text']}")
        found = _read_endings(platform, morning["id"])
        if options.pictures is not None:
            _take_pictures(platform, work, options.pictures, morning["id"], promotion["id"])
    return _judge(found, webhook)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.night", description=__doc__)
    parser.add_argument("--pictures", type=Path, help="folder for pictures; needs Chromium")
    return parser


def _make_fleet(work: Path) -> None:
    """Make the checkpoints, and the file with a fleet of them."""
    for number, name in enumerate(GOOD):
        _make(work / "models" / name, number)
    for number, name in enumerate(("no-such-kind", "only-pickle", "cut-short")):
        _make(work / "models" / name, 20 + number)
    kind = work / "models/no-such-kind/config.json"
    kind.write_text(kind.read_text().replace('"bert"', '"hypothetical"'))
    weights = work / "models/only-pickle/model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    _cut(work / "models/cut-short/model.safetensors")
    names = (*GOOD, "no-such-kind", "only-pickle", "cut-short")
    entries = {name: {"source": str(work / "models" / name)} for name in names}
    entries["from-hub"] = {"source": "hf://acme/tiny"}
    defaults = {"store": f"file://{work}/store", "task": TASK, "lengths": [8, 16]}
    path = work / "fleet.yaml"
    path.write_text(
        yaml.safe_dump({"guarded": ["production"], "defaults": defaults, "entries": entries})
    )


def _make(folder: Path, number: int) -> Path:
    """Make a tiny checkpoint with weights of its own."""
    build(Case(model_type="bert", task=TASK), folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "word_embeddings" in name)
    own = {**weights, name: weights[name] + 1e-3 * (number + 1)}
    save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _cut(path: Path) -> None:
    """Let a file end too early, as an upload does that was broken off."""
    path.write_bytes(path.read_bytes()[:-64])


@contextmanager
def _platform(work: Path, hub: Hub, webhook: Webhook) -> Iterator[Platform]:
    (work / "prefect").mkdir()
    with postgres() as database:
        platform = Platform(work / "prefect", database)
        platform.env |= {"TRACEFLEET_NOTIFY_URL": webhook.url, "HF_ENDPOINT": hub.url}
        try:
            platform.start_server()
            chosen = ("--fleet", str(work / "fleet.yaml"), "--store", f"file://{work}/store")
            _check(platform.run("python", "-m", "infra.provision"))
            deploy = ("--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml")
            _check(platform.run("prefect", *deploy))
            _check(platform.run("python", "-m", "infra.provision", *chosen))
            platform.start_worker("coordinator")
            platform.start_worker("jit")
            yield platform
        finally:
            platform.stop()


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise RuntimeError(f"{done.args}: {done.stdout}{done.stderr}")


def _run(platform: Platform, deployment: str, ends: str = "", **parameters: Any) -> dict[str, Any]:
    """Run a deployment to its end, or to the state that is given; return the run."""
    found = platform.ask(f"deployments/name/{deployment}")
    made = platform.ask(f"deployments/{found['id']}/create_flow_run", {"parameters": parameters})

    def ended() -> dict[str, Any] | None:
        run: dict[str, Any] = platform.ask(f"flow_runs/{made['id']}")
        over = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        done = run["state_name"] == ends if ends else run["state_type"] in over
        return run if done else None

    run: dict[str, Any] = platform.wait(ended, 600)
    return run


def _tell(when: str, run: dict[str, Any]) -> None:
    print(f"{when:<10} {run['state_name']}: {run['state']['message']}")


def _list_tables(platform: Platform, run: str) -> list[dict[str, Any]]:
    wanted = {"flow_runs": {"id": {"any_": [run]}}, "artifacts": {"type": {"any_": ["table"]}}}
    tables: list[dict[str, Any]] = platform.ask("artifacts/filter", wanted)
    return tables


def _read_endings(platform: Platform, run: str) -> dict[str, str]:
    """Return how each entry of a fleet's run ended, but for the fresh ones."""
    tables = _list_tables(platform, run)
    (entries,) = [one["data"] for one in tables if one["key"].endswith("-entries")]
    rows = [row for row in json.loads(entries) if row["ending"]]
    return {row["conversion"].split()[0]: row["ending"].split()[-1] for row in rows}


def _judge(found: dict[str, str], webhook: Webhook) -> int:
    """Say what the morning's page says, and what else it should; return the exit code."""
    for name, ending in found.items():
        print(f"{name:<14} {ending}")
    wrong = [f"expected {EXPECTED}, got {found}"] if found != EXPECTED else []
    if len(webhook.of("Failed")) != 2 or len(webhook.of("Suspended")) != 1:
        wrong.append(f"expected notifications of two fleets and a promotion: {webhook.posted}")
    print("\n".join(wrong) or "the morning's page says what happened")
    return 1 if wrong else 0


def _take_pictures(platform: Platform, work: Path, folder: Path, fleet: str, asked: str) -> None:
    """Take pictures of the morning's page, and of Prefect's of the fleet and of the promotion."""
    _picture((work / f"store/reports/{fleet}/index.html").as_uri(), folder / "night.png")
    home = platform.url.removesuffix("/api")
    runs = f"{home}/runs/flow-run"
    _picture(f"{runs}/{fleet}?tab=Artifacts", folder / "prefect-fleet.png")
    _picture(f"{runs}/{asked}", folder / "prefect-promotion.png")
    for one in _list_tables(platform, fleet):
        kind = one["key"].rpartition("-")[2]
        if kind in ("plan", "entries"):
            page = f"{home}/artifacts/artifact/{one['id']}"
            _picture(page, folder / f"prefect-{kind}.png", 700)
    _picture(f"{home}/automations", folder / "prefect-automations.png", 700)


def _picture(url: str, path: Path, height: int = 1000) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    size = (f"--window-size=1280,{height}", "--hide-scrollbars", "--virtual-time-budget=20000")
    command = [browser, "--headless", "--no-sandbox", *size, f"--screenshot={path}", url]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    raise SystemExit(main())
