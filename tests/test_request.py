"""Requests: nonsense is refused with the field's name, all of it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import RequestError
from tasks.request import names
from tasks.request.conversion import make_request

GOOD = {"source": "hf://org/name", "task": "fill-mask", "lengths": [32, 8]}


def test_a_good_request_is_normalised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = make_request(GOOD)
    assert request.lengths == (8, 32)
    assert request.variant.label == "fill-mask.jit.float32.b1"
    for folder in ("file://./x", "./x/", Path("x")):
        assert make_request({**GOOD, "source": folder}).source == f"file://{tmp_path}/x"
    assert make_request({**GOOD, "source": "org/name"}) == make_request(GOOD)
    (tmp_path / "org/name").mkdir(parents=True)
    here = make_request({**GOOD, "source": "org/name"})
    assert here.source == f"file://{tmp_path}/org/name", "the folder at hand, where there is one"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": "ftp://host/x"}, "source: .*unknown scheme 'ftp'"),
        ({"source": "org/name/more"}, "source: .*no name that the hub can have"),
        ({"source": ""}, "source: .*got '', which is no folder"),
        ({"source": 7}, "source: expected text, got 7"),
        ({"task": "telepathy"}, "task: expected one of .*telepathy"),
        ({"backend": "tpu"}, "backend: expected one of .*tpu"),
        ({"lengths": []}, "lengths: .*at least one"),
        ({"lengths": [0]}, "lengths: .*at least 1, got 0"),
        ({"lengths": [-4]}, "lengths: .*at least 1, got -4"),
        ({"lengths": [8, 8]}, "lengths: .*more than once"),
        ({"lengths": [8.5]}, "lengths"),
        ({"dtype": "float64"}, "dtype"),
        ({"batch": 0}, "batch"),
        ({"channel": "Latest/../x"}, "channel"),
        ({"rtol": 0.5}, "rtol: expected at most 0.0001"),
        ({"rtol": 0.5}, "Set accept_tolerance_risk"),
        ({"rtol": -1}, "rtol"),
        ({"rtol": 1.0, "accept_tolerance_risk": True}, "rtol"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"memory_limit_mb": 0}, "memory_limit_mb"),
        ({"lenghts": [8]}, "lenghts"),
    ],
)
def test_nonsense_is_refused_by_field(change, says):
    with pytest.raises(RequestError, match=says):
        make_request({**GOOD, **change})


def test_a_tolerance_over_its_ceiling_needs_somebody_who_accepts_the_risk():
    within = make_request({**GOOD, "rtol": 5e-5, "accept_tolerance_risk": True})
    assert within.identity_options == {"rtol": "5e-05"}, "nothing was risked"
    loose = make_request({**GOOD, "rtol": 0.01, "accept_tolerance_risk": True})
    assert loose.tolerance.rtol == 0.01
    assert loose.identity_options == {"rtol": "0.01", "accept_tolerance_risk": "true"}


def test_a_request_without_a_task_has_no_variant_yet():
    request = make_request({name: value for name, value in GOOD.items() if name != "task"})
    assert request.task is None
    with pytest.raises(RequestError, match="task: expected one"):
        _ = request.variant


def test_all_mistakes_are_reported_together():
    with pytest.raises(RequestError) as caught:
        make_request({"source": "x y", "task": "y", "lengths": [0], "batch": 0, "rtol": 0.5})
    lines = str(caught.value).splitlines()
    assert {line.split(":")[0] for line in lines} == {"source", "task", "lengths", "batch", "rtol"}
    assert all(": expected " in line and ", got " in line.replace(";", ",") for line in lines)


def test_an_unknown_field_says_what_was_meant():
    with pytest.raises(RequestError, match=r"lenghts: expected .*did you mean 'lengths'"):
        make_request({**GOOD, "lenghts": [8]})
    with pytest.raises(RequestError, match=r"colour: expected .*it takes source, revision"):
        make_request({**GOOD, "colour": "red"})


def test_a_request_survives_the_way_through_prefect():
    request = make_request(GOOD)
    assert type(request).model_validate(request.model_dump(mode="json")) == request


def test_every_field_is_described():
    schema = type(make_request(GOOD)).model_json_schema()
    assert all(field.get("description") for field in schema["properties"].values())
    positions = [field["position"] for field in schema["properties"].values()]
    assert positions == list(range(len(positions)))


@pytest.mark.parametrize(
    ("field", "written", "meant"),
    [
        ("dtype", "fp16", "float16"),
        ("dtype", "bf16", "bfloat16"),
        ("task", "sentiment-analysis", "text-classification"),
        ("task", "ner", "token-classification"),
        ("task", "embeddings", "sentence-similarity"),
    ],
)
def test_names_are_read_as_people_write_them_and_a_line_says_so(field, written, meant, caplog):
    names._tell.cache_clear()
    caplog.set_level("INFO", "tasks.request.names")
    fields = {"source": "hf://org/name", "lengths": [8], field: written}
    assert getattr(make_request(fields), field) == meant
    make_request(fields)
    assert [record.message for record in caplog.records] == [f"{field} {written}: read as {meant}"]
    assert make_request({**fields, field: meant}) == make_request(fields)


@pytest.mark.parametrize(("field", "near"), [("task", "fill-msk"), ("dtype", "float61")])
def test_a_misspelled_name_is_answered_with_the_one_that_is_like_it(field, near):
    fields = {"source": "hf://org/name", "lengths": [8], field: near}
    with pytest.raises(RequestError, match=rf"^{field}: expected one of .*; did you mean"):
        make_request(fields)


def test_a_store_in_the_home_folder_is_there(monkeypatch, tmp_path):
    from tracefleet.store import open_store

    monkeypatch.setenv("HOME", str(tmp_path))
    request = make_request({"source": "hf://org/name", "lengths": [8], "store": "~/models"})
    assert open_store(request.store).url == f"file://{tmp_path}/models"
