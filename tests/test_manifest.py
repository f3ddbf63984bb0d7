"""Manifests: the laws of their bytes, the golden file, the schema, and what is refused.

After a wanted change of the format: ``UPDATE_GOLDENS=1 pytest tests/test_manifest.py``.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.reader_support import entry, example_manifest
from tracefleet import generation_types, manifest_types, verdict_types
from tracefleet import manifest as manifest_module
from tracefleet.canonical import canonical_json, check_relative
from tracefleet.errors import ManifestError
from tracefleet.generation_types import Generation, GenerationVerdict
from tracefleet.manifest import Manifest, parse
from tracefleet.manifest_types import FileEntry, General, Variant
from tracefleet.text import spec as text_spec
from tracefleet.text.spec import TextSpec
from tracefleet.verdict_types import Tolerance, samples_path

GOLDEN = Path(__file__).parent / "data" / "manifest.golden.json"
SCHEMA = json.loads(
    (Path(manifest_module.__file__).parent / "manifest.schema.json").read_text("utf-8")
)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
#: Objects whose keys are anybody's.
OPEN = (("options",), ("text", "prompts"), ("text", "special"))
#: The one field that a manifest may leave out.
OPTIONAL = ((), "text")
TEXT = TextSpec(
    tokenizer="model/tokenizer.json",
    refused="its tokenizer.json can't be read",
    max_tokens=8,
    truncation_side="left",
    padding_side="left",
    lower_case=True,
    prompts={"query": "query: "},
    default_prompt="query",
    special={"mask": "[MASK]"},
    clean_up_spaces=True,
    labels=("no", "yes"),
    problem_type="single_label_classification",
)


def _example(**changes: Any) -> Manifest:
    general = General(shortest=1, rows=64, tokens=1024)
    digest = "5" * 64
    samples = FileEntry(
        path=samples_path(digest), size=9, sha256=digest, media_type="application/vnd.safetensors"
    )
    plain = example_manifest()
    validation = dataclasses.replace(plain.validation, samples=samples)
    whole = {"general": general, "validation": validation, "text": TEXT, **changes}
    return dataclasses.replace(plain, **whole)


_VERDICT = GenerationVerdict(
    max_rel_error=1e-7, beams=(1, 4), rows=8, near_ties=1, unproved=("longest",), faults=("a", "b")
)
_GENERATION = Generation(
    num_beams=4,
    max_new_tokens=16,
    start=0,
    pad=0,
    eos=(1,),
    layers=2,
    options={"length_penalty": "0.6"},
    verdict=_VERDICT,
)


def _raw() -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(_example().to_bytes())
    return raw


def _objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all objects with fixed fields inside a raw manifest."""
    if isinstance(value, dict):
        if path not in OPEN:
            yield path
        for name, inner in value.items():
            yield from _objects(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _objects(inner, (*path, index))


def _at(raw: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        raw = raw[step]
    return raw


FIELDS = [(path, name) for path in _objects(_raw()) for name in _at(_raw(), path)]


@pytest.mark.parametrize("schema", [1, 2])
def test_a_manifest_of_an_earlier_schema_reads_and_is_written_back_as_it_was(schema: int):
    data = (GOLDEN.parent / f"manifest.{schema}.golden.json").read_bytes()
    old = parse(data)
    assert old.schema == schema
    assert old.to_bytes() == data
    assert old.general is None
    assert schema > 1 or old.validation.lengths[0].other_lengths == "untried"
    raw = {**json.loads(data), "general": None}
    with pytest.raises(ManifestError, match=f"schema {schema} has no field general"):
        parse(canonical_json(raw))


def test_a_manifest_from_before_texts_keeps_its_bytes():
    data = (GOLDEN.parent / "manifest.3-without-text.golden.json").read_bytes()
    VALIDATOR.validate(json.loads(data))
    assert parse(data).text is None
    assert parse(data).to_bytes() == data


@pytest.mark.parametrize("side", ["truncation_side", "padding_side"])
def test_a_side_that_is_none_is_refused_by_schema_and_reader(side: str):
    raw = _raw()
    raw["text"][side] = "middle"
    assert not VALIDATOR.is_valid(raw)
    with pytest.raises(ManifestError, match=f"{side} expected one of"):
        parse(canonical_json(raw))


def test_a_limit_without_tokens_is_refused_by_schema_and_reader():
    raw = _raw()
    raw["text"]["max_tokens"] = 0
    assert not VALIDATOR.is_valid(raw)
    with pytest.raises(ManifestError, match="max_tokens expected at least 1"):
        parse(canonical_json(raw))


def test_the_golden_file_is_what_is_written():
    if os.environ.get("UPDATE_GOLDENS"):
        GOLDEN.write_bytes(_example().to_bytes())
    assert _example().to_bytes() == GOLDEN.read_bytes()


@pytest.mark.parametrize(
    "manifest",
    [
        _example(),
        _example(general=None),
        _example(text=None),
        _example(opens_with="torch>=2.6"),
        _example(generation=_GENERATION),
        _example(without_generation="do_sample: expected greedy or beam search"),
        _example(general=General(shortest=1, rows=8, tokens=None)),
        _example(license=None, options={}, tied_groups=(), outputs=()),
        _example(source="file:///dömain/模型", options={"a": 'quote " and \n line'}),
        _example(
            validation=dataclasses.replace(
                _example().validation,
                tolerance=Tolerance(atol=0, rtol=1),
                verdict="unvalidated-on-device",
            )
        ),
    ],
)
def test_what_is_written_reads_back_the_same(manifest: Manifest):
    data = manifest.to_bytes()
    assert parse(data) == manifest
    assert parse(data).to_bytes() == data


def test_a_manifest_says_how_it_generates_only_where_it_does():
    assert "generation" not in json.loads(_example().to_bytes())
    raw = json.loads(_example(generation=_GENERATION).to_bytes())
    assert raw["generation"]["verdict"]["beams"] == [1, 4]
    VALIDATOR.validate(raw)
    VALIDATOR.validate(json.loads(_example(without_generation="why").to_bytes()))
    raw["generation"]["num_beams"] = 0
    with pytest.raises(ManifestError, match="num_beams expected at least 1"):
        parse(canonical_json(raw))
    limited = _example(generation=_GENERATION).in_schema(2)
    assert limited.generation is None


@pytest.mark.parametrize("form", ["torch>=2", "torch==2.6", "torch>=2.6 ", "numpy>=2.0", ""])
def test_what_opens_a_bundle_has_one_form(form: str):
    raw = json.loads(_example(opens_with="torch>=2.6").to_bytes())
    VALIDATOR.validate(raw)
    raw["opens_with"] = form
    with pytest.raises(ManifestError, match=r"opens_with expected torch>=X\.Y"):
        parse(canonical_json(raw))
    assert not VALIDATOR.is_valid(raw)


def test_the_golden_file_reads_and_writes_back_to_its_own_bytes():
    data = GOLDEN.read_bytes()
    assert parse(data).to_bytes() == data
    assert parse(data).digest == _example().digest


def test_canonical_json_does_not_depend_on_insertion_order():
    assert canonical_json({"b": 1, "a": [1.5, "ü"]}) == '{"a":[1.5,"ü"],"b":1}\n'.encode()
    assert canonical_json({"a": [1.5, "ü"], "b": 1}) == canonical_json({"b": 1, "a": [1.5, "ü"]})


def test_another_manifest_has_another_digest():
    assert _example(recipe=2).digest != _example().digest


def test_the_schema_is_sound_and_accepts_the_golden_file():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(json.loads(GOLDEN.read_bytes()))


def test_the_schema_names_the_fields_of_the_dataclasses():
    shapes = {**SCHEMA["$defs"], "Manifest": SCHEMA}
    for name, shape in shapes.items():
        types = (manifest_types, verdict_types, text_spec, generation_types)
        known = {name: kind for module in types for name, kind in vars(module).items()}
        known["Manifest"] = Manifest
        kind: Any = known[name]
        fields = {field.name for field in dataclasses.fields(kind)}
        assert set(shape["properties"]) == fields, name
        optional = {OPTIONAL[1], "opens_with", "generation", "without_generation"}
        assert fields - set(shape["required"]) <= optional, name
        assert shape["additionalProperties"] is False
    hints = typing.get_type_hints(Manifest)
    assert {"Manifest", hints["variant"].__name__, hints["validation"].__name__} <= set(shapes)


@pytest.mark.parametrize(("path", "name"), [one for one in FIELDS if one != OPTIONAL])
def test_a_missing_field_is_refused_by_schema_and_reader(path: tuple[Any, ...], name: str):
    raw = _raw()
    del _at(raw, path)[name]
    assert not VALIDATOR.is_valid(raw)
    with pytest.raises(ManifestError, match=f"missing fields.*{name}"):
        parse(canonical_json(raw))


@pytest.mark.parametrize("path", sorted({path for path, _ in FIELDS}, key=str))
def test_an_unknown_field_is_refused_by_schema_and_reader(path: tuple[Any, ...]):
    raw = _raw()
    _at(raw, path)["planted"] = 1
    assert not VALIDATOR.is_valid(raw)
    with pytest.raises(ManifestError, match=r"unknown fields.*planted"):
        parse(canonical_json(raw))


@pytest.mark.parametrize(("path", "name"), FIELDS)
def test_a_field_of_the_wrong_type_is_refused_by_schema_and_reader(
    path: tuple[Any, ...], name: str
):
    raw = _raw()
    _at(raw, path)[name] = [{"planted": True}]
    assert not VALIDATOR.is_valid(raw)
    with pytest.raises(ManifestError):
        parse(canonical_json(raw))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 4}, "schema expected at most 3, got 4.*Upgrade"),
        ({"schema": 4, "reader": "0.9.0"}, "got 4. Upgrade tracefleet to 0.9.0 or later"),
        ({"schema": 4, "reader": "\x1b[2J"}, "got 4. Upgrade tracefleet to read it"),
        ({"recipe": True}, "recipe: expected int, got True"),
        ({"recipe": 1.0}, "recipe: expected int"),
        ({"lengths": [8, 4]}, r"lengths expected \(4, 8\)"),
        ({"lengths": [4, 4]}, "each length once"),
        ({"lengths": []}, "at least one"),
        ({"lengths": [0]}, "at least 1"),
        ({"key": "../../etc"}, "key expected 64 hex digits"),
        ({"variant": {"task": "../x", "backend": "jit", "dtype": "float32", "batch": 1}}, "task"),
        ({"variant": {"task": "x", "backend": "jit", "dtype": "float32", "batch": 0}}, "batch"),
        ({"license": 3}, "license"),
        ({"options": {"a": 1}}, r"options\.a: expected str"),
    ],
)
def test_nonsense_is_refused_with_its_field(change: dict[str, Any], message: str):
    with pytest.raises(ManifestError, match=message):
        parse(canonical_json({**_raw(), **change}))


