"""What Triton's Python backend runs in front of a conversion: texts in, answers out.

Texts become ids, the model that serves the bundle runs them, and its outputs become answers, by the
reader's own code, which lies beside this module in the model's version. It needs ``tokenizers``
(or ``sentencepiece``, where the conversion's tokenizer is one) and NumPy, no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tracefleet.errors import ArtifactError
from tracefleet.manifest import parse
from tracefleet.reader.predict import Asked, predict
from tracefleet.reader.texts import Texts
from tracefleet.text.files import SENTENCE_SIMILARITY
from tracefleet.text.tokenize import Row
from tracefleet.triton.calling import Bundle, ServerError

#: Names of a request's tensors.
TEXT, PAIR, ANSWER, TOKENS = "text", "pair", "answer", "tokens"
VECTORS = (SENTENCE_SIMILARITY, "feature-extraction")
#: A request's parameters and their types; see ``Model.predict``.
_PARAMETERS = {
    "truncate": bool,
    "prompt": str,
    "prompt_name": str,
    "top_k": int,
    "aggregation": str,
}


class TritonPythonModel:
    """The model, as the Python backend knows it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the conversion that lies beside this version."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"])
        manifest = parse((folder / "manifest.json").read_bytes())
        bundle = config["parameters"]["bundle"]["string_value"]
        self._bundle = Bundle(manifest, bundle, int(args["model_version"]))
        self._texts = Texts(manifest, lambda file: (folder / file.path).read_bytes())
        # A tokenizer that can't be opened is told now, not to the first caller.
        self._opened = self._texts.tokenizer

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request, or refuse it with a sentence."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        import triton_python_backend_utils as triton

        try:
            return triton.InferenceResponse(output_tensors=self._answer(request))
        except (ArtifactError, ValueError) as error:
            refusal = triton.TritonError(str(error), triton.TritonError.INVALID_ARG)
        except ServerError as error:
            refusal = triton.TritonError(str(error), triton.TritonError.UNAVAILABLE)
        return triton.InferenceResponse(error=refusal)

    def _answer(self, request: Any) -> list[Any]:
        rows = _read_rows(_read_texts(request, TEXT), _read_texts(request, PAIR))
        answers = predict(self._bundle, self._texts, rows, _read_parameters(request.parameters()))
        manifest = self._bundle.manifest
        if manifest.variant.task == SENTENCE_SIMILARITY:
            return [_make_tensor("sentence_embedding", answers)]
        if manifest.variant.task in VECTORS:
            return _stack(manifest.outputs[0].name, answers)
        return [_make_tensor(ANSWER, _write_answers(answers))]


def _read_texts(request: Any, name: str) -> list[str] | None:
    import triton_python_backend_utils as triton

    tensor = triton.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    try:
        return [value.decode() for value in tensor.as_numpy().flatten().tolist()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: expected text in UTF-8, got {error}") from error


def _read_rows(texts: list[str] | None, pairs: list[str] | None) -> list[Row]:
    if pairs is None:
        return list(texts or [])
    return list(zip(texts or [], pairs, strict=True))


def _read_parameters(text: str) -> Asked:
    """Return what a request's parameters ask for.

    Raises:
        ValueError: one is not known, or of another type.
    """
    given = json.loads(text or "{}")
    for name, value in given.items():
        kind = _PARAMETERS.get(name)
        if kind is None:
            raise ValueError(f"parameters: expected some of {sorted(_PARAMETERS)}, got {name!r}")
        if type(value) is not kind:
            raise ValueError(f"parameters: {name} expected a {kind.__name__}, got {value!r}")
    # Too long a text is cut: a server's callers have no reader to do it for them.
    return Asked(**{"truncate": True, **given})


def _write_answers(answers: Sequence[Any]) -> Any:
    import numpy as np

    texts = [json.dumps(answer, ensure_ascii=False).encode() for answer in answers]
    return np.array(texts, dtype=object).reshape(-1, 1)


def _stack(name: str, answers: Sequence[Any]) -> list[Any]:
    """Return arrays of several lengths as one that ends in zeros, and their lengths."""
    import numpy as np

    sizes = [len(answer) for answer in answers]
    stacked = np.zeros((len(answers), max(sizes), *answers[0].shape[1:]), answers[0].dtype)
    for place, answer in enumerate(answers):
        stacked[place, : sizes[place]] = answer
    counted = np.array(sizes, dtype=np.int64).reshape(-1, 1)
    return [_make_tensor(name, stacked), _make_tensor(TOKENS, counted)]


def _make_tensor(name: str, array: Any) -> Any:
    import numpy as np
    import triton_python_backend_utils as triton

    return triton.Tensor(name, np.ascontiguousarray(array))
