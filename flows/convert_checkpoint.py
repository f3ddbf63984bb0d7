"""The Prefect flow of one conversion: the way through, with its steps as task runs."""

from __future__ import annotations

from typing import cast

from prefect import flow
from prefect.context import TagsContext
from prefect.runtime import flow_run

from flows.convert import convert
from flows.engine import settings
from flows.engine.cancelled import RunCancelledError, end_cancelled
from flows.engine.failures import telling_failures
from flows.engine.names import run_name
from flows.engine.prefect_steps import PrefectSteps
from flows.engine.record import Conversion
from flows.engine.release import RELEASE
from tasks.errors import RequestError
from tasks.request.conversion import ConversionRequest, make_request


def _run_name() -> str:
    parameters = flow_run.parameters
    request = ConversionRequest.model_validate(parameters["request"])
    return run_name(with_backend(request, parameters.get("backend")))


@flow(name="convert-checkpoint", flow_run_name=_run_name, version=RELEASE, validate_parameters=True)
def convert_checkpoint(request: ConversionRequest, backend: str | None = None) -> Conversion:
    """Fetch, untie, trace, validate and publish one checkpoint; nothing wrong is ever published.

    Args:
        request: What to convert, and where to.
        backend: The one that this deployment's workers have; set by the deployment. A request that
            names another is refused, one that names none gets it.

    Returns:
        What came of it, with the conversion's URL and manifest.
    """
    settings.show_progress()
    with telling_failures():
        request = with_backend(request, backend)
        steps = PrefectSteps(limits=request.limits, run_id=str(flow_run.id), request=request)
        try:
            # Tags are this run's: each would cost every task a request for a limit of that name.
            with TagsContext(current_tags=set()):
                return convert(request, steps)
        except RunCancelledError as error:
            return cast("Conversion", end_cancelled(error))


def with_backend(request: ConversionRequest, backend: str | None) -> ConversionRequest:
    """Return the request for a deployment's backend.

    Raises:
        RequestError: it names another one.
    """
    if backend in (None, request.backend):
        return request
    if "backend" in request.model_fields_set:
        raise RequestError(
            f"backend: expected {backend} of this deployment, got {request.backend}. Run the "
            f"deployment convert-checkpoint/{request.backend}, or leave the backend out."
        )
    return make_request({**request.model_dump(exclude_unset=True), "backend": backend})
