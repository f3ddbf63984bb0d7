"""``tracefleet bench``: every case has every peer, a wrong one shows, a missing one is named."""

from __future__ import annotations

import functools
import json
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from flows.convert import convert
from tasks.request.conversion import make_request
from tests.support import tiny, tiny_samples
from tests.support.reader_support import SEQ2SEQ, SOURCE, publish, tiny_seq2seq_bundle
from tracefleet import BenchError
from tracefleet.bench import command, eager, measure, texts
from tracefleet.bench.cases import Case
from tracefleet.bench.machine import describe_machine
from tracefleet.bench.measure import Timing, take_turns
from tracefleet.bench.peers import Peer
from tracefleet.bench.results import Absent, PeerFacts, Report, describe
from tracefleet.bench.rows import TextRows
from tracefleet.bench.table import render_table
from tracefleet.cli import main
from tracefleet.manifest_types import (
    General,
    InputSpec,
    OutputSpec,
    Variant,
)
from tracefleet.store.folder import FileStore

Capture = pytest.CaptureFixture[str]
CONFIG = {"model/config.json": b'{"vocab_size": 32}'}
#: Few and short: what is measured is not asserted anywhere.
QUICK = ("--threads", "1", "--rounds", "2", "--batches", "1,3")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(Timing, pause=lambda _: None, turn_seconds=1e-9)
    monkeypatch.setattr(command, "Timing", quick)


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a tokenizer, ``bert``, and its conversions in two dtypes, ``store``."""
    work = tmp_path_factory.mktemp("bench")
    folder = tiny.save("bert", work)
    save_tokenizer(folder / "tokenizer.json")
    for dtype in ("float32", "bfloat16"):
        convert_tiny(folder, work / "store", "feature-extraction", [8, 16, 32], dtype)
    return work


def save_tokenizer(path: Path) -> None:
    """Words of the standard library's docstrings, between two special tokens."""
    words = " ".join(texts.collect_sentences(200)).split()
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(words)][:250]
    vocabulary = {word: place for place, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(5)
    tokenizer.save(str(path))


def convert_tiny(
    folder: Path, store: Path, task: str, lengths: list[int], dtype: str = "float32"
) -> None:
    source, fields = f"file://{folder}", {"task": task, "lengths": lengths, "dtype": dtype}
    convert(make_request({"source": source, "store": f"file://{store}", **fields}))


def bench(work: Path, *arguments: str, name: str = "bert") -> int:
    return main(["bench", str(work / "store"), str(work / name), *arguments])


def bench_json(capsys: Capture, work: Path, *arguments: str, name: str = "bert") -> dict[str, Any]:
    """Run the command with figures on standard output."""
    assert bench(work, *QUICK, *arguments, "--json", name=name) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("measuring ")
    found: dict[str, Any] = json.loads(captured.out)
    return found


def refused(capsys: Capture, *arguments: str) -> str:
    """Run a command that must be refused before anything is measured; return its message."""
    assert main(["bench", *arguments]) == 1
    captured = capsys.readouterr()
    told = json.loads(captured.out)["error"]["message"] if "--json" in arguments else captured.out
    assert told == "" or told in captured.err
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    assert "measuring" not in captured.err
    return captured.err


# What is measured


@pytest.mark.usefixtures("no_onnx")
def test_every_case_has_every_peer(work: Path, capsys: Capture):
    found = bench_json(capsys, work)
    peers = ["transformers", "tracefleet float32", "tracefleet bfloat16"]
    assert [peer["name"] for peer in found["peers"]] == peers
    assert found["reference"] == "transformers"
    cases = [(length, rows) for length in (8, 16, 32) for rows in (1, 3)]
    expected = [(*case, peer) for case in [*cases, (None, 128)] for peer in peers]
    figures = found["figures"]
    assert [(one["length"], one["rows"], one["peer"]) for one in figures] == expected
    for one in figures:
        assert one["failed"] is None
        assert len(one["rates"]) == 2
        assert min(one["rates"]) <= one["median"] <= max(one["rates"])
    assert [one["ratio"] for one in figures if one["peer"] == "transformers"] == [1.0] * 7
    differences = {peer["name"]: peer["difference"] for peer in found["peers"]}
    assert differences["transformers"] is None
    assert differences["tracefleet float32"] < 1e-5
    assert 1e-3 < differences["tracefleet bfloat16"] < 0.1, "what a dtype costs shows"
    assert found["inputs"].startswith("real texts (docstrings")
    assert found["machine"]["versions"]["torch"] == torch.__version__
    assert [len(peer["key"] or "") for peer in found["peers"]] == [0, 64, 64]


@pytest.mark.usefixtures("no_onnx")
def test_the_table_says_what_was_measured_and_who_is_missing(
    work: Path, tmp_path: Path, capsys: Capture
):
    target = tmp_path / "figures.json"
    lengths = ("--lengths", "8,27", "--dtype", "float32", "--json", str(target))
    assert bench(work, *QUICK, *lengths) == 0
    captured = capsys.readouterr()
    head, table, legend = captured.out.split("\n\n")
    assert f"file://{work / 'bert'}, feature-extraction" in head
    assert "inputs: real texts" in head
    header, *lines = table.splitlines()
    assert header.split() == ["threads", "length", "rows", "transformers", "tracefleet", "float32"]
    assert [line.split()[1:3] for line in lines] == [
        ["8", "1"], ["8", "3"], ["27", "1"], ["27", "3"], ["mixed", "128"],
    ]  # fmt: skip
    assert all(line.count("×") == 1 for line in lines)
    assert "mixed: 128 texts of unequal lengths, by tracefleet in one call" in legend
    assert "transformers        the reference" in legend
    reason = "not measured: onnx: onnxruntime is not installed; pip install 'tracefleet[bench]'"
    assert reason in legend
    assert captured.err.splitlines()[-1] == "5 of 5: 1 thread, mixed lengths, 128 rows"
    figures = json.loads(target.read_text())["figures"]
    assert len(figures) == 10, "the document has what the table has"


@pytest.mark.usefixtures("no_onnx")
def test_a_wrong_peer_shows_its_difference(work: Path, tmp_path: Path, capsys: Capture):
    other = tmp_path / "other"
    shutil.copytree(work / "bert", other)
    weights = load_file(other / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"] *= 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    one = ("--dtype", "float32", "--lengths", "16", "--checkpoint")
    assert bench(work, *QUICK, *one, str(other)) == 0
    wrong = capsys.readouterr().out
    assert "tracefleet float32*  " in wrong
    assert "* more than 1% off: less accurate, or another computation" in wrong
    assert bench(work, *QUICK, *one, str(work / "bert")) == 0
    assert "*" not in capsys.readouterr().out, "the control: the right checkpoint"


@pytest.mark.usefixtures("no_onnx")
def test_texts_of_ones_own_are_measured(work: Path, tmp_path: Path, capsys: Capture):
    file = tmp_path / "texts.txt"
    file.write_text("the value\n\n" + "a longer one of them " * 20 + "\nthe end\n")
    found = bench_json(capsys, work, "--texts", str(file), "--lengths", "16")
    assert found["inputs"].startswith(f"real texts ({file})")
    assert found["figures"][-1]["rows"] == 3
    assert all(one["failed"] is None for one in found["figures"])


def test_images_are_measured(tmp_path: Path, capsys: Capture):
    tiny_samples.save("vit", tmp_path)
    convert_tiny(tmp_path / "vit", tmp_path / "store", "image-classification", [32])
    capsys.readouterr()
    found = bench_json(capsys, tmp_path, name="vit")
    assert found["inputs"] == "random values"
    assert found["unmixed"] == "no real texts"
    assert {(one["length"], one["rows"]) for one in found["figures"]} == {(32, 1), (32, 3)}
    assert found["reference"] == "transformers"
    assert all(peer["difference"] < 1e-4 for peer in found["peers"][1:])


def test_sentences_are_pooled_as_the_checkpoint_says(work: Path, tmp_path: Path, capsys: Capture):
    folder = tmp_path / "sentences"
    shutil.copytree(work / "bert", folder)
    write_pooling(folder, "mean", "Normalize")
    convert_tiny(folder, tmp_path / "store", "sentence-similarity", [16])
    capsys.readouterr()
    found = bench_json(capsys, tmp_path, name="sentences")
    assert found["reference"] == "transformers"
    assert all(peer["difference"] < 1e-4 for peer in found["peers"][1:])
    write_pooling(folder, "cls", "Normalize")
    other = bench_json(capsys, tmp_path, name="sentences")
    assert other["peers"][1]["difference"] > 0.01, "the control: another pooling"
    for kinds in (("max",), ("mean", "Dense")):
        write_pooling(folder, *kinds)
        message = refused(capsys, str(tmp_path / "store"), str(folder), "--against", "transformers")
        assert "it is measured with mean or cls" in message


def write_pooling(folder: Path, mode: str, *after: str) -> None:
    """Write the files of sentence-transformers."""
    kinds = ("Transformer", "Pooling", *after)
    paths = ("", "1_Pooling", "2")
    listed = [
        {"type": f"sentence_transformers.models.{kind}", "path": path}
        for kind, path in zip(kinds, paths, strict=False)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    switches = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}
    config = {f"pooling_mode_{name}": kind == mode for kind, name in switches.items()}
    (folder / "1_Pooling/config.json").write_text(json.dumps(config))


# Peers that can't take part


@pytest.fixture
def hub_store(tmp_path: Path) -> FileStore:
    """A conversion of a source that is not on this machine, without a tokenizer."""
    store = FileStore(root=tmp_path / "store")
    publish(store, extra=CONFIG)
    return store


def test_without_a_checkpoint_conversions_are_measured_alone(hub_store: FileStore, capsys: Capture):
    publish(hub_store, extra=CONFIG, variant=Variant(task="feature-extraction", batch=8))
    assert main(["bench", hub_store.url, SOURCE, *QUICK, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = ["tracefleet float32 b1", "tracefleet float32 b8"]
    assert [peer["name"] for peer in found["peers"]] == names
    assert found["peers"][1]["difference"] == 0, "compared with the first conversion"
    [first, *_] = found["absent"]
    assert first["name"] == "transformers"
    assert "not on this machine; name a copy: --checkpoint FOLDER" in first["reason"]
    assert found["inputs"].startswith("random ids (hf://acme/tiny-bert was published without")
    assert found["unmixed"] == "no real texts"
    assert all(one["failed"] is None for one in found["figures"])


def test_the_shortest_a_middle_and_the_longest_length_are_measured(tmp_path: Path, capsys: Capture):
    store = FileStore(root=tmp_path / "store")
    publish(store, extra=CONFIG, lengths=(2, 3, 4, 5, 8))
    assert main(["bench", store.url, SOURCE, *QUICK, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert sorted({one["length"] for one in figures}) == [2, 4, 8]


def test_a_decoder_gets_random_ids(tmp_path: Path, capsys: Capture):
    store = FileStore(root=tmp_path / "store")
    publish(store, bundle=tiny_seq2seq_bundle(), extra=CONFIG, **SEQ2SEQ)
    assert main(["bench", store.url, SOURCE, *QUICK]) == 0
    out = capsys.readouterr().out
    assert "failed" not in out
    assert "not measured: mixed lengths: no real texts" in out


def test_the_hubs_cache_is_looked_into(
    hub_store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    manifest = publish(hub_store, channel="other")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(BenchError, match="not on this machine"):
        eager.find_checkpoint(manifest, None)
    folder = tmp_path / "hub" / "models--acme--tiny-bert" / "snapshots" / manifest.commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert eager.find_checkpoint(manifest, None) == folder
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert eager.find_checkpoint(manifest, None) == folder


@pytest.mark.parametrize("missing", ["transformers", "onnxruntime"])
def test_a_peer_that_was_asked_for_and_is_missing_is_an_error(
    work: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, missing: str
):
    monkeypatch.setitem(sys.modules, missing, None)
    name = {"onnxruntime": "onnx"}.get(missing, missing)
    where = (str(work / "store"), str(work / "bert"), *QUICK)
    message = refused(capsys, *where, "--against", name)
    assert f"against {name}: it can't take part: {missing} is not installed; pip" in message


@pytest.mark.usefixtures("no_onnx")
def test_a_checkpoint_that_does_not_load_is_named(work: Path, tmp_path: Path, capsys: Capture):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    found = bench_json(capsys, work, "--checkpoint", str(tmp_path), "--lengths", "8")
    assert [one["name"] for one in found["absent"]] == ["transformers", "onnx"]
    assert "no-such-model" in found["absent"][0]["reason"]


# ONNX Runtime and the picture: only where they are installed


def test_onnx_runtime_is_measured_and_right(work: Path, capsys: Capture):
    for package in ("onnxruntime", "onnx"):
        pytest.importorskip(package, reason=f"{package} is no part of the extra dev")
    found = bench_json(capsys, work, "--against", "onnx,transformers", "--lengths", "8,27")
    assert [peer["name"] for peer in found["peers"]][-1] == "onnxruntime"
    assert found["peers"][-1]["difference"] < 1e-5
    assert all(one["failed"] is None for one in found["figures"])


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_plot_is_drawn(suffix: str, tmp_path: Path):
    pytest.importorskip("matplotlib", reason="matplotlib is no part of the extra dev")
    from tracefleet.bench.plot import save_plot

    save_plot(make_report(), tmp_path / f"ratios{suffix}")
    begins = {".svg": b"<?xml", ".png": b"\x89PNG"}
    assert (tmp_path / f"ratios{suffix}").read_bytes().startswith(begins[suffix])


# Turns and comparison, with peers and a clock of our own


SPEC = OutputSpec(name="logits", dtype="float32", axes=("batch", "2"))
CASE = Case(length=4, rows=2, feed={"input_ids": torch.ones(2, 4, dtype=torch.int64)}, texts=[])
RIGHT = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)


class Clock:
    """Each call of a peer takes as long as the peer says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seen: list[str] = []

    def peer(self, name: str, seconds: float, answer: Any = RIGHT) -> Peer:
        def run(_: Case) -> list[Mapping[str, Any]]:
            self.now += seconds
            self.seen.append(name)
            if isinstance(answer, Exception):
                raise answer
            return [{"logits": answer}]

        return Peer(facts=PeerFacts(name=name, details="planted"), run=run)

    def timing(self, rounds: int = 3) -> Timing:
        return Timing(
            rounds=rounds, clock=lambda: self.now, pause=lambda _: self.seen.append("pause")
        )


def figures_of(*peers: Peer, clock: Clock, threads: tuple[int, ...] = (1,)) -> list[Any]:
    found = measure.measure(peers, [CASE], threads, [SPEC], clock.timing())
    return [figure for figures in found for figure in figures]


def test_peers_take_turns_within_each_round():
    clock = Clock()
    peers = [clock.peer("a", 0.25), clock.peer("b", 0.5)]
    calls = {peer.name: functools.partial(peer.run, CASE) for peer in peers}
    seconds = take_turns(calls, clock.timing(rounds=3))
    assert clock.seen == ["a", "b", *["pause", "a", "pause", "b"] * 3]
    assert seconds == {"a": [0.25] * 3, "b": [0.5] * 3}


def test_a_short_call_is_repeated_within_its_turn():
    clock = Clock()
    calls = {"a": functools.partial(clock.peer("a", 2**-5).run, CASE)}
    assert take_turns(calls, clock.timing(rounds=1)) == {"a": [2**-5]}
    assert clock.seen == ["a", "pause", *["a"] * 4], "until a tenth of a second is over"


def test_figures_have_rates_ratios_and_threads():
    clock = Clock()
    told: list[int] = []
    quick = clock.peer("quick", 0.125)
    told_peer = Peer(facts=quick.facts, run=quick.run, use_threads=told.append)
    before = torch.get_num_threads()
    figures = figures_of(clock.peer("slow", 0.5), told_peer, clock=clock, threads=(1, 2))
    assert told == [1, 2]
    assert torch.get_num_threads() == before
    assert [(one.threads, one.peer, one.rates) for one in figures] == [
        (threads, peer, rates)
        for threads in (1, 2)
        for peer, rates in (("slow", (4.0,) * 3), ("quick", (16.0,) * 3))
    ]


@pytest.mark.parametrize(
    ("answer", "difference"),
    [
        (RIGHT, 0.0),
        (RIGHT + np.array([[0, 0], [0, 1]]), 0.25),
        (RIGHT + np.array([[0.5, 0], [0, 0]]), 0.25),
        (RIGHT * np.nan, math.inf),
    ],
)
def test_the_first_and_last_row_are_compared(answer: Any, difference: float):
    clock = Clock()
    _, figure = figures_of(clock.peer("eager", 1), clock.peer("other", 1, answer), clock=clock)
    assert figure.difference == difference
    assert figure.rates == (2.0,) * 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (RuntimeError("no such kernel\nat …"), "no such kernel"),
        (ValueError(), "ValueError"),
        (RIGHT[:, :1], "shape expected (2,), got (1,)"),
    ],
)
def test_a_peer_that_fails_is_not_timed_and_stops_nobody(answer: Any, reason: str):
    clock = Clock()
    peers = [clock.peer("eager", 1), clock.peer("broken", 1, answer), clock.peer("ours", 1)]
    eager_figure, broken, ours = figures_of(*peers, clock=clock)
    assert broken.failed == reason
    assert broken.rates == ()
    assert clock.seen.count("broken") == 1
    assert eager_figure.rates == ours.rates == (2.0,) * 3


def make_report() -> Report:
    """Three peers in one case of two numbers of threads: the second is wrong, the third fails."""
    clock = Clock()
    wrong, broken = RIGHT * 2, RuntimeError("no such kernel")
    peers = [
        clock.peer("eager", 0.5),
        clock.peer("wrong", 0.25, wrong),
        clock.peer("broken", 1, broken),
    ]
    return Report(
        source="hf://acme/tiny",
        commit="0" * 40,
        task="fill-mask",
        inputs="random ids",
        unmixed="no real texts",
        rounds=3,
        machine=describe_machine(),
        peers=tuple(peer.facts for peer in peers),
        absent=(Absent(name="onnx", reason="planted"),),
        figures=tuple(figures_of(*peers, clock=clock, threads=(1, 2))),
    )


def test_a_failure_is_in_the_table_and_in_the_document():
    report = make_report()
    text = render_table(report)
    assert "wrong*" in text
    assert "8.00 (8.00-8.00) ×2.00  failed" in text
    assert "failed: broken: 1 thread, length 4, 2 rows: no such kernel" in text
    assert "broken  not compared" in text
    figures = describe(report)["figures"]
    assert [one["ratio"] for one in figures] == [1.0, 2.0, None] * 2
    json.dumps(describe(report), allow_nan=False)


# Rows of texts


def test_texts_are_cut_and_joined_to_the_length(tmp_path: Path):
    save_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rows = TextRows(tokenizer, ["the value", "", "of the next one"], "planted")
    for length in (1, 2, 3, 7, 40):
        cut = rows.cut(length, 4)
        assert [len(row) for row in cut] == [length] * 4
        if length > 2:
            assert {(row[0], row[-1]) for row in cut} == {(2, 3)}, "special tokens stay at the ends"
    assert [len(row) for row in rows.keep(5, 3)] == [4, 2, 5]
    with pytest.raises(BenchError, match="expected some that the tokenizer makes tokens of"):
        TextRows(tokenizer, ["", " "], "planted")


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "tensorrt"], "against: expected some of transformers, onnx, got tensorrt"),
        (["--lengths", "33"], "expected at most 32"),
        (["--lengths", "0"], "lengths: expected whole numbers of at least 1"),
        (["--lengths", ""], "lengths: expected whole numbers of at least 1"),
        (["--batches", "0"], "batches: expected whole numbers of at least 1"),
        (["--batches", "1,two"], "batches: expected whole numbers of at least 1"),
        (["--threads", "4096"], "threads: expected at most"),
        (["--rounds", "0"], "rounds: expected whole numbers of at least 1"),
        (["--rounds", "1,2"], "rounds: expected one number"),
        (["--dtype", "float16"], "for backend=jit, channel=latest, dtype=float16; "),
        (["--dtype", "float32,float16"], "for backend=jit, channel=latest, dtype=float16; "),
        (["--task", "fill-mask"], "nothing published for task=fill-mask, backend=jit"),
        (["--channel", "../x"], "channel: expected lower-case"),
        (["--backend", "neuronx"], "backend: expected jit, got 'neuronx'"),
        (["--plot", "x.pdf"], "plot: expected a file that ends in .svg or .png"),
        (["--plot", "none/x.svg"], "plot: expected a file in a folder that exists"),
        (["--json", "none/x.json"], "json: expected a file in a folder that exists"),
        (["--checkpoint", "none"], "checkpoint: expected a folder with config.json"),
        (["--texts", "none"], "texts: expected a file in UTF-8"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    work: Path, capsys: Capture, arguments: list[str], message: str
):
    assert message in refused(capsys, str(work / "store"), str(work / "bert"), *arguments)


def test_texts_that_are_none_are_refused(work: Path, tmp_path: Path, capsys: Capture):
    where = (str(work / "store"), str(work / "bert"), "--texts", str(tmp_path / "texts"))
    (tmp_path / "texts").write_text("\n  \n")
    assert "texts: expected one text a line, got none" in refused(capsys, *where)
    (tmp_path / "texts").write_bytes(b"\xff\xfe\xff")
    assert "texts: expected a file in UTF-8" in refused(capsys, *where)


def test_texts_without_a_tokenizer_are_refused(
    hub_store: FileStore, tmp_path: Path, capsys: Capture
):
    (tmp_path / "texts").write_text("one")
    message = refused(capsys, hub_store.url, SOURCE, "--texts", str(tmp_path / "texts"))
    assert "published without model/tokenizer.json. Leave --texts out" in message


def test_a_source_that_is_not_published_is_refused(work: Path, capsys: Capture):
    message = refused(capsys, str(work / "store"), "hf://acme/absent")
    assert "no conversion is published" in message


def test_several_tasks_need_one_named(hub_store: FileStore, capsys: Capture):
    publish(hub_store, variant=Variant(task="fill-mask"))
    assert "Add task" in refused(capsys, hub_store.url, SOURCE)


def test_a_plot_without_matplotlib_is_refused(
    work: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    where = (str(work / "store"), str(work / "bert"), "--plot", "x.png")
    message = refused(capsys, *where)
    assert "plot: matplotlib is not installed; pip install 'tracefleet[bench]'" in message
    assert not Path("x.png").exists()


def test_lengths_that_a_conversion_does_not_run_at_are_refused(tmp_path: Path, capsys: Capture):
    store = FileStore(root=tmp_path / "store")
    ids = InputSpec(name="input_ids", dtype="int64", axes=("batch", "length"), pad_value=None)
    publish(store, inputs=(ids,))
    message = refused(capsys, store.url, SOURCE, "--lengths", "4,5")
    assert "lengths: expected some of 4, 8 for tracefleet float32" in message
    general = General(shortest=5, rows=8, tokens=64)
    publish(store, inputs=(ids,), general=general)
    assert main(["bench", store.url, SOURCE, *QUICK, "--lengths", "4,5"]) in (0, 1)
    assert "lengths:" not in capsys.readouterr().err, "the control: it runs at 5 as it is"


def test_a_damaged_conversion_is_an_error_and_no_missing_peer(
    hub_store: FileStore, capsys: Capture
):
    [bundle] = hub_store.root.rglob("model.pt")
    bundle.write_bytes(bundle.read_bytes()[:-1] + b"?")
    assert "sha256 expected" in refused(capsys, hub_store.url, SOURCE)
