"""``make bench``: a whole conversion, its gate included, against the documented script.

A BERT-base built from its config (110 M parameters, random weights), six standard lengths. Both
run as fresh processes, interleaved, in one session on one machine; what counts are the ratios.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.measure import Cost, folder_bytes, measure

LENGTHS = (32, 64, 128, 256, 384, 512)
WORK = Path(".bench")


def main() -> int:
    """Measure, print the table, write ``.bench/conversion.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="interleaved rounds (default: 2)")
    parser.add_argument("--model", choices=sorted(MODELS), default="bert-base")
    options = parser.parse_args()
    checkpoint = build(options.model)
    weights = (checkpoint / "model.safetensors").stat().st_size
    script, ours = [], []
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}: documented script", flush=True)
        script.append(run_script(checkpoint))
        print(f"round {number + 1} of {options.rounds}: tracefleet", flush=True)
        ours.append(run_ours(checkpoint))
    report(options.model, weights, script, ours)
    return 0


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


def build(name: str) -> Path:
    """Save the random checkpoint of a name, once."""
    folder = WORK / name
    if not (folder / "config.json").exists():
        import torch
        import transformers

        model_class, config_class, config = MODELS[name]
        torch.manual_seed(0)
        made = getattr(transformers, config_class)(**config)
        getattr(transformers, model_class)(made).save_pretrained(folder)
    return folder.resolve()


def run_script(checkpoint: Path) -> tuple[Cost, int]:
    """One process per length, one after the other."""
    store = WORK / "script-store"
    shutil.rmtree(store, ignore_errors=True)
    costs = [
        measure(["-m", "benchmarks.script", str(checkpoint), str(length), str(store)])
        for length in LENGTHS
    ]
    whole = Cost(
        wall=sum(c.wall for c in costs),
        cpu=sum(c.cpu for c in costs),
        peak_process=max(c.peak_process for c in costs),
        peak_tree=max(c.peak_tree for c in costs),
    )
    return whole, folder_bytes(store)


def run_ours(checkpoint: Path) -> tuple[Cost, int]:
    """The command line, as people run it, into an empty store."""
    store = WORK / "store"
    shutil.rmtree(store, ignore_errors=True)
    cost = measure(
        ["-m", "flows", "convert", "--engine", "none", "--quiet",
         "--source", f"file://{checkpoint}", "--task", "feature-extraction",
         "--lengths", ",".join(map(str, LENGTHS)), "--store", str(store)]
    )  # fmt: skip
    return cost, folder_bytes(store)


def report(
    name: str, weights: int, script: list[tuple[Cost, int]], ours: list[tuple[Cost, int]]
) -> None:
    """Print medians, ratios and each step's share."""
    rows = [("", "script", "tracefleet", "ratio")]
    for label, pick, unit in (
        ("wall s", lambda run: run[0].wall, 1),
        ("cpu s", lambda run: run[0].cpu, 1),
        ("peak MB, largest process", lambda run: run[0].peak_process, 1e6),
        ("peak MB, whole tree", lambda run: run[0].peak_tree, 1e6),
        ("stored MB", lambda run: run[1], 1e6),
    ):
        theirs = statistics.median(pick(run) for run in script)
        mine = statistics.median(pick(run) for run in ours)
        rows.append((label, f"{theirs / unit:.1f}", f"{mine / unit:.1f}", f"1/{theirs / mine:.2f}"))
    print(f"\n{name} × {len(LENGTHS)} lengths, weights {weights / 1e6:.0f} MB")
    for row in rows:
        print(f"{row[0]:26}{row[1]:>10}{row[2]:>12}{row[3]:>9}")
    stored = ours[-1][1] / weights
    peak = statistics.median(run[0].peak_process for run in ours) / weights
    print(f"stored {stored:.3f} × the weights; peak {peak:.2f} × the weights")
    (attestation,) = (WORK / "store" / "attestations").rglob("*.json")
    seconds = json.loads(attestation.read_text())["seconds"]
    whole = ours[-1][0].wall
    shares = "  ".join(f"{step} {took:.1f} ({took / whole:.0%})" for step, took in seconds.items())
    print(f"steps of the last round: {shares}")
    (WORK / "conversion.json").write_text(
        json.dumps(
            {
                "model": name,
                "weights": weights,
                "script": [{**asdict(cost), "stored": stored} for cost, stored in script],
                "tracefleet": [{**asdict(cost), "stored": stored} for cost, stored in ours],
                "seconds": seconds,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
