"""The Prefect flow, on a real embedded server: names, states, retries, artifacts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness

import tracefleet
from flows import convert
from flows.convert_checkpoint import convert_checkpoint
from flows.engine import prefect_steps
from flows.engine.retries import is_transient, network_task
from tasks.errors import RequestError, UnsupportedCheckpointError
from tasks.request.conversion import make_request

pytestmark = [
    pytest.mark.prefect,
    # Third-party code on the way: Prefect's server and its dependencies warn about each other.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture(scope="module")
def _server() -> Iterator[None]:
    with (
        prefect_test_harness(server_startup_timeout=240),
        temporary_settings(
            # The heartbeat costs each sync flow a second; logs go to pytest, not to the API.
            {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_ENABLED: False}
        ),
    ):
        yield


def _request(folder, store, **fields) -> Any:
    return make_request(
        {
            "source": f"file://{folder}",
            "task": "feature-extraction",
            "lengths": [8, 16],
            "store": f"file://{store}",
            **fields,
        }
    )


@pytest.mark.usefixtures("_server")
def test_a_flow_run_publishes_and_shows_what_it_did(checkpoint, tmp_path):
    request = _request(checkpoint("bert"), tmp_path / "store")
    state = convert_checkpoint(request, return_state=True)
    assert state.is_completed()
    result = state.result()
    assert tracefleet.open(f"file://{tmp_path}/store", request.source).lengths == (8, 16)

    with get_client(sync_client=True) as client:
        assert state.state_details.flow_run_id is not None
        run = client.read_flow_run(state.state_details.flow_run_id)
        # A server records task runs from events, some time after they are over.
        for _ in range(60):
            names = {task_run.name for task_run in client.read_task_runs()}
            if "publish to latest" in names:
                break
            time.sleep(0.5)
        artifacts = client.request("POST", "/artifacts/filter", json={}).json()
    assert run.name == f"bert@{result.manifest.commit[:7]} jit feature-extraction"
    assert {"inspect", "trace", "reference", "validate", "publish to latest"} <= names
    (artifact,) = artifacts
    assert "| 16 |" in artifact["data"]
    assert result.report_url == f"file://{tmp_path}/store/reports/{run.id}/index.html"

    again = convert_checkpoint(request)
    assert again.fresh
    assert again.manifest == result.manifest


@pytest.mark.usefixtures("_server")
def test_a_refusal_fails_the_run_at_once_and_keeps_its_type(checkpoint, tmp_path):
    request = _request(checkpoint("bert"), tmp_path / "store", task="question-answering")
    state = convert_checkpoint(request, return_state=True)
    assert state.is_failed()
    with pytest.raises(UnsupportedCheckpointError, match="made for feature-extraction"):
        state.result()
    assert not (tmp_path / "store" / "conversions").exists()


@pytest.mark.usefixtures("_server")
def test_network_errors_are_tried_again_and_refusals_are_not(checkpoint, tmp_path, monkeypatch):
    calls: list[str] = []

    def flaky(error: Exception) -> Any:
        def resolve(source: str, **options: Any) -> Any:
            calls.append(source)
            if len(calls) < 3:
                raise error
            from tasks.fetch.checkpoint import resolve as real

            return real(source, **options)

        return resolve

    def quick(function: Any, **options: Any) -> Any:
        return network_task(function, **options).with_options(retry_delay_seconds=0)

    monkeypatch.setattr(prefect_steps, "network_task", quick)

    request = _request(checkpoint("bert"), tmp_path / "store")
    monkeypatch.setattr(convert, "resolve", flaky(ConnectionResetError("reset by peer")))
    assert convert_checkpoint(request, return_state=True).is_completed()
    assert len(calls) == 3

    calls.clear()
    monkeypatch.setattr(convert, "resolve", flaky(RequestError("no such repository")))
    assert convert_checkpoint(request, return_state=True).is_failed()
    assert len(calls) == 1


def test_only_foreign_errors_and_a_store_that_does_not_answer_are_transient():
    from prefect.states import Completed, Failed

    def failed(error: Exception) -> Any:
        return Failed(data=error)

    task: Any = None
    assert is_transient(task, task, failed(ConnectionError("x")))
    assert is_transient(task, task, failed(tracefleet.StoreUnavailableError("x")))
    assert not is_transient(task, task, failed(tracefleet.StoreError("x")))
    assert not is_transient(task, task, failed(RequestError("x")))
    assert not is_transient(
        task, task, failed(tracefleet.DigestMismatchError("f", expected="a", got="b"))
    )
    assert not is_transient(task, task, Completed(data=1))


def test_the_run_form_refuses_unknown_fields():
    schema = convert_checkpoint.parameters.model_dump()
    request = schema["definitions"]["ConversionRequest"]
    assert request["additionalProperties"] is False
    assert all("description" in field for field in request["properties"].values())
