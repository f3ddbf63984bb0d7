"""The archive for SageMaker: its bytes, its refusals, and the toolkit that containers run."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mms.context import Context, RequestProcessor
from sagemaker_inference.default_handler_service import DefaultHandlerService

import tracefleet
from flows.convert import convert
from tasks.request.conversion import make_request
from tasks.sweep.tiny import Case, build
from tests.support.sagemaker_server import serving
from tracefleet.cli import main
from tracefleet.errors import (
    BackendUnavailableError,
    DigestMismatchError,
    NoFormError,
    NoSuchVariantError,
)
from tracefleet.published import load_manifest, select
from tracefleet.sagemaker import archive, handlers, requests
from tracefleet.store import open_store

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with its tokenizer, published under two names."""
    folder = tmp_path_factory.mktemp("sagemaker")
    source = build(Case(model_type="bert", task="text-classification"), folder / "checkpoint")
    for name in ("support", "other"):
        asked: dict[str, Any] = {
            "source": f"file://{source}",
            "task": "text-classification",
            "publish_as": name,
        }
        asked |= {"lengths": [16, 32], "store": f"file://{folder / 'store'}", "threads": 1}
        convert(make_request(asked))
    return folder / "store"


@pytest.fixture(scope="module")
def unpacked(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive as a container has it, in ``/opt/ml/model``."""
    folder = tmp_path_factory.mktemp("opt")
    assert _pull(store, folder / "made", "support") == 0
    with tarfile.open(folder / "made" / "model.tar.gz") as tar:
        tar.extractall(folder / "model", filter="data")
    return folder / "model"


def _pull(store: Path, target: Path, *more: str) -> int:
    return main(["pull", str(store), *more, "--to", str(target), "--as", "sagemaker"])


class Endpoint:
    """The toolkit's handler service with the model server's own context."""

    def __init__(self, folder: Path) -> None:
        self._context = Context("model", str(folder), {}, 1, None, "1.1.11")
        self._service = DefaultHandlerService()
        self._service.initialize(self._context)

    def ask(self, body: bytes, **headers: str) -> tuple[int, Any]:
        """Return status and answer."""
        processor = RequestProcessor({"Content-Type": "application/json", **headers})
        self._context.request_processor = [processor]
        [answer] = self._service.handle([{"body": body}], self._context)
        status = processor.get_response_status_code()
        assert processor.get_response_status_phrase() in (None, HTTPStatus(status).phrase)
        return status, json.loads(answer)

    def send(self, request: Any) -> tuple[int, Any]:
        return self.ask(json.dumps(request).encode())


@pytest.fixture(scope="module")
def endpoint(unpacked: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(unpacked / "code"))
        patch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        yield Endpoint(unpacked)


@pytest.fixture(scope="module")
def model(store: Path) -> tracefleet.Model:
    return tracefleet.open(store, "support")


def test_texts_are_answered_as_pipelines_answer_them(endpoint, model):
    status, answer = endpoint.send({"inputs": "It arrived broken."})
    assert (status, answer) == (200, [model.predict("It arrived broken.")])
    texts = ["one", "two words", "ö 😀"]
    status, answer = endpoint.send({"inputs": texts})
    assert (status, answer) == (200, model.predict(texts))
    asked = {"inputs": "word " * 40, "parameters": {"truncation": True, "top_k": 2}}
    status, answer = endpoint.send(asked)
    assert (status, answer) == (200, model.predict("word " * 40, truncate=True, top_k=2))
    pair = {"inputs": [{"text": "one", "text_pair": "two"}]}
    assert endpoint.send(pair) == (200, model.predict([("one", "two")]))


@pytest.mark.parametrize("nested", [False, True])
def test_ids_are_answered_with_outputs_that_lose_no_bit(endpoint, model, nested: bool):
    tensors = {"input_ids": [[2, 5, 6, 7, 3], [2, 9, 3]]}
    status, answer = endpoint.send({"inputs": tensors} if nested else tensors)
    assert status == 200
    expected = model(**tensors).logits
    np.testing.assert_array_equal(np.array(answer["logits"], dtype=np.float32), expected)


@pytest.mark.parametrize(
    ("body", "headers", "status", "told"),
    [
        (b"{", {}, 400, "expected JSON"),
        (b"[1]", {}, 400, "expected an object"),
        (b"{}", {}, 400, "expected an object"),
        (b"[" * 100_000, {}, 400, "expected JSON"),
        (b'{"inputs": 3}', {}, 400, "expected texts"),
        (b'{"inputs": []}', {}, 200, ""),
        (b'{"inputs": ["a", null]}', {}, 400, "expected texts"),
        (b'{"inputs": {"text": "a", "text_pair": 1}}', {}, 400, "expected two texts"),
        (b'{"inputs": "a", "n": 1}', {}, 400, "got n too"),
        (b'{"inputs": "a", "parameters": []}', {}, 400, "expected an object"),
        (b'{"inputs": "a", "parameters": {"topk": 1}}', {}, 400, "got topk"),
        (b'{"inputs": "a", "parameters": {"truncation": 1}}', {}, 400, "true or false"),
        (b'{"inputs": "a", "parameters": {"top_k": "x"}}', {}, 400, "top_k: expected"),
        (b'{"inputs": "a", "parameters": {"prompt": 1}}', {}, 400, "prompt: expected"),
        (b'{"inputs": {"input_ids": [[1]]}, "parameters": {"top_k": 1}}', {}, 400, "got tensors"),
        (b'{"input_ids": [[999999]]}', {}, 400, "vocabulary"),
        (b'{"inputs": "a", "parameters": {"choices": [1]}}', {}, 400, "choices: expected"),
        (b'{"input_ids": [[1, null]]}', {}, 400, "whole numbers"),
        (b'{"input_ids": [["a"]]}', {}, 400, "expected a text"),
        (b'{"input_ids": [[1.5]]}', {}, 400, "whole numbers"),
        (b'{"input_ids": [[1], 2]}', {}, 400, ""),
        (b'{"input_ids": [[[1]]]}', {}, 400, ""),
        (b'{"input_ids": "a", "prompt": 3}', {}, 400, "expected inputs, or lists"),
        (b'{"input_ids": {"a": 1}}', {}, 400, "expected inputs, or lists"),
        (b'{"input_ids": [[]]}', {}, 400, ""),
        (b'{"pixels": [[1]]}', {}, 400, "pixels"),
        (b'{"input_ids": [[1]], "attention_mask": [[1, 1]]}', {}, 400, "attention_mask"),
        (b'{"inputs": "a"}', {"Content-Type": "text/csv"}, 415, "expected application/json"),
        (b'{"inputs": "a"}', {"Accept": "text/csv"}, 406, "expected application/json"),
        (b'{"inputs": "a"}', {"Content-Type": "application/json; charset=utf-8"}, 200, ""),
        (b'{"inputs": "a"}', {"Accept": "text/html, */*;q=0.1"}, 200, ""),
    ],
)
def test_what_a_caller_does_wrong_is_told_in_a_sentence(
    endpoint, body: bytes, headers: dict[str, str], status: int, told: str
):
    got, answer = endpoint.ask(body, **headers)
    assert got == status
    if status != 200:
        assert answer.keys() == {"error"}
        assert told in answer["error"]
        assert "Traceback" not in answer["error"]


def test_a_text_that_is_too_long_is_no_500(endpoint):
    status, answer = endpoint.send({"inputs": "word " * 600})
    assert status == 400
    assert "at most 32" in answer["error"]


def test_without_a_context_a_refusal_is_an_exception():
    # Hugging Face's container hands no context on, and makes a 400 of what is raised.
    refused = handlers.input_fn(b"{", "application/json")
    with pytest.raises(ValueError, match="expected JSON"):
        handlers.output_fn(handlers.predict_fn(refused, None), "application/json")  # type: ignore[arg-type]


def test_what_generates_and_what_has_pairs_is_named_as_pipelines_name_it(model):
    class Writing:
        def __init__(self, answer: Any) -> None:
            self.answer = answer
            variant = tracefleet.Variant(task="text2text-generation")
            self.manifest = type("Manifest", (), {"variant": variant})

        def predict(self, texts: Any) -> Any:
            return self.answer

    def ask(text: str, found: Any) -> Any:
        return requests.answer(Writing(found), requests.read_request(text))  # type: ignore[arg-type]

    assert ask('{"inputs": "a"}', "b") == [{"generated_text": "b"}]
    assert ask('{"inputs": ["a"]}', ["b"]) == [{"generated_text": "b"}]
    asked = requests.read_request('{"inputs": {"question": "q", "context": "c"}}')
    assert asked.texts == ("q", "c")
    with pytest.raises(ValueError, match="JSON"):
        requests.to_json({"score": float("nan")})


def test_a_real_server_answers_by_the_archives_own_reader(unpacked, model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(unpacked, folder)
    with (folder / "code" / "tracefleet" / "__init__.py").open("a") as file:
        file.write("\nprint('the reader of the archive')\n")
    with serving(folder, tmp_path) as server:
        status, _, body = server.invoke(b'{"inputs": ["one", "two words"]}')
        assert (status, json.loads(body)) == (200, model.predict(["one", "two words"]))
        status, reason, body = server.invoke(b'{"inputs": 3}')
        assert (status, reason) == (400, "Bad Request")
        assert json.loads(body).keys() == {"error"}
        assert server.invoke(b"a,b", "text/csv")[0] == 415
        assert "the reader of the archive" in server.read_log()


def test_the_archive_is_a_store_of_one_conversion(unpacked, store):
    assert {path.name for path in unpacked.iterdir()} == {"channels", "code", "conversions"}
    assert main(["verify", str(unpacked)]) == 0
    here, there = open_store(unpacked), open_store(store)
    assert load_manifest(here, select(here)) == load_manifest(there, select(there, "support"))


def test_of_a_copy_with_two_names_one_is_to_be_given(unpacked, store, tmp_path):
    shutil.copytree(unpacked, tmp_path / "both")
    shutil.copytree(store / "channels" / "other", tmp_path / "both" / "channels" / "other")
    with pytest.raises(NoSuchVariantError, match="other, support"):
        select(open_store(tmp_path / "both"))


def test_a_changed_byte_is_found_before_the_first_request(unpacked, tmp_path):
    with tarfile.open(unpacked.parent / "made" / "model.tar.gz") as tar:
        tar.extractall(tmp_path / "model", filter="data")
    [bundle] = (tmp_path / "model").rglob("model.pt")
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.write_bytes(data)
    with pytest.raises(DigestMismatchError):
        handlers.model_fn(str(tmp_path / "model"))


def test_a_container_that_computes_something_else_does_not_start(unpacked, monkeypatch):
    forward = tracefleet.Model.forward
    monkeypatch.setattr(
        tracefleet.Model, "forward", lambda self, *given: [one + 1 for one in forward(self, *given)]
    )
    with pytest.raises(BackendUnavailableError, match="golden samples"):
        handlers.model_fn(str(unpacked))


def test_the_same_conversion_makes_the_same_bytes(unpacked, store, tmp_path, capsys):
    assert _pull(store, tmp_path, "support", "--json") == 0
    [made] = json.loads(capsys.readouterr().out)["files"]
    first = (unpacked.parent / "made" / "model.tar.gz").read_bytes()
    assert Path(made).read_bytes() == first
    before = Path(made).stat().st_mtime_ns
    assert _pull(store, tmp_path, "support") == 0
    assert Path(made).stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.tar.gz"]


def test_several_conversions_have_a_folder_each(store, tmp_path):
    assert _pull(store, tmp_path / "all", "support", "other") == 0
    made = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.gz"))
    assert made == ["all/other/model.tar.gz", "all/support/model.tar.gz"]


def test_another_archive_is_never_replaced(store, tmp_path, capsys):
    assert _pull(store, tmp_path, "other") == 0
    before = (tmp_path / "model.tar.gz").read_bytes()
    assert _pull(store, tmp_path, "support") == 1
    assert "got another one" in capsys.readouterr().err
    assert (tmp_path / "model.tar.gz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.tar.gz"]


def test_nothing_is_left_behind_by_a_damaged_store(store, tmp_path, capsys):
    copied = tmp_path / "copied"
    assert _pull(store, tmp_path / "x", "support") == 0
    with tarfile.open(tmp_path / "x" / "model.tar.gz") as tar:
        tar.extractall(copied, filter="data")
    [bundle] = copied.rglob("model.pt")
    bundle.write_bytes(bundle.read_bytes()[:-1])
    assert _pull(copied, tmp_path / "deep" / "er") == 1
    assert "DigestMismatchError" in capsys.readouterr().err
    assert not (tmp_path / "deep").exists()


def test_what_is_written_is_compared_with_the_manifest(store, tmp_path, monkeypatch):
    opened = open_store(store)
    one = select(opened, "support")
    monkeypatch.setattr(archive, "open_verified", lambda *given: io.BytesIO(b"\0" * given[2].size))
    with pytest.raises(DigestMismatchError):
        archive.write_archive(opened, one, tmp_path / "made")
    monkeypatch.undo()
    monkeypatch.setattr(archive, "_INFERENCE", "def broken(:")
    with pytest.raises(SyntaxError):
        archive.write_archive(opened, one, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_neurons_programs_and_candidates_have_no_form(store):
    import dataclasses

    opened = open_store(store)
    manifest = load_manifest(opened, select(opened, "support"))
    neuron = dataclasses.replace(manifest.variant, backend="neuronx")
    with pytest.raises(NoFormError, match="backend neuronx"):
        archive.check_form(dataclasses.replace(manifest, variant=neuron))
    verdict = dataclasses.replace(manifest.validation, verdict="unvalidated-on-device")
    with pytest.raises(NoFormError, match="unvalidated-on-device"):
        archive.check_form(dataclasses.replace(manifest, validation=verdict))


def test_requirements_are_pinned_as_they_were_tested(unpacked):
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    text = (unpacked / "code" / "requirements.txt").read_text()
    pins = [line for line in text.splitlines() if not line.startswith("#")]
    assert pins == ["safetensors==0.8.0", "tokenizers==0.23.3"]
    pinned = {**archive._PINS, **archive._PIECES_PINS}
    assert {f"{name}=={version}" for name, version in pinned.items()} <= set(constraints)


def test_options_of_other_forms_are_wrong_usage(store, capsys):
    for more in (("--gpu",), ("--instances", "2"), ("--model-name", "a")):
        with pytest.raises(SystemExit):
            _pull(store, Path("never"), *more)
        assert "expected --as triton" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["pull", str(store), "--presign", "--as", "sagemaker"])
    assert "--as sagemaker expected --to" in capsys.readouterr().err
