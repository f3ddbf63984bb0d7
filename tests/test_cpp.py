"""C++ by the header `tracefleet.hpp`: what it answers and refuses is what the reader does."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tracefleet
from examples.cpp.build import ask, build, find_missing, same_bits
from flows.convert import convert
from tasks.request.conversion import make_request
from tasks.sweep.tiny import Case
from tasks.sweep.tiny import build as build_tiny
from tests.support import tiny
from tests.support.forging import scale_weight
from tracefleet.published import select
from tracefleet.pull import pull
from tracefleet.store import open_existing

_missing = find_missing()
pytestmark = pytest.mark.skipif(_missing is not None, reason=str(_missing))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Unoptimised: what is compiled calls libtorch and is not timed.
    return build(tmp_path_factory.mktemp("cpp"), flags="-O0")


Pulled = tuple[Path, tracefleet.Model]


def _pull(source: Path, task: str, folder: Path) -> Pulled:
    """Convert a checkpoint and pull it; return the folder, and the reader's model of it."""
    fields = {"source": f"file://{source}", "task": task, "lengths": [8, 16]}
    store = open_existing(convert_into(folder / "store", fields))
    pull(store, select(store), folder / "pulled")
    return folder / "pulled", tracefleet.open(store)


def convert_into(store: Path, fields: dict[str, Any]) -> str:
    convert(make_request({**fields, "store": f"file://{store}"}))
    return str(store)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Pulled:
    folder, task = tmp_path_factory.mktemp("bert"), "text-classification"
    return _pull(build_tiny(Case(model_type="bert", task=task), folder / "own"), task, folder)


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Pulled:
    folder = tmp_path_factory.mktemp("marian")
    return _pull(tiny.save("marian", folder), "text2text-generation", folder)


@pytest.fixture
def forge(classifier: Pulled, tmp_path: Path) -> Callable[[str, Callable[[bytes], bytes]], Path]:
    """Return a copy of the pulled folder in which one file is another."""

    def copy(name: str, change: Callable[[bytes], bytes]) -> Path:
        folder = tmp_path / "forged"
        shutil.copytree(classifier[0], folder)
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return folder

    return copy


def test_eight_threads_whose_first_calls_come_at_once_get_the_readers_bits(programs, classifier):
    folder, model = classifier
    rows = [list(range(20, 20 + tokens)) for tokens in range(1, 17)]
    requests = [{"rows": [row]} for row in rows for _ in range(4)]
    answers = ask(programs, folder, requests, threads=8)
    assert len(answers) == len(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert same_bits(answer, model(request["rows"]))
    assert not same_bits(answers[0], model([rows[5]])), "the comparison sees another row"


def test_inputs_go_by_name_and_what_is_left_out_is_filled_as_the_reader_fills_it(
    programs, classifier
):
    folder, model = classifier
    ids, mask = [[20, 21, 22], [23, 24, 0]], [[1, 1, 1], [1, 1, 0]]
    kinds = [[0, 1, 1], [0, 1, 0]]
    cases: list[dict[str, Any]] = [
        {"input_ids": ids},
        {"input_ids": ids[0]},
        {"input_ids": ids, "attention_mask": mask},
        {"token_type_ids": kinds, "attention_mask": mask, "input_ids": ids},
        {"input_ids": ids, "token_type_ids": kinds},
    ]
    answers = ask(programs, folder, [{"inputs": case} for case in cases])
    for case, answer in zip(cases, answers, strict=True):
        tensors = {name: np_rows(value) for name, value in case.items()}
        assert same_bits(answer, model(**tensors))
    swapped = {"input_ids": ids, "attention_mask": kinds, "token_type_ids": mask}
    [other] = ask(programs, folder, [{"inputs": swapped}])
    assert other != answers[3], "raw forward would have taken it in silence"
    [ragged] = ask(programs, folder, [{"rows": [[20, 21, 22], [23, 24]]}])
    [masked] = ask(programs, folder, [{"inputs": cases[2]}])
    assert ragged == masked


def np_rows(value: Any) -> Any:
    import numpy as np

    return np.asarray(value)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"rows": [list(range(20, 37))]}, "InputTooLongError", "at most 16"),
    ({"inputs": {"input_ids": [[20.5, 21.0]]}}, "InputError", "expected integers, got Double"),
    ({"inputs": {"ids": [[20]]}}, "InputError", "unknown input ids; this conversion takes"),
    ({"inputs": {"attention_mask": [[1]]}}, "InputError", "input_ids: this conversion needs"),
    ({"inputs": {"input_ids": [[[20]]]}}, "InputError", "expected shape (batch, length)"),
    ({"inputs": {"input_ids": []}}, "InputError", "at least one row"),
    ({"inputs": {"input_ids": [[-1]]}}, "InputError", "from 0, got -1"),
    (
        {"inputs": {"input_ids": [[20, 21]], "attention_mask": [[1]]}},
        "InputError",
        "expected length 2 as in input_ids, got 1",
    ),
    ({"rows": [[20], []]}, "InputError", "at least one token in each row"),
    ({"rows": [[999999]]}, "InputError", "outside the model's vocabulary"),
    ({"generate": {"input_ids": [[20]]}}, "NoGenerationError", "does not"),
    ({"nothing": 1}, "exception", "inputs"),
]