@pytest.mark.parametrize(
    "data",
    [b"", b"not json", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"schema":1'],
    ids=["empty", "text", "list", "null", "bytes", "deep", "cut"],
)
def test_what_is_no_manifest_is_refused(data: bytes):
    with pytest.raises(ManifestError):
        parse(data)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_json_can_not_hold_are_refused(number: str):
    data = _example().to_bytes().replace(b'"rtol":1e-05', f'"rtol":{number}'.encode())
    with pytest.raises(ManifestError, match="rtol: expected a finite number"):
        parse(data)


BAD_PATHS = ["../x", "a/../b", "/etc/passwd", "a//b", "./a", "a/.", "a\\b", "", "a/", "a\0b", ".."]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_could_leave_the_folder_is_refused_by_schema_and_reader(path: str):
    raw = _raw()
    raw["files"][0]["path"] = path
    assert not VALIDATOR.is_valid(raw)
    with pytest.raises(ManifestError, match="path expected relative"):
        parse(canonical_json(raw))


@pytest.mark.parametrize("path", ["a", "a/b.json", "model/1/model.pt", ".hidden", "a..b", "…/x"])
def test_an_inner_path_is_accepted_by_schema_and_reader(path: str):
    raw = _raw()
    raw["files"] = [{**raw["files"][0], "path": path}]
    VALIDATOR.validate(raw)
    assert parse(canonical_json(raw)).files[0].path == check_relative(path) == path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "f" * 63}, "64 hex digits"),
        ({"sha256": "F" * 64}, "64 hex digits"),
        ({"size": -1}, "at least 0 bytes"),
    ],
)
def test_a_malformed_file_entry_is_refused_by_schema_and_reader(
    change: dict[str, Any], message: str
):
    raw = copy.deepcopy(_raw())
    raw["files"][0].update(change)
    assert not VALIDATOR.is_valid(raw)
    with pytest.raises(ManifestError, match=message):
        parse(canonical_json(raw))


def test_files_out_of_order_or_twice_are_refused():
    files = _example().files
    for wrong in (files[::-1], (files[0], files[0])):
        with pytest.raises(ManifestError, match="files expected sorted"):
            _example(files=wrong)


def test_the_bundle_is_the_one_archive_among_the_files():
    assert _example().bundle.path == "model/1/model.pt"
    with pytest.raises(ManifestError, match=r"expected one .*torchscript file, got 0"):
        _ = _example(files=(entry("a", b""),)).bundle


def test_no_variant_label_is_a_prefix_of_another_path():
    one, ten = Variant(task="fill-mask", batch=1), Variant(task="fill-mask", batch=10)
    assert one.label == "fill-mask.jit.float32.b1"
    assert not f"{ten.label}/".startswith(f"{one.label}/")


def test_an_unknown_verdict_is_refused():
    with pytest.raises(ManifestError, match="verdict expected"):
        dataclasses.replace(_example().validation, verdict="fine, trust me")
