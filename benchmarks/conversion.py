"""``make bench``: a whole conversion, its gate included, against the documented script.

A BERT-base built from its config (110 M parameters, random weights), six standard lengths. Both
run as fresh processes, interleaved, on one machine; the result is the ratios. Memory and CPU are
measured in a round of their own, because sampling them would slow down the timed rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

from benchmarks.measure import Cost, folder_bytes, wall_seconds, watch

LENGTHS = (32, 64, 128, 256, 384, 512)
WORK = Path(".bench")
SCRIPT_STORE, STORE = WORK / "script-store", WORK / "store"
MODELS = {
    "bert-base": ("BertModel", "BertConfig", {}),
    "bert-large": (
        "BertModel",
        "BertConfig",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
    "distilbert": ("DistilBertModel", "DistilBertConfig", {}),
}


def main() -> int:
    """Measure, print the table, write ``.bench/conversion.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="interleaved rounds (default: 2)")
    parser.add_argument("--model", choices=sorted(MODELS), default="bert-base")
    options = parser.parse_args()
    checkpoint = build(options.model)
    theirs: list[float] = []
    ours: list[float] = []
    for number in range(options.rounds):
        for name, commands, walls in (
            ("documented script", script_commands(checkpoint), theirs),
            ("tracefleet", [our_command(checkpoint)], ours),
        ):
            clear()
            walls.append(sum(wall_seconds(command) for command in commands))
            print(f"round {number + 1} of {options.rounds}: {name} {walls[-1]:.1f} s", flush=True)
    clear()
    print("watching memory and CPU: documented script, tracefleet", flush=True)
    script_cost = sum_up([watch(command) for command in script_commands(checkpoint)])
    our_cost = watch(our_command(checkpoint))
    report(options.model, checkpoint, (theirs, script_cost), (ours, our_cost))
    return 0


def build(name: str) -> Path:
    """Save a model's checkpoint with random weights, once, and return its folder."""
    folder = WORK / name
    if not (folder / "config.json").exists():
        import torch
        import transformers

        model_class, config_class, config = MODELS[name]
        torch.manual_seed(0)
        made = getattr(transformers, config_class)(**config)
        getattr(transformers, model_class)(made).save_pretrained(folder)
    return folder.resolve()


def clear() -> None:
    """Empty the stores before a run."""
    for store in (SCRIPT_STORE, STORE):
        shutil.rmtree(store, ignore_errors=True)


def script_commands(checkpoint: Path) -> list[list[str]]:
    """Return the documented script's commands, one for each length."""
    return [
        ["-m", "benchmarks.script", str(checkpoint), str(length), str(SCRIPT_STORE)]
        for length in LENGTHS
    ]


def our_command(checkpoint: Path) -> list[str]:
    """Return tracefleet's command as users type it."""
    return [
        "-m", "flows", "convert", "--engine", "none", "--quiet",
        "--source", f"file://{checkpoint}", "--task", "feature-extraction",
        "--lengths", ",".join(map(str, LENGTHS)), "--store", str(STORE),
    ]  # fmt: skip


def sum_up(costs: list[Cost]) -> Cost:
    """Return the cost of processes that run one after another: CPU in sum, the largest peaks."""
    total = Cost(cpu=0, peak_process=0, peak_tree=0)
    for cost in costs:
        total = Cost(
            cpu=total.cpu + cost.cpu,
            peak_process=max(total.peak_process, cost.peak_process),
            peak_tree=max(total.peak_tree, cost.peak_tree),
        )
    return total


def report(
    name: str, checkpoint: Path, script: tuple[list[float], Cost], ours: tuple[list[float], Cost]
) -> None:
    """Print medians, ratios and the share of each step."""
    weights = (checkpoint / "model.safetensors").stat().st_size
    stored = folder_bytes(SCRIPT_STORE), folder_bytes(STORE)
    rows = {
        "wall s": (statistics.median(script[0]), statistics.median(ours[0])),
        "cpu s": (script[1].cpu, ours[1].cpu),
        "peak MB, largest process": (script[1].peak_process / 1e6, ours[1].peak_process / 1e6),
        "peak MB, whole tree": (script[1].peak_tree / 1e6, ours[1].peak_tree / 1e6),
        "stored MB": (stored[0] / 1e6, stored[1] / 1e6),
    }
    print(f"\n{name} × {len(LENGTHS)} lengths, weights {weights / 1e6:.0f} MB")
    print(f"{'':26}{'script':>10}{'tracefleet':>12}{'ratio':>9}")
    for label, (theirs, mine) in rows.items():
        print(f"{label:26}{theirs:>10.1f}{mine:>12.1f}{f'1/{theirs / mine:.2f}':>9}")
    peak = ours[1].peak_process / weights
    print(f"stored {stored[1] / weights:.3f} × the weights; peak {peak:.2f} × the weights")
    (attestation,) = (STORE / "attestations").rglob("*.json")
    seconds = json.loads(attestation.read_text())["seconds"]
    whole = sum(seconds.values())
    shares = "  ".join(f"{step} {took:.1f} ({took / whole:.0%})" for step, took in seconds.items())
    print(f"steps (watched round): {shares}")
    (WORK / "conversion.json").write_text(
        json.dumps({"model": name, "rows": rows, "seconds": seconds}, indent=2)
    )


if __name__ == "__main__":
    sys.exit(main())
