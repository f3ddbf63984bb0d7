"""How a conversion of a fleet is named, identified and told when it fails; no server."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from typing import Any

import pytest

from flows.engine.names import artifact_key, run_name
from flows.fan_out.assignment import Assignment
from flows.fan_out.convert_entries import StoppedError, convert_here
from flows.fan_out.rows import make_failed_row, make_invalid_row, make_planned_row, split_message
from flows.fan_out.sharing import MOST_BYTES, half_of, share
from tasks.plan.fleet import PlanRow
from tasks.request.conversion import make_request

COMMIT = "86b5e0934494bd15c9632b12f734a8a67f723594"


def assignment(source: str = "hf://google/bert-base", key: str | None = "k" * 64, **fields: Any):
    request = make_request({"source": source, "lengths": [8], "task": "fill-mask", **fields})
    row = PlanRow(
        name="entry",
        request=request,
        state="missing",
        why=("never published",),
        commit=COMMIT,
        task="fill-mask",
        key=key,
    )
    return Assignment(planned=row, fleet="0192-aaaa-bbbb")


def test_a_run_is_named_for_people():
    request = assignment().request
    assert run_name(request, COMMIT) == "bert-base@86b5e09 jit fill-mask"
    assert run_name(request) == "bert-base jit fill-mask"
    pinned = make_request({"source": f"hf://google/bert-base@{COMMIT}", "lengths": [8]})
    assert run_name(pinned) == "bert-base@86b5e09 jit"
    assert run_name(assignment("file:///models/bert").request) == "bert jit fill-mask"


def test_what_was_planned_is_what_a_run_is_started_with():
    assert assignment().pinned.revision == COMMIT
    branch = assignment("hf://google/bert-base@main").pinned
    assert (branch.source, branch.revision) == ("hf://google/bert-base", COMMIT)
    local = assignment("file:///models/bert").pinned
    assert (local.source, local.revision) == ("file:///models/bert", None)


def test_one_conversion_to_one_place_is_one_run_whatever_its_limits():
    one = assignment()
    assert one.identity == assignment(timeout_seconds=5, threads=1).identity
    assert one.tag == f"conversion:{one.identity[:16]}"
    assert one.fleet_tag == "fleet:bbbb"
    others = (
        assignment(key="l" * 64),
        assignment(key=None),
        assignment(channel="candidate"),
        assignment(store="file:///elsewhere"),
        assignment(batch=2),
        assignment(trust_remote_code=True),
    )
    assert len({one.identity, *(other.identity for other in others)}) == len(others) + 1


def test_nothing_is_begun_once_the_fleet_stops():
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(StoppedError, match="entry: not begun"):
        convert_here.fn(assignment(), stopping)  # without a server: it must not even ask


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        ("Flow run encountered an exception: TraceError: no: graph", "TraceError", "no: graph"),
        ("RunLostError: bert: Crashed: exit 9", "RunLostError", "bert: Crashed: exit 9"),
        (
            "Flow run encountered an exception: httpx.ConnectError: refused",
            "ConnectError",
            "refused",
        ),
        (
            "Process exited with status code: -9",
            "RunLostError",
            "Process exited with status code: -9",
        ),
    ],
)
def test_the_type_of_an_error_is_found_in_a_states_message(told: str, error: str, message: str):
    assert split_message(told) == (error, message)


def test_rows_of_what_did_not_work(tmp_path):
    one = assignment(store=f"file://{tmp_path}/store")
    told = ("NumericsMismatchError", "fill-mask:\n differs")
    row = make_failed_row(one, *told, run="run-1", url="http://ui/run-1")
    assert (row.ending, row.error, row.why) == (
        "failed",
        "NumericsMismatchError",
        "fill-mask: differs",
    )
    assert "report" in row.next_step
    assert row.report_url is None  # none was written
    (tmp_path / "store/reports/run-1").mkdir(parents=True)
    (tmp_path / "store/reports/run-1/index.html").write_text("x")
    assert make_failed_row(one, *told, run="run-1").report_url is not None
    assert make_failed_row(one, *told).report_url is None
    gone = assignment(store="s3://none/none")  # a link never costs a row
    assert make_failed_row(gone, *told, run="run-1").report_url is None
    assert make_planned_row(one.planned, "cancelled").conversion_url is None
    bad = PlanRow(
        name="entry",
        request=one.request,
        state="invalid",
        error="RequestError",
        message="no such folder",
    )
    assert make_invalid_row(bad).next_step == "Correct the entry in the fleet file."
    assert make_invalid_row(bad).variant == "?.jit.float32.b1"


def test_artifact_keys_are_what_prefect_takes():
    assert artifact_key("gc", "s3://Bucket/models") == "gc-s3-bucket-models"


def sized(*megabytes: int) -> list[Assignment]:
    """Make entries of checkpoints of these sizes."""
    made = []
    for number, size in enumerate(megabytes):
        one = assignment(key=f"{number:064}")
        planned = dataclasses.replace(one.planned, weight_bytes=size * 1_000_000)
        made.append(dataclasses.replace(one, planned=planned))
    return made


def sizes(batches: list[list[Assignment]]) -> list[list[int]]:
    return [[one.weight_bytes // 1_000_000 for one in batch] for batch in batches]


def test_conversions_are_dealt_evenly_and_longest_first():
    assert sizes(share(sized(100, 400, 100, 200), 2)) == [[200, 100, 100], [400]]
    assert sizes(share(sized(1, 2, 3), 8)) == [[3], [2], [1]]
    many = share(sized(*[0] * 40), 2)  # two batches would hold too many
    assert [len(batch) for batch in many] == [10, 10, 10, 10]
    assert [len(batch) for batch in share(sized(*[0] * 40), 32)] == [2] * 8 + [1] * 24
    assert share([], 2) == []


def test_what_is_too_large_for_company_is_alone():
    batches = share(sized(2500, 1900, 90, 90, 90), 1)
    assert [2500] in sizes(batches)
    for batch in batches:
        assert len(batch) == 1 or sum(one.weight_bytes for one in batch) < MOST_BYTES
    assert sorted(itertools.chain(*sizes(batches))) == [90, 90, 90, 1900, 2500]


def test_half_of_what_has_not_begun_is_worth_another_start_from_three_on():
    assert half_of([1, 2]) == []
    assert half_of([1, 2, 3]) == [3]
    assert half_of([1, 2, 3, 4, 5, 6]) == [4, 5, 6]
