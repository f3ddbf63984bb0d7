"""Texts in, answers out of a real Triton server: the reader's answers, bit for bit."""

from __future__ import annotations

import ast
import json
import subprocess
import urllib.error
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracefleet
from flows.convert import convert
from tasks.request.conversion import make_request
from tasks.sweep.tiny import Case, build
from tests.support.pages import read_blocks
from tests.support.triton_server import Server, serving
from tests.test_pooling import write
from tracefleet.cli import main
from tracefleet.errors import NoFormError
from tracefleet.published import load_manifest, select
from tracefleet.store import open_store
from tracefleet.triton.calling import arrange
from tracefleet.triton.repository import name_models
from tracefleet.triton.texts import check_text_names

TEXTS = ["The train left at noon.", "42!", "", "Done! 🎉 Как? 雨", "word " * 600]
PAGE = Path(__file__).parent.parent / "docs" / "triton.md"
TASKS = {
    "my-classifier": "text-classification",
    "entities": "token-classification",
    "answers": "question-answering",
    "states": "feature-extraction",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion of each kind of answer, under the names of ``TASKS`` and ``vectors``."""
    folder = tmp_path_factory.mktemp("triton-text")
    for name, task in TASKS.items():
        source = build(Case(model_type="bert", task=task), folder / name)
        _convert(source, folder / "store", name, task)
    body = build(Case(model_type="bert", task="feature-extraction"), folder / "vectors")
    _convert(write(body), folder / "store", "vectors", "sentence-similarity")
    return folder / "store"


def _convert(folder: Path, store: Path, name: str, task: str) -> None:
    asked = {"source": f"file://{folder}", "task": task, "publish_as": name, "threads": 1}
    convert(make_request({**asked, "lengths": [16, 32], "store": f"file://{store}"}))


@pytest.fixture(scope="module")
def repository(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("texts") / "repository"
    assert _pull(store, target, "--instances", "1") == 0
    return target


def _pull(store: Path, target: Path, *more: str) -> int:
    return main(["pull", str(store), *more, "--to", str(target), "--as", "triton", "--text"])


@pytest.fixture(scope="module")
def server(triton_environment: Path, repository: Path) -> Iterator[Server]:
    with serving(triton_environment, repository) as running:
        yield running


def _ask(server: Server, name: str, texts: Sequence[Any], **parameters: Any) -> dict[str, Any]:
    """Return the outputs of a request by their names, each with a row for each text."""
    columns = {"text": list(texts)}
    if not isinstance(texts[0], str):
        columns = {"text": [one for one, _ in texts], "pair": [other for _, other in texts]}
    inputs = []
    for column, values in columns.items():
        told = {"name": column, "datatype": "BYTES", "shape": [len(values), 1]}
        inputs.append({**told, "data": values})
    body = {"inputs": inputs, "parameters": parameters}
    answer = server.ask(f"v2/models/{name}-text/infer", body)
    return {one["name"]: one for one in answer["outputs"]}


def _read_answers(found: dict[str, Any]) -> list[Any]:
    return [json.loads(one) for one in found["answer"]["data"]]


def test_what_is_printed_is_answered(server: Server):
    [block] = [one for one in read_blocks(PAGE) if "my-classifier-text/infer" in one.text]
    lines = block.text[block.text.index("curl") :].replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run(["bash", "-ec", lines], capture_output=True, text=True, check=True)
    first, end = json.JSONDecoder().raw_decode(done.stdout)
    second = json.loads(done.stdout[end:])
    assert json.loads(first["outputs"][0]["data"][0]).keys() == {"label", "score"}
    assert [len(json.loads(one)) for one in second["outputs"][0]["data"]] == [2, 2]


@pytest.mark.parametrize("name", ["my-classifier", "entities"])
def test_answers_are_those_of_the_reader(server: Server, store: Path, name: str):
    model = tracefleet.open(store, name)
    assert _read_answers(_ask(server, name, TEXTS)) == model.predict(TEXTS, truncate=True)
    for text in TEXTS:
        assert _read_answers(_ask(server, name, [text])) == model.predict([text], truncate=True)


def test_a_request_says_how_it_is_to_be_answered(server: Server, store: Path):
    model = tracefleet.open(store, "my-classifier")
    pairs = [("Is it open?", "It was closed."), ("A", "word " * 600)]
    expected = model.predict(pairs, truncate=True, top_k=2, prompt="query: ")
    assert (
        _read_answers(_ask(server, "my-classifier", pairs, top_k=2, prompt="query: ")) == expected
    )
    tagger = tracefleet.open(store, "entities")
    joined = _read_answers(_ask(server, "entities", TEXTS[:2], aggregation="simple"))
    assert joined == tagger.predict(TEXTS[:2], aggregation="simple")


def test_questions_are_answered_from_contexts_of_any_length(server: Server, store: Path):
    model = tracefleet.open(store, "answers")
    pairs = [("When?", "The train left at noon."), ("Who?", "word 42 " * 100)]
    assert _read_answers(_ask(server, "answers", pairs)) == model.predict(pairs)


def test_vectors_are_those_of_the_reader(server: Server, store: Path):
    model = tracefleet.open(store, "vectors")
    [found] = _ask(server, "vectors", TEXTS).values()
    got = np.array(found["data"], np.float32).reshape(found["shape"])
    np.testing.assert_array_equal(got, model.predict(TEXTS, truncate=True))


def test_states_end_in_zeros_where_a_text_is_shorter(server: Server, store: Path):
    found = _ask(server, "states", TEXTS)
    states = found["last_hidden_state"]
    got = np.array(states["data"], np.float32).reshape(states["shape"])
    expected = tracefleet.open(store, "states").predict(TEXTS, truncate=True)
    assert found["tokens"]["data"] == [len(one) for one in expected]
    for place, one in enumerate(expected):
        np.testing.assert_array_equal(got[place, : len(one)], one)
        assert not got[place, len(one) :].any()


@pytest.mark.parametrize(
    ("name", "texts", "parameters", "told"),
    [
        ("my-classifier", TEXTS, {"truncate": False}, "expected at most 32"),
        ("my-classifier", ["a"], {"topk": 2}, "expected some of"),
        ("my-classifier", ["a"], {"top_k": "2"}, "top_k expected a int"),
        ("answers", [("", "word")], {}, "expected a question and a context"),
        ("my-classifier", ["a"], {"prompt_name": "query"}, "prompt_name: expected one of"),
        ("entities", [("a", "b")], {}, "got pairs of texts"),
    ],
)
def test_what_can_not_be_answered_is_a_400_with_a_sentence(
    server: Server, name: str, texts: list[Any], parameters: dict[str, Any], told: str
):
    with pytest.raises(urllib.error.HTTPError) as refused:
        _ask(server, name, texts, **parameters)
    assert refused.value.code == 400
    said = refused.value.read().decode()
    assert told in said
    assert "Traceback" not in said


def test_a_model_keeps_what_it_is(store: Path, repository: Path, capsys):
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*") if path.is_file()}
    assert _pull(store, repository, "--instances", "1", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 10
    assert {path: path.stat().st_mtime_ns for path in before} == before
    config = (repository / "my-classifier" / "config.pbtxt").read_text()
    assert "version_policy: { latest { num_versions: 2 } }" in config
    # One is not the other's, whichever name is asked for.
    asked = ["pull", str(store), "my-classifier", "--to", str(repository), "--as", "triton"]
    assert main([*asked, "--model-name", "my-classifier-text"]) == 1
    assert "got another one" in capsys.readouterr().err


def test_the_code_that_is_copied_imports_nothing_else_of_the_package(repository: Path):
    package = repository / "my-classifier-text" / "1" / "tracefleet"
    asked: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tracefleet."):
                asked.add(str(node.module).removeprefix("tracefleet.").replace(".", "/"))
    assert "manifest" in asked
    missing = [one for one in asked if not (package / f"{one}.py").is_file()]
    assert [one for one in missing if not (package / one / "__init__.py").is_file()] == []


def test_two_models_of_one_name_are_refused(store: Path, tmp_path: Path):
    opened = open_store(store)
    chosen = [select(opened, "my-classifier"), select(opened, "vectors")]
    models = name_models((one, load_manifest(opened, one)) for one in chosen)
    check_text_names(models, tmp_path)
    (tmp_path / "my-classifier-text").mkdir()
    (tmp_path / "my-classifier-text" / "channel").write_text("channels/another")
    with pytest.raises(NoFormError, match="expected my-classifier-text to be the model"):
        check_text_names(models, tmp_path)


@pytest.mark.parametrize(
    ("model_type", "task", "told"),
    [("bert", "multiple-choice", "no place for the choices"), ("gpt2", "text-generation", "task")],
)
def test_a_task_without_answers_writes_nothing(
    tmp_path: Path, capsys, model_type: str, task: str, told: str
):
    folder = build(Case(model_type=model_type, task=task), tmp_path / "checkpoint")
    _convert(folder, tmp_path / "store", "asked", task)
    assert _pull(tmp_path / "store", tmp_path / "repository") == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def test_rows_are_padded_as_the_reader_pads_them(store: Path):
    opened = open_store(store)
    manifest = load_manifest(opened, select(opened, "my-classifier"))
    given = {"input_ids": [[7, 8, 9], [7]], "token_type_ids": [[0, 1, 1], [1]]}
    arrays = arrange(manifest.inputs, given)
    assert arrays["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert arrays["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert {array.dtype.name for array in arrays.values()} == {"int64"}
