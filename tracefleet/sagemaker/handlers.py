"""What SageMaker's containers call: ``model_fn``, ``input_fn``, ``predict_fn`` and ``output_fn``.

``code/inference.py`` of the archive imports them. The toolkit ``sagemaker-inference`` hands its
context to a function that takes one more argument than it must; Hugging Face's container hands none
and makes a 400 of each exception. What a caller did wrong is passed on as a value, because the
toolkit's answer to an exception is the traceback.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from tracefleet.check import OTHER, check
from tracefleet.errors import BackendUnavailableError, NoGenerationError, NoSamplesError
from tracefleet.reader.model import Model
from tracefleet.reader.open import open as open_model
from tracefleet.sagemaker.requests import JSON, Request, answer, read_request, to_json

#: Device such as ``cuda``; unset: the CPU.
DEVICE = "TRACEFLEET_DEVICE"
_ACCEPTED = (JSON, "application/*", "*/*")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """What is wrong with a request.

    Attributes:
        status: HTTP status, 4xx.
        message: one sentence for the caller.
    """

    status: HTTPStatus
    message: str


def model_fn(model_dir: str, context: Any = None) -> Model:
    """Open the archive's conversion and run its golden samples, before the first request.

    Args:
        model_dir: where the archive was unpacked; it is a store of one conversion.
        context: the model server's; nothing of it is needed.

    Raises:
        BackendUnavailableError: this container's torch or tokenizers computes something else.
        ArtifactError: the conversion can't be opened; see `tracefleet.open`.
    """
    model = open_model(model_dir, device=os.environ.get(DEVICE))
    try:
        report = check(model)
    except NoSamplesError as error:
        logger.warning("nothing was checked: %s", error)
        return model
    if report.ok:
        return model
    wrong = [f"{one.sample} {one.output} {one.reason or one.error}" for one in report.outputs]
    wrong = [text for text, one in zip(wrong, report.outputs, strict=True) if not one.ok]
    wrong += [f"ids of {name}" for name, result in report.tokenizer if result == OTHER]
    raise BackendUnavailableError(
        f"{model.manifest.source}: expected the golden samples' results, got others: "
        f"{'; '.join(wrong[:5])}. Use a container with torch {model.manifest.toolchain.torch}, and "
        "the versions of code/requirements.txt."
    )


def input_fn(data: str | bytes, content_type: str | None, context: Any = None) -> Request | Refusal:
    """Return what a request asks for."""
    if content_type is not None and _bare(content_type) != JSON:
        message = f"Content-Type: expected {JSON}, got {content_type}"
        return Refusal(status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message=message)
    try:
        return read_request(data)
    except ValueError as error:
        return Refusal(status=HTTPStatus.BAD_REQUEST, message=str(error))


def predict_fn(request: Request | Refusal, model: Model, context: Any = None) -> Any:
    """Return the model's answer; one that the caller prevents is a refusal with its reason."""
    if isinstance(request, Refusal):
        return request
    try:
        return answer(model, request)
    except (ValueError, NoGenerationError) as error:
        return Refusal(status=HTTPStatus.BAD_REQUEST, message=str(error))


def output_fn(prediction: Any, accept: str | None, context: Any = None) -> str:
    """Return the answer as JSON, or ``{"error": …}`` with its status.

    Raises:
        ValueError: a refusal, where there is no context to tell a status.
    """
    kinds = {_bare(kind) for kind in (accept or JSON).split(",")}
    if not kinds & set(_ACCEPTED):
        message = f"Accept: expected {JSON}, got {accept}"
        prediction = Refusal(status=HTTPStatus.NOT_ACCEPTABLE, message=message)
    if not isinstance(prediction, Refusal):
        return to_json(prediction)
    if context is None:
        raise ValueError(prediction.message)
    status = prediction.status
    context.set_response_status(code=status.value, phrase=status.phrase)
    return to_json({"error": prediction.message})


def _bare(kind: str) -> str:
    """Return a media type without its parameters."""
    return kind.partition(";")[0].strip().lower()
