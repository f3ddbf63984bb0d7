"""``python -m flows``: exit codes, tables, JSON, errors without tracebacks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import tracefleet
from flows.__main__ import main, make_program
from flows.engine import settings
from tests.support.s3_servers import S3Server
from tracefleet.cli import PIPELINE

ROOT = Path(__file__).parent.parent


def _flows(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_convert_then_again_in_real_processes(checkpoint, tmp_path):
    arguments = (
        "convert", "--source", f"file://{checkpoint('bert-cls')}", "--task", "text-classification",
        "--lengths", "8,16", "--store", str(tmp_path / "store"),
    )  # fmt: skip
    first = _flows(*arguments)
    assert first.returncode == 0, first.stderr
    assert "published and validated" in first.stdout
    assert "tracing length 16" in first.stderr
    assert "wrong-weight" in first.stdout
    second = _flows(*arguments)
    assert second.returncode == 0
    assert "already published" in second.stdout
    assert "no weights were read" in second.stderr
    assert "tracing" not in second.stderr
    as_json = json.loads(_flows(*arguments, "--json", "--quiet").stdout)
    assert as_json["status"] == "already published"
    assert as_json["manifest"]["lengths"] == [8, 16]


def test_a_repeat_of_what_was_rolled_back_tells_the_number_that_brings_it_back(
    checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    folder = checkpoint("bert-cls")
    monkeypatch.chdir(folder.parent)
    where = ("--source", f"file://{folder}", "--store", str(tmp_path / "store"))
    by_name = ("--source", f"{folder.name}/", "--store", str(tmp_path / "store"))

    def convert(lengths: str, *more: str) -> str:
        task = ("--task", "text-classification", "--lengths", lengths)
        assert main(["convert", *by_name, *task, *more, "--quiet"]) == 0
        return capsys.readouterr().out

    for lengths in ("8", "16", "24"):  # numbers 1, 2 and 3
        assert "rolled back" not in convert(lengths)
    assert main(["rollback", *where, "--number", "1"]) == 0
    capsys.readouterr()
    says = r"channel  latest #4, rolled back .*`tracefleet rollback --number (\d)` brings"
    assert [re.findall(says, convert(lengths)) for lengths in ("16", "24")] == [["2"], ["3"]]
    as_json = json.loads(convert("16", "--json"))
    assert (as_json["rolled_back_number"], as_json["number"]) == (2, 4)
    assert (as_json["withdrawn"], as_json["withdrawn_number"]) == (None, None)
    assert main(["rollback", *by_name, "--number", "2"]) == 0
    assert main(["promote", *by_name, "--channel", "latest", "--to", "stable"]) == 0
    capsys.readouterr()
    assert "channel  latest #5\n" in convert("16"), "the control: what was told brings it back"
    as_json = json.loads(convert("16", "--json"))
    assert as_json["rolled_back_number"] is None


def test_convert_to_s3_then_again_and_open_from_there(
    checkpoint, swift_server: S3Server, aws_env, monkeypatch: pytest.MonkeyPatch
):
    server = aws_env(swift_server)
    store, source = f"s3://{server.bucket}/{uuid.uuid4().hex}", f"file://{checkpoint('bert-cls')}"
    arguments = (
        "convert", "--source", source, "--task", "text-classification", "--lengths", "8,16",
        "--store", store,
    )  # fmt: skip
    first = _flows(*arguments)
    assert first.returncode == 0, first.stderr
    assert f"at       {store}/conversions/" in first.stdout
    second = _flows(*arguments)
    assert "no weights were read" in second.stderr
    assert tracefleet.open(store, source)([[5, 6, 7]])["logits"].shape == (1, 3)
    kinds = {file.path.split("/")[0] for file in tracefleet.open_store(store).walk("")}
    assert kinds == {"attestations", "channels", "conversions", "probe", "reports"}
    refused = _flows(*arguments[:-1], "s3://no-such-bucket/models")
    assert refused.returncode == 1
    assert "NoSuchBucket" in refused.stderr
    assert "Create the bucket" in refused.stderr
    assert "tracing" not in refused.stderr, "refused before any work"


def test_a_repeat_imports_neither_torch_nor_prefect(checkpoint, tmp_path):
    arguments = [
        "convert", "--source", f"file://{checkpoint('bert-cls')}", "--task", "text-classification",
        "--lengths", "8", "--store", str(tmp_path / "store"), "--quiet",
    ]  # fmt: skip
    assert main(arguments) == 0
    probe = (
        "import sys; from flows.__main__ import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'prefect', 'jinja2'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", probe, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr


HUB = ["--source", "hf://a/b", "--task", "fill-mask"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--source", "gopher://x", "--task", "fill-mask", "--lengths", "8"], "unknown scheme"),
        (["gopher://x", "--lengths", "8"], "unknown scheme"),
        (["hf://a/b", "--task", "x", "--lengths", "8"], "task: expected one of"),
        (["hf://a/b", "--task", "embedings", "--lengths", "8"], "did you mean 'embeddings'?"),
        (["hf://a/b", "--dtype", "int9", "--lengths", "8"], "dtype: expected one of"),
        (["hf://a/b", "--backend", "onnx", "--lengths", "8"], "backend: expected one of"),
        ([*HUB, "--lengths", "8,x"], "lengths: expected"),
        ([*HUB, "--lengths", "0"], "at least 1, got 0"),
        (["a/b", *HUB], "expected MODEL or --source, got both"),
        (["--lengths", "8"], "expected a MODEL, got none"),
        (["a/b", "--length", "8"], "unrecognized arguments: --length 8"),
        (["--entry", "a"], "expected --fleet FILE"),
        (["--fleet", "none.yaml", "--entry", "a"], "none.yaml"),
        (["--fleet", "examples/fleet.yaml", "--entry", "a"], "expected one of minilm"),
    ],
)
def test_wrong_usage_is_one_clear_error_and_exits_with_two(arguments, says, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["convert", *arguments, "--quiet"])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert "error: " in captured.err
    assert captured.out == ""


def test_what_is_not_there_is_an_error_in_text_and_in_json(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    arguments = ["convert", "file:///nowhere", "--task", "fill-mask", "--lengths", "8", "--quiet"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: RequestError: ")
    assert "nowhere" in captured.err
    assert captured.out == ""
    assert main([*arguments, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)["error"]
    assert told["type"] == "RequestError"
    assert "nowhere" in told["message"]


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{tracefleet.__version__}\n"


def test_the_reader_knows_the_names_of_the_pipelines_commands():
    assert sorted(make_program().commands.names) == sorted(PIPELINE)


def test_every_command_tells_its_exit_codes_and_examples(capsys):
    for name in make_program().commands.names:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        told = capsys.readouterr().out
        assert "exit codes: 0 " in told, name
        assert f"examples:\n  tracefleet {name} " in told, name
        assert "``" not in told, name


def test_wrong_usage_exits_with_two(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["convert", "--nonsense"])
    assert caught.value.code == 2


def test_an_entry_of_a_fleet_file_becomes_a_request(checkpoint, tmp_path, capsys):
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        f"defaults: {{task: text-classification, store: 'file://{tmp_path}/store'}}\n"
        f"entries: {{tiny: {{source: 'file://{checkpoint('bert-cls')}', lengths: [16]}}}}\n"
    )
    assert (
        main(["convert", "--fleet", str(fleet), "--entry", "tiny", "--lengths", "8", "--quiet"])
        == 0
    )
    assert "at       file://" in capsys.readouterr().out
    (manifest,) = (tmp_path / "store").rglob("manifest.json")
    assert json.loads(manifest.read_text())["lengths"] == [8]


@pytest.mark.parametrize("kind", ["request", "fleet"])
def test_schemas_are_printed_for_editors(kind, capsys):
    assert main(["schema", kind]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["additionalProperties"] is False


def test_help_names_every_field_of_a_request(capsys):
    from tasks.request.conversion import ConversionRequest

    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    text = capsys.readouterr().out
    options = {"publish_as": "name"}  # entries of a fleet file have names already
    for name in ConversionRequest.model_fields:
        assert f"--{options.get(name, name).replace('_', '-')}" in text
    assert "exit codes" in text


@pytest.mark.parametrize("name", ["", *settings._DATABASE])
def test_the_embedded_server_waits_for_no_lock_unless_somebody_chose_its_database(
    monkeypatch: pytest.MonkeyPatch, name: str
):
    for one in (*settings.SETTINGS, *settings._DATABASE):
        monkeypatch.setenv(one, "")  # so that it is as before after the test
        monkeypatch.delenv(one)
    if name:
        monkeypatch.setenv(name, "postgresql+asyncpg://chosen")
    settings.prepare()
    chosen = {os.environ.get(one) for one in settings._DATABASE} - {None}
    assert chosen == {"postgresql+asyncpg://chosen" if name else settings._IN_MEMORY}
