"""What a request may leave out: task and lengths, from JSON files; what those rule out early."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

import tracefleet
from flows.__main__ import main
from flows.commands.use import list_uses
from flows.convert import convert
from tasks.errors import RequestError, UnsupportedCheckpointError
from tasks.fleet.spec import FleetSpec
from tasks.model.default_lengths import OFFSET_TYPES, default_lengths, find_positions
from tasks.model.facts import LoadOptions
from tasks.model.heads import _class_names, default_task
from tasks.model.named_task import TASK_ORDER, _tasks, check_head, named_task
from tasks.model.preflight import _find_max_length, inspect
from tasks.model.versions import on_meta
from tasks.request.conversion import make_request
from tests.support import tiny_samples
from tests.support.hub_server import Hub
from tracefleet.cli import main as read_command

ROOT = Path(__file__).parent.parent
NEWEST = transformers.__version__.startswith("5.23")


def folder_of(tmp_path: Path, tokenizer: dict[str, Any] | None = None, **config: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if tokenizer is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return tmp_path


# --- the task ------------------------------------------------------------------------------------


@pytest.mark.skipif(not NEWEST, reason="the table is that of transformers 5.23")
def test_the_table_says_what_the_mappings_of_transformers_say():
    expected: dict[str, str] = {}
    for task in TASK_ORDER:
        for name in _class_names(task):
            expected.setdefault(name, task)
    assert _tasks() == expected


def test_naming_a_task_imports_nothing_heavy(tmp_path: Path):
    folder = folder_of(tmp_path, architectures=["BertForMaskedLM"], max_position_embeddings=64)
    probe = (
        "import sys; from pathlib import Path; from tasks.model.named_task import named_task; "
        "from tasks.model.default_lengths import default_lengths; folder = Path(sys.argv[1]); "
        "print(default_lengths(folder, named_task(folder))); "
        "sys.exit(len({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "32, 64 (default: up to the model's 64)\n")


def test_what_the_table_does_not_know_is_asked_of_transformers(tmp_path: Path):
    assert named_task(folder_of(tmp_path, architectures=["NewModelForMaskedLM"])) is None
    both = folder_of(tmp_path, architectures=["BertModel", "NewModelForMaskedLM"])
    assert named_task(both) is None, "the unknown one may come first"
    assert default_task(both) == "feature-extraction"
    assert named_task(folder_of(tmp_path)) is None


def test_a_head_that_was_never_trained_is_refused_by_the_config_alone(tmp_path: Path):
    masked = folder_of(tmp_path, architectures=["BertForMaskedLM"])
    for task in ("text-classification", "question-answering", "image-classification"):
        with pytest.raises(UnsupportedCheckpointError, match="BertForMaskedLM, made for fill-mask"):
            check_head(masked, task)
    for task in ("fill-mask", "feature-extraction", "text-generation"):
        check_head(masked, task)
    for names in (["BertForSequenceClassification"], ["Unknown"], ["BertModel", "Unknown"], []):
        check_head(folder_of(tmp_path, architectures=names), "token-classification")


# --- the lengths ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "tokenizer", "told"),
    [
        ({"max_position_embeddings": 512}, None, "32, 64, 128, 256, 512 (default: up to the model"),
        ({"max_position_embeddings": 8192}, {"model_max_length": 8192}, "256, 512 (default: up to"),
        ({}, None, "32, 64, 128, 256, 512 (default: up to 512)"),
        ({"n_positions": 200}, None, "32, 64, 128, 200 (default: up to the model's 200)"),
        ({"text_config": {"max_position_embeddings": 77}}, None, "32, 64, 77 (default: up to the"),
        ({"max_position_embeddings": 20}, None, "20 (default: up to the model's 20)"),
        ({"max_position_embeddings": 32}, None, "32 (default: up to the model's 32)"),
        ({"max_position_embeddings": 512}, {"model_max_length": 128}, "to the tokenizer's 128)"),
        ({"max_position_embeddings": 64}, {"model_max_length": int(1e30)}, "the model's 64)"),
        ({"max_position_embeddings": 64}, {"model_max_length": 1e30}, "the model's 64)"),
        (
            {"model_type": "roberta", "max_position_embeddings": 130, "pad_token_id": 1},
            None,
            "32, 64, 128 (default: up to the model's 128)",
        ),
        (
            {"model_type": "xlm-roberta", "max_position_embeddings": 514},
            {"model_max_length": 512},
            "256, 512 (default: up to the model's 512)",
        ),
    ],
)
def test_lengths_reach_up_to_the_least_limit(tmp_path: Path, config, tokenizer, told):
    found = default_lengths(folder_of(tmp_path, tokenizer, **config), "fill-mask")
    assert told in str(found)


def test_sentences_reach_up_to_where_sentence_transformers_cuts_them(tmp_path: Path):
    folder = folder_of(tmp_path, {"model_max_length": 512}, max_position_embeddings=512)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    told = str(default_lengths(folder, "sentence-similarity"))
    assert told == "32, 64, 128 (default: up to max_seq_length 128)"
    assert default_lengths(folder, "feature-extraction").lengths[-1] == 512


@pytest.mark.parametrize("name", ["bert-mlm", "roberta-cls", "distilbert-qa", "gpt2", "bart", "t5"])
def test_the_default_is_never_refused_later(checkpoint, name: str):
    folder = checkpoint(name)
    task = default_task(folder)
    lengths = default_lengths(folder, task).lengths
    inspect(folder, LoadOptions(task=task), lengths)


@pytest.mark.skipif(not NEWEST, reason="other versions have other model types")
@pytest.mark.parametrize("model_type", OFFSET_TYPES)
def test_types_whose_positions_begin_behind_the_padding_are_known(model_type: str):
    config = transformers.CONFIG_MAPPING[model_type]()
    with on_meta():
        model = transformers.AutoModel.from_config(config)
    assert find_positions(config.to_dict()) == _find_max_length(model, config)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("name", ["vit", "convnext", "ast", "whisper"])
def test_what_sees_or_hears_has_its_processors_size(tmp_path: Path, name: str):
    folder = tiny_samples.save(name, tmp_path)
    task = tiny_samples.task_of(name)
    found = default_lengths(folder, task)
    assert found.lengths == tiny_samples.lengths_of(name)
    assert "the processor's" in found.why
    inspect(folder, LoadOptions(task=task), found.lengths)


def test_raw_sounds_have_one_second_and_ten(tmp_path: Path):
    folder = tiny_samples.save("wav2vec2", tmp_path)
    assert default_lengths(folder, "audio-classification").lengths == (16_000, 160_000)
    (folder / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    found = default_lengths(folder, "audio-classification")
    assert (found.lengths, found.why) == ((8000, 80_000), "1 s and 10 s")
    frames = tiny_samples.save("wav2vec2-bert", tmp_path)
    assert default_lengths(frames, "audio-classification").lengths == (50, 500)


def test_a_damaged_config_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UnsupportedCheckpointError, match=r"config\.json: expected an object"):
        default_lengths(tmp_path, "fill-mask")


def test_a_request_and_a_fleet_may_leave_both_out():
    request = make_request({"source": "hf://a/b"})
    assert (request.task, request.lengths) == (None, None)
    with pytest.raises(RequestError, match="lengths: expected some"):
        _ = request.known_lengths
    fleet = FleetSpec(entries={"a": {"source": "hf://a/b", "channel": "of-{lengths}"}})
    assert fleet.requests()["a"].channel == "of-default"


# --- the command line ----------------------------------------------------------------------------


def test_a_length_or_head_that_the_config_rules_out_is_refused_before_any_child(
    checkpoint, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def no_child(*_: Any, **__: Any) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr("tasks.child.run", no_child)
    monkeypatch.setattr("tasks.steps.child.run", no_child)
    arguments = ["convert", "--source", str(checkpoint("bert-mlm")), "--store", str(tmp_path / "s")]
    for more, told in (
        (["--lengths", "8,1024"], "lengths: expected at most 128, the positions of this bert"),
        (["--task", "text-classification"], "task: expected one that the weights have a head for"),
    ):
        assert main([*arguments, *more, "--quiet"]) == 1
        assert told in capsys.readouterr().err


def test_a_plan_names_task_and_lengths_without_a_child(
    checkpoint, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def no_child(*_: Any, **__: Any) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr("tasks.child.run", no_child)
    fleet = tmp_path / "fleet.yaml"
    entry = {"source": str(checkpoint("bert-cls")), "publish_as": "support-classifier"}
    fields = {"defaults": {"store": str(tmp_path / "store")}, "entries": {"support": entry}}
    fleet.write_text(json.dumps(fields))
    assert main(["plan", str(fleet)]) == 0
    assert "never published; lengths 32,64,128 by default" in capsys.readouterr().out
    assert main(["plan", str(fleet), "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert (row["task"], row["wanted"]["lengths"]) == ("text-classification", [32, 64, 128])
    assert row["wanted"]["publish_as"] == "support-classifier"


def test_a_conversion_by_default_has_a_name_and_says_how_it_is_used(
    checkpoint, tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    store = tmp_path / "store"
    arguments = [
        "convert", "--source", str(checkpoint("bert-cls")), "--name", "support-classifier",
        "--store", str(store), "--quiet",
    ]  # fmt: skip
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "name     support-classifier #1" in first
    [python] = [line for line in first.splitlines() if line.startswith("Python")]
    opened = eval(python.partition(" ")[2].strip(), {"tracefleet": tracefleet})
    assert opened.lengths == (32, 64, 128)
    assert opened.manifest.variant.task == "text-classification"
    [cpp] = [line for line in first.splitlines() if line.startswith("C++")]
    assert Path(cpp.split('"')[1]).is_file()
    [triton] = [line for line in first.splitlines() if line.startswith("Triton")]
    copy = shlex.split(triton.partition(" && ")[0])
    monkeypatch.chdir(tmp_path)
    assert read_command(copy[copy.index("pull") :]) == 0
    assert (tmp_path / "repository" / "support-classifier" / "config.pbtxt").is_file()
    capsys.readouterr()
    [report] = [line for line in first.splitlines() if line.startswith("report")]
    assert main([*arguments, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["status"] == "already published"
    assert again["report"] == report.split()[1]
    assert (again["name"], again["name_number"], again["name_moved_from"]) == (
        "support-classifier",
        1,
        None,
    )
    assert again["use"]["python"] == python.partition(" ")[2].strip()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("models/bert", "the folder file://{here}/models/bert; hf://models/bert is the hub's"),
        ("./models/bert/", "source: file://{here}/models/bert"),
        ("acme/bert", "hf://acme/bert, since there is no folder acme/bert here"),
    ],
)
def test_the_output_says_what_a_bare_name_was_taken_for(
    tmp_path, monkeypatch: pytest.MonkeyPatch, caplog, given: str, told: str
):
    (tmp_path / "models" / "bert").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with caplog.at_level("INFO"):
        assert main(["convert", "--source", given, "--store", str(tmp_path / "store")]) == 1
    assert told.format(here=tmp_path) in caplog.text


def test_of_several_variants_the_line_names_the_one(checkpoint, tmp_path):
    fields = {"source": str(checkpoint("bert")), "lengths": [8], "store": str(tmp_path / "store")}
    convert(make_request(fields))
    half = convert(make_request({**fields, "dtype": "float16"}))
    line = list_uses(half)["python"]
    assert line.endswith(', dtype="float16")')
    assert eval(line, {"tracefleet": tracefleet}).manifest == half.manifest


def test_a_former_name_of_the_hub_finds_what_was_published_under_the_newer(
    checkpoint, hub: Hub, tmp_path, capsys: pytest.CaptureFixture[str]
):
    folder, store = checkpoint("bert"), tmp_path / "store"
    hub.push({path.name: path.read_bytes() for path in folder.iterdir()})
    hub.former = ("tiny",)
    for _ in range(2):
        assert main(["convert", "--source", "tiny", "--lengths", "8", "--store", str(store)]) == 0
        assert "hf://acme/tiny" in capsys.readouterr().out
    for name in ("tiny", "hf://tiny", "acme/tiny", "hf://acme/tiny"):
        assert tracefleet.load_manifest(str(store), name).source == "hf://acme/tiny"
    with pytest.raises(tracefleet.NoSuchVariantError):
        tracefleet.load_manifest(str(store), "hf://other")
