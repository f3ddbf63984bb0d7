"""The command ``tracefleet``: what each command prints, refuses and returns."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracefleet
from tests.support.reader_support import (
    SEQ2SEQ,
    SOURCE,
    flip_byte,
    path_in,
    publish,
    tiny_seq2seq_bundle,
    tokenizer_json,
)
from tracefleet import cli, commands, spelling
from tracefleet.channel import source_slug
from tracefleet.cli import main
from tracefleet.heads import AUTO_CLASSES
from tracefleet.manifest import Manifest, parse
from tracefleet.manifest_types import Variant
from tracefleet.store.folder import FileStore

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(root=tmp_path / "store")


@pytest.fixture
def published(store: FileStore) -> Manifest:
    return publish(store, extra={"model/tokenizer.json": tokenizer_json()})


def run_json(capsys: Capture, *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def refused(capsys: Capture, *arguments: str) -> str:
    """Run a command that must fail, and return its message."""
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


# list and show


def test_list_is_an_aligned_table(store: FileStore, published: Manifest, capsys: Capture):
    publish(store, variant=Variant(task="fill-mask", dtype="float16"), channel="candidate")
    assert main(["list", store.url]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    columns = header.split()
    assert columns == ["source", "variant", "channel", "seq", "lengths", "verdict", "size", "key"]
    starts = [header.index(column) for column in columns]
    cells = [[row[start:].split("  ")[0] for start in starts] for row in rows]
    assert [row[:6] for row in cells] == [
        [SOURCE, "feature-extraction.jit.float32.b1", "latest", "1", "4,8", "validated"],
        [SOURCE, "fill-mask.jit.float16.b1", "candidate", "1", "4,8", "validated"],
    ]
    assert cells[0][7] == published.key[:12]


def test_list_as_json_has_whole_values_and_takes_filters(
    store: FileStore, published: Manifest, capsys: Capture
):
    other = publish(store, variant=Variant(task="fill-mask"))
    [line] = run_json(capsys, "list", store.url, "--task", "fill-mask")
    size = sum(file.size for file in other.files)
    assert (line["key"], line["size"], line["lengths"]) == (other.key, size, [4, 8])
    assert len(run_json(capsys, "list", store.url)) == 2
    assert run_json(capsys, "list", store.url, "--channel", "stable") == []


def test_list_goes_on_where_it_was_told(
    store: FileStore, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(commands, "_PAGE", 2)
    for number in range(5):
        publish(store, source=f"hf://acme/model-{number}", bundle=b"no model")
    everything = run_json(capsys, "list", store.url)
    assert [line["source"][-1] for line in everything] == list("01234")
    assert main(["list", store.url]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 6, "one header, however many pages"
    assert len({line.index("latest") for line in table[1:]}) == 1, "the columns are aligned"
    assert main(["list", store.url, "--limit", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == table[:4]
    after = captured.err.removeprefix("more: --after ").strip()
    assert main(["list", store.url, "--after", after]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [table[0], *table[4:]]
    assert captured.err == ""


def test_list_reads_a_page_and_no_more(store: FileStore, monkeypatch: pytest.MonkeyPatch):
    for number in range(5):
        publish(store, source=f"hf://acme/model-{number}", bundle=b"no model")
    read: list[str] = []
    real = FileStore.read

    def note(self: FileStore, path: str) -> bytes:
        read.append(path)
        return real(self, path)

    monkeypatch.setattr(FileStore, "read", note)
    assert main(["list", store.url, "--limit", "2"]) == 0
    assert len(read) == 4, "an entry and a manifest for each row"


def test_list_of_nothing_says_so(store: FileStore, capsys: Capture):
    store.root.mkdir()
    assert main(["list", str(store.root)]) == 0
    assert f"nothing that fits is published in {store.url}" in capsys.readouterr().out


def test_list_shows_the_sound_ones_and_fails_for_a_damaged_one(
    store: FileStore, published: Manifest, capsys: Capture
):
    other = publish(store, source="hf://acme/other")
    flip_byte(path_in(store, other, "manifest.json"))
    assert main(["list", store.url]) == 1
    captured = capsys.readouterr()
    assert SOURCE in captured.out
    assert f"{other.key}/manifest.json: sha256 expected" in captured.err


def test_show_tells_what_a_conversion_is(store: FileStore, published: Manifest, capsys: Capture):
    assert main(["show", store.url, SOURCE]) == 0
    out = capsys.readouterr().out
    for fact in (
        published.key,
        published.commit,
        "input_ids int64 (batch, length)",
        "last_hidden_state float32 (batch, length, 4)",
        "decoder.weight = embeddings.weight",
        "torch 2.13.0",
        "length 8   max abs error 4.50e-07, 17 probes, passed",
        f"model/1/model.pt {published.bundle.size} bytes sha256 {published.bundle.sha256}",
    ):
        assert fact in out
    for name in (source_slug(SOURCE), SOURCE.removeprefix("hf://"), f"{SOURCE}/"):
        raw = run_json(capsys, "show", store.url, name)
        assert parse(tracefleet.canonical.canonical_json(raw)) == published


def test_show_names_the_report_of_the_run_that_published_it(
    store: FileStore, published: Manifest, capsys: Capture
):
    attested = f"attestations/{source_slug(SOURCE)}/{published.key}"
    for run in ("run-1", "run-2"):  # the second left no report
        store.put_new(f"{attested}/{run}.json", b"{}")
    assert main(["show", store.url, SOURCE]) == 0
    assert "report " not in capsys.readouterr().out
    store.put_new("reports/run-1/index.html", b"<html>")
    assert main(["show", store.url, SOURCE]) == 0
    assert f"report     {store.url}/reports/run-1/index.html" in capsys.readouterr().out


# verify


def test_verify_of_a_sound_store_counts_its_files(
    store: FileStore, published: Manifest, capsys: Capture
):
    publish(store, source="hf://acme/other")
    assert main(["verify", store.url]) == 0
    assert capsys.readouterr().out == "9 files checked in 2 channels, 0 damaged\n"
    checks = run_json(capsys, "verify", store.url, SOURCE)
    assert len(checks) == 5
    assert all(check["ok"] and check["expected"] == check["got"] for check in checks)


def test_verify_names_every_damaged_file_and_goes_on(
    store: FileStore, published: Manifest, capsys: Capture
):
    others = [publish(store, source=f"hf://acme/{name}") for name in ("a", "b", "c", "d")]
    flip_byte(path_in(store, published, "model/1/model.pt"))
    path_in(store, published, "model/config.json").unlink()
    flip_byte(path_in(store, others[0], "manifest.json"))
    path_in(store, others[1], "manifest.json").unlink()
    entry = next((store.root / "channels" / source_slug("hf://acme/c")).rglob("*.json"))
    entry.write_bytes(b"{}")
    assert main(["verify", store.url]) == 1
    captured = capsys.readouterr()
    lines = {line.split(": expected ")[0]: line for line in captured.err.splitlines()}
    assert len(lines) == 5
    folder = f"conversions/{source_slug(SOURCE)}/{published.key}"
    message = lines[f"{folder}/model/1/model.pt"]
    assert f": expected {published.bundle.sha256} got " in message
    assert len(message.rpartition(" ")[2]) == 64
    assert "No such file" in lines[f"{folder}/model/config.json"] or "no such" in captured.err
    assert "5 damaged" in captured.out
    assert main(["verify", store.url, "hf://acme/d"]) == 0, "the control: a sound one passes"


def test_verify_of_nothing_is_an_error(store: FileStore, published: Manifest, capsys: Capture):
    assert "nothing to verify" in refused(capsys, "verify", store.url, "hf://acme/absent")


# pull


def test_pull_copies_the_whole_conversion(
    store: FileStore, published: Manifest, tmp_path: Path, capsys: Capture
):
    target = tmp_path / "new" / "copy"
    pulled = run_json(capsys, "pull", store.url, SOURCE, "--to", str(target))
    assert pulled["key"] == published.key
    names = sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file())
    assert names == sorted(["manifest.json", *(file.path for file in published.files)])
    for name in names:
        assert (target / name).read_bytes() == path_in(store, published, name).read_bytes()
    assert list(target.parent.iterdir()) == [target]


def test_pull_takes_an_empty_folder_and_refuses_a_full_one(
    store: FileStore, published: Manifest, tmp_path: Path, capsys: Capture
):
    target = tmp_path / "copy"
    target.mkdir()
    assert main(["pull", store.url, SOURCE, "--to", str(target)]) == 0
    assert "4 files" in capsys.readouterr().out
    assert "got one with contents" in refused(
        capsys, "pull", store.url, SOURCE, "--to", str(target)
    )


def test_pull_of_a_damaged_file_leaves_nothing(
    store: FileStore, published: Manifest, tmp_path: Path, capsys: Capture
):
    flip_byte(path_in(store, published, "model/1/model.pt"))
    target = tmp_path / "here" / "copy"
    assert "sha256 expected" in refused(capsys, "pull", store.url, SOURCE, "--to", str(target))
    assert list(target.parent.iterdir()) == []


def test_pull_to_where_nothing_can_be_written_is_refused(
    store: FileStore, published: Manifest, tmp_path: Path, capsys: Capture
):
    (tmp_path / "file").touch()
    target = str(tmp_path / "file" / "copy")
    assert "can't write the conversion there" in refused(
        capsys, "pull", store.url, SOURCE, "--to", target
    )


def test_the_older_form_of_pull_works_and_tells_the_new_one(
    store: FileStore, published: Manifest, tmp_path: Path, capsys: Capture
):
    target = tmp_path / "copy"
    assert main(["pull", store.url, SOURCE, str(target)]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"pull: the folder's new form is --to {target}\n"
    assert (target / "manifest.json").is_file()


def test_pull_of_several_makes_a_folder_for_each(
    store: FileStore, published: Manifest, tmp_path: Path, capsys: Capture
):
    publish(store, source="hf://acme/other")
    slugs = sorted(map(source_slug, (SOURCE, "hf://acme/other")))
    for number, sources in enumerate(([], [SOURCE, "hf://acme/other"])):
        target = tmp_path / str(number)
        pulled = run_json(capsys, "pull", store.url, *sources, "--to", str(target))
        assert sorted(Path(one["dest"]).name for one in pulled) == slugs
        assert sorted(path.name for path in target.iterdir()) == slugs
    nowhere = str(tmp_path / "2")
    assert "it holds" in refused(capsys, "pull", store.url, SOURCE, "hf://a/b", "--to", nowhere)
    assert not Path(nowhere).exists(), "all are chosen before the first is copied"
    only = ("--task", "fill-mask", "--to", nowhere)
    assert "nothing to pull" in refused(capsys, "pull", store.url, *only)


# run


def test_run_on_texts_uses_the_conversions_tokenizer_without_its_limits(
    store: FileStore, published: Manifest, capsys: Capture
):
    texts = ["hello world again hello", "world"]
    options = ["--raw", *(option for text in texts for option in ("--text", text))]
    result = run_json(capsys, "run", store.url, SOURCE, *options)
    expected = tracefleet.open(store, SOURCE)([[2, 3, 4, 2], [3]])
    assert result["source"] == SOURCE
    for name, value in expected.items():
        assert result["outputs"][name]["shape"] == list(value.shape)
        assert np.allclose(result["outputs"][name]["values"], value)
    assert main(["run", store.url, SOURCE, *options]) == 0
    out = capsys.readouterr().out
    assert "last_hidden_state (2, 4, 4) float32: " in out
    assert "pooler_output (2, 4) float32: " in out


def test_run_on_ids_is_the_same_as_on_their_text(
    store: FileStore, published: Manifest, capsys: Capture
):
    text = run_json(capsys, "run", store.url, SOURCE, "--raw", "--text", "hello world")
    ids = run_json(capsys, "run", store.url, SOURCE, "--ids", "2, 3")
    other = run_json(capsys, "run", store.url, SOURCE, "--ids", "2 4")
    assert text == ids != other


def run_lines(capsys: Capture, *arguments: str) -> list[Any]:
    assert main(["run", *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_run_answers_each_text_on_a_line_of_its_own(
    store: FileStore, published: Manifest, capsys: Capture
):
    texts = ["hello world", "again"]
    lines = run_lines(capsys, store.url, SOURCE, "--text", texts[0], "--text", texts[1])
    expected = tracefleet.open(store, SOURCE).predict(texts)
    assert [line["text"] for line in lines] == texts
    for line, answer in zip(lines, expected, strict=True):
        assert np.allclose(line["answer"], answer)
    [pair] = run_lines(capsys, store.url, SOURCE, "--pair", "hello", "world")
    assert pair["text"] == ["hello", "world"]
    assert main(["run", store.url, SOURCE, "--text", "hello world"]) == 0
    assert capsys.readouterr().out.startswith("(2, 4) float32: ")


@pytest.mark.parametrize("options", [[], ["--text", "-"]])
def test_run_answers_each_line_of_a_pipe(
    store: FileStore,
    published: Manifest,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello world\r\nagain"))
    lines = run_lines(capsys, store.url, SOURCE, *options)
    assert [line["text"] for line in lines] == ["hello world", "again"]


def test_run_cuts_only_when_it_is_asked_to(store: FileStore, published: Manifest, capsys: Capture):
    long = "hello " * 9
    message = refused(capsys, "run", store.url, SOURCE, "--text", long)
    assert "text 0: 9 tokens; expected at most 8" in message
    assert "--truncate" in message
    [line] = run_lines(capsys, store.url, SOURCE, "--text", long, "--truncate")
    assert np.shape(line["answer"]) == (8, 4)
    message = refused(capsys, "run", store.url, SOURCE, "--text", "x", "--prompt-name", "query")
    assert "prompt_name: expected one of [], got 'query'" in message


def test_run_takes_decoder_ids(store: FileStore, capsys: Capture):
    publish(store, bundle=tiny_seq2seq_bundle(), **SEQ2SEQ)
    arguments = ["run", store.url, SOURCE, "--ids", "1 2 3"]
    result = run_json(capsys, *arguments, "--decoder-ids", "1 1")
    assert result["outputs"]["logits"]["values"] == [[[7.0], [8.0]]]
    assert "decoder_input_ids: this conversion needs it" in refused(capsys, *arguments)


def test_run_refuses_what_the_model_can_not_take(
    store: FileStore, published: Manifest, capsys: Capture
):
    base = ("run", store.url, SOURCE)
    assert "9 tokens; expected at most 8" in refused(capsys, *base, "--text", "hello " * 9)
    assert "outside the model's vocabulary" in refused(capsys, *base, "--ids", "999")
    assert "expected whole numbers" in refused(capsys, *base, "--ids", "one")
    assert "at least one token" in refused(capsys, *base, "--ids", "")
    assert "at least one token" in refused(capsys, *base, "--text", "")


def test_run_on_text_without_a_tokenizer_says_what_to_do(store: FileStore, capsys: Capture):
    publish(store)
    message = refused(capsys, "run", store.url, SOURCE, "--text", "x")
    assert "published without model/tokenizer.json. Give ids instead (--ids" in message


def test_run_checks_the_tokenizer_too(store: FileStore, published: Manifest, capsys: Capture):
    flip_byte(path_in(store, published, "model/tokenizer.json"))
    assert "tokenizer.json: sha256" in refused(capsys, "run", store.url, SOURCE, "--text", "x")


# What is common


@pytest.mark.parametrize(
    ("holds", "says"),
    [
        ([], "got nothing: there is no such folder"),
        (["config.json", "model.safetensors"], "got a checkpoint's folder. Convert it first"),
        (["readme.txt"], "got a folder that holds no conversions/"),
    ],
)
@pytest.mark.parametrize("command", ["list", "verify", "check", "pull", "show"])
def test_what_is_no_store_is_told(
    command: str, holds: list[str], says: str, tmp_path: Path, capsys: Capture
):
    place = tmp_path / "place"
    for name in holds:
        place.mkdir(exist_ok=True)
        (place / name).touch()
    more = {"pull": ["a/b", "--to", "x"], "show": ["a/b"]}.get(command, [])
    assert says in refused(capsys, command, str(place), *more)
    (tmp_path / "file").touch()
    assert "got a file" in refused(capsys, command, str(tmp_path / "file"), *more)


def test_a_home_folder_is_a_home_folder_in_every_store_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    publish(FileStore(root=tmp_path / "st"))
    for url in ("~/st", "file://~/st", "./st"):
        assert len(run_json(capsys, "list", url)) == 1
    assert "which is no user's here" in refused(capsys, "list", "~nobody-of-that-name/st")
    assert not (tmp_path / "~").exists()


def test_pull_onto_a_file_says_so(
    store: FileStore, published: Manifest, tmp_path: Path, capsys: Capture
):
    (tmp_path / "file").touch()
    file = str(tmp_path / "file")
    assert "got a file" in refused(capsys, "pull", store.url, SOURCE, "--to", file)


@pytest.mark.parametrize("command", ["show", "run"])
def test_an_unknown_source_or_store_is_an_error_with_what_is_there(
    store: FileStore, published: Manifest, capsys: Capture, command: str
):
    extra = ["--ids", "1"] if command == "run" else []
    message = refused(capsys, command, store.url, "hf://acme/absent", *extra)
    assert f"it holds {source_slug(SOURCE)}" in message
    assert "unknown scheme" in refused(capsys, command, "gs://x/y", SOURCE, *extra)


def test_every_command_takes_a_folder_however_it_is_written(
    store: FileStore, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bert").mkdir()
    publish(store, source=f"file://{tmp_path}/bert")
    publish(store, source="hf://acme/other")
    for number, name in enumerate(("./bert/", "bert", "~/bert", f"file://{tmp_path}//bert")):
        assert run_json(capsys, "show", store.url, name)["source"] == f"file://{tmp_path}/bert"
        assert main(["verify", store.url, name]) == 0
        assert "4 files checked in 1 channels, 0 damaged" in capsys.readouterr().out
        assert main(["pull", store.url, name, "--to", f"out{number}"]) == 0
        assert main(["run", store.url, name, "--ids", "1 2"]) == 0
        capsys.readouterr()
    for command in ("show", "verify"):
        refused(capsys, command, store.url, "./berd")


def test_a_channel_that_is_no_name_is_refused(
    store: FileStore, published: Manifest, capsys: Capture
):
    assert "channel: expected" in refused(capsys, "show", store.url, SOURCE, "--channel", "../x")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["show"],
        ["run", "store", "source"],
        ["run", "store", "source", "--text", "x", "--top-k", "0"],
        ["run", "store", "source", "--text", "x", "--pair", "a", "b"],
        ["list", "s", "--batch", "x"],
        ["list", "s", "--limit", "0"],
        ["list", "s", "--after", "../x/y"],
        ["list", "s", "--after", "a//b"],
        ["pull", "s", "a"],
        ["pull", "s", "a", "--to", "b", "--presign"],
        ["list", "s", "--task", "fill-msk"],
        ["list", "s", "--dtype", "float33"],
        ["list", "s", "--backend", "onnx"],
        ["list", "s", "--lim", "1"],
        ["show", "s", "a", "--js"],
        ["list", "s", "--limit", "-1"],
    ],
)
def test_wrong_usage_exits_with_two(
    arguments: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert "usage: tracefleet" in told or f"(tracefleet {arguments[0]} --help)" in told


def test_an_error_with_json_is_json_and_keeps_its_exit_code(
    store: FileStore, published: Manifest, capsys: Capture
):
    assert main(["show", store.url, "hf://acme/absent", "--json"]) == 1
    captured = capsys.readouterr()
    told = json.loads(captured.out)["error"]
    assert told["type"] == "NoSuchVariantError"
    assert captured.err == f"error: NoSuchVariantError: {told['message']}\n"
    with pytest.raises(SystemExit) as caught:
        main(["show", store.url, SOURCE, "--json", "--task", "ner", "--batch", "x"])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["type"] == "UsageError"
    assert "--task ner: read as token-classification" in captured.err


@pytest.mark.parametrize(
    ("option", "asked", "says"),
    [
        ("--task", "fill-msk", "did you mean 'fill-mask'?"),
        ("--task", "sentiment-analisys", "did you mean 'sentiment-analysis'?"),
        ("--dtype", "flaot16", "did you mean 'float16'?"),
        ("--backend", "onnx", "expected one of jit, neuronx, neuron; got 'onnx' (tracefleet list"),
    ],
)
def test_a_misspelled_name_is_answered(option: str, asked: str, says: str, capsys: Capture):
    with pytest.raises(SystemExit):
        main(["list", "store", option, asked])
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("read", "meant"),
    [
        (spelling.read_task, {"embeddings": "sentence-similarity", "NER": "token-classification"}),
        (spelling.read_task, {"fill_mask": "fill-mask", "qa": "question-answering"}),
        (spelling.read_dtype, {"fp16": "float16", "half": "float16", "bf16": "bfloat16"}),
        (spelling.read_dtype, {"fp32": "float32", "torch.float16": "float16"}),
        (spelling.read_backend, {"inf2": "neuronx", "jit": "jit"}),
    ],
)
def test_names_are_understood_as_people_write_them(read: Any, meant: dict[str, str]):
    assert {name: read(name) for name in meant} == meant


def test_every_alias_means_a_name_that_exists():
    assert set(spelling._TASKS.values()) <= set(AUTO_CLASSES)
    assert not set(spelling._TASKS) & set(AUTO_CLASSES)
    assert set(spelling._DTYPES.values()) == set(spelling.DTYPES)
    assert set(spelling._BACKENDS.values()) == set(spelling.BACKENDS)


def test_help_has_groups_and_a_reader_alone_says_how_to_get_the_rest(capsys: Capture, monkeypatch):
    monkeypatch.setattr(cli, "GROUP", "tracefleet.nothing")
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert "use what is published:\n  list " in told
    assert "look after a store:\n  verify " in told
    for name in cli.PIPELINE:
        with pytest.raises(SystemExit) as caught:
            main([name, "x"])
        assert caught.value.code == 2
        assert "pip install tracefleet-pipeline" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["lst"])
    assert "no command of tracefleet; did you mean 'list'?" in capsys.readouterr().err


def test_missing_torch_says_what_to_install(
    store: FileStore, published: Manifest, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refused(capsys, "run", store.url, SOURCE, "--ids", "1")
    assert "pip install 'tracefleet[run]'" in message


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracefleet.cli", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, **options)


def test_the_real_process_verifies_and_names_a_flipped_byte(store: FileStore, published: Manifest):
    sound = process("verify", str(store.root))
    assert (sound.returncode, sound.stderr) == (0, "")
    flip_byte(path_in(store, published, "model/1/model.pt"))
    damaged = process("verify", str(store.root), SOURCE)
    assert damaged.returncode == 1
    assert f"model.pt: expected {published.bundle.sha256} got " in damaged.stderr
    assert "Traceback" not in damaged.stderr


def test_the_real_process_runs_a_model_and_prints_one_json_document(
    store: FileStore, published: Manifest
):
    done = process("run", str(store.root), SOURCE, "--ids", "1 2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["outputs"]["pooler_output"]["shape"] == [1, 4]


def test_a_closed_pipe_is_no_traceback(store: FileStore, published: Manifest):
    command = f"{sys.executable} -m tracefleet.cli show {store.root} {SOURCE} --json | true"
    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True)
    assert done.stderr == ""
