"""Requests and fleet files: nonsense is refused with the field's name, all of it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.request import FleetSpec, make_request, read_fleet
from tasks.errors import RequestError

GOOD = {"source": "hf://org/name", "task": "fill-mask", "lengths": [32, 8]}


def test_a_good_request_is_normalised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = make_request(GOOD)
    assert request.lengths == (8, 32)
    assert request.variant.label == "fill-mask.jit.float32.b1"
    assert make_request({**GOOD, "source": "file://./x"}).source == f"file://{tmp_path}/x"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": "ftp://host/x"}, "source: .*unknown scheme 'ftp'"),
        ({"source": "org/name"}, "source: .*no scheme"),
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


def test_every_mistake_is_told_at_once():
    with pytest.raises(RequestError) as caught:
        make_request({"source": "x", "task": "y", "lengths": [0], "batch": 0})
    assert {line.split(":")[0] for line in str(caught.value).splitlines()} == {
        "source",
        "task",
        "lengths",
        "batch",
    }


def test_a_request_survives_the_way_through_prefect():
    request = make_request(GOOD)
    assert type(request).model_validate(request.model_dump(mode="json")) == request


def test_every_field_is_described():
    schema = type(make_request(GOOD)).model_json_schema()
    assert all(field.get("description") for field in schema["properties"].values())
    positions = [field["position"] for field in schema["properties"].values()]
    assert positions == sorted(positions)


def test_the_example_fleet_is_valid():
    spec = read_fleet(Path(__file__).parent.parent / "examples" / "fleet.yaml")
    requests = spec.requests()
    assert set(requests) == {"minilm", "bert-fill-mask", "sentiment", "sentiment-half"}
    assert requests["sentiment"].batch == 8
    assert requests["minilm"].lengths == (32, 64, 128, 256)


def test_wrong_entries_are_named_all_of_them():
    spec = FleetSpec(
        defaults={"task": "fill-mask", "lengths": [8]},
        entries={
            "good": {"source": "hf://a/b"},
            "typo": {"source": "hf://a/b", "tsk": "x"},
            "short": {"source": "hf://a/b", "lengths": [0]},
        },
    )
    with pytest.raises(RequestError) as caught:
        spec.requests()
    assert "typo: tsk" in str(caught.value)
    assert "short: lengths" in str(caught.value)
    assert "good" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("entries: [", "YAML"),
        ("entries: {}", "entries"),
        ("{}", "entries"),
        ("entries: {a: {}}\nextra: 1", "extra"),
        ("- 1", "fleet"),
    ],
)
def test_a_file_that_is_no_fleet_is_refused(text, says, tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=says):
        read_fleet(path)


def test_a_missing_fleet_file_is_refused(tmp_path):
    with pytest.raises(RequestError, match="No such file"):
        read_fleet(tmp_path / "none.yaml")