def test_each_refusal_has_its_type_and_the_bundle_goes_on(programs, classifier):
    requests = [request for request, _, _ in REFUSED]
    *answers, after = ask(programs, classifier[0], [*requests, {"rows": [[20, 21]]}])
    for (request, kind, told), refused in zip(REFUSED, answers, strict=True):
        assert refused["error"] == kind, (request, refused)
        assert told in refused["message"], request
    assert same_bits(after, classifier[1]([[20, 21]]))


def _change_manifest(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **fields}).encode()


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "change", "kind", "told"),
    [
        ("model/1/model.pt", _flip, "DigestMismatchError", "nothing was loaded"),
        ("model/config.json", _flip, "DigestMismatchError", "model/config.json: sha256"),
        ("manifest.json", lambda data: data[:-9], "ManifestError", "got: "),
        ("manifest.json", _change_manifest(schema=9), "ManifestError", "1 to 3, got 9"),
        ("manifest.json", _change_manifest(lengths=[16, 8]), "ManifestError", "ascending"),
        ("manifest.json", _change_manifest(inputs=1), "ManifestError", "got: "),
        (
            "manifest.json",
            _change_manifest(opens_with="torch>=99.9"),
            "BackendUnavailableError",
            "expected torch>=99.9, got libtorch 2.",
        ),
        ("manifest.json", _change_manifest(opens_with="newest"), "ManifestError", "torch>=X.Y"),
        (
            "manifest.json",
            lambda data: data.replace(b"model/1/model.pt", b"../1/model.pt"),
            "ManifestError",
            "inside the folder",
        ),
    ],
)
def test_a_changed_byte_or_manifest_is_refused_before_it_is_loaded(
    programs, forge, name, change, kind, told
):
    with pytest.raises(RuntimeError, match=kind) as refused:
        ask(programs, forge(name, change), [])
    assert told in json.loads(str(refused.value))["message"]


def test_a_folder_without_a_conversion_is_a_store_error(programs, tmp_path):
    with pytest.raises(RuntimeError, match="StoreError"):
        ask(programs, tmp_path, [])


def _check(programs: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(programs / "golden"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_golden_samples_hold_and_another_weight_is_seen(programs, classifier, tmp_path):
    import hashlib

    right = _check(programs, classifier[0])
    assert right.returncode == 0, right.stdout + right.stderr
    assert " logits error " in right.stdout
    forged = tmp_path / "forged"
    shutil.copytree(classifier[0], forged)
    bundle, manifest = forged / "model/1/model.pt", forged / "manifest.json"
    before = hashlib.sha256(bundle.read_bytes()).hexdigest()
    bundle.write_bytes(scale_weight(bundle, 1.01))
    after = hashlib.sha256(bundle.read_bytes()).hexdigest()
    manifest.write_text(manifest.read_text().replace(before, after))
    wrong = _check(programs, forged)
    assert wrong.returncode == 1, wrong.stdout + wrong.stderr
    assert "DIFFERS" in wrong.stdout


def test_cpp_generates_the_ids_that_python_generates(programs, translator):
    folder, model = translator
    source = {"generate": {"input_ids": [[20, 30, 40]]}}
    asked = [{"max_new_tokens": 12, "num_beams": beams} for beams in (1, 4)]
    wrong: list[dict[str, Any]] = [
        {**source, "max_new_tokens": 17},
        {**source, "num_beams": 0},
        {"generate": {"input_ids": [list(range(20, 37))]}},
    ]
    answers = ask(programs, folder, [*({**source, **one} for one in asked), *wrong, source])
    for one, answer in zip(asked, answers, strict=False):
        assert answer["ids"]["values"] == model.generate([[20, 30, 40]], **one)[0].tolist()
    kinds = [answer["error"] for answer in answers[2:5]]
    assert kinds == ["AnswerTooLongError", "InputError", "InputTooLongError"]
    assert answers[5]["ids"]["values"] == model.generate([[20, 30, 40]])[0].tolist()
