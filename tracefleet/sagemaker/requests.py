"""What a caller of a SageMaker endpoint may send, and what comes back.

Texts are asked for as Hugging Face's containers take them, ``{"inputs": …, "parameters": {…}}``;
ids and other tensors by the names of the model's inputs, ``{"input_ids": [[…]]}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

from tracefleet.reader.model import Model

JSON = "application/json"
#: What ``Model.predict`` takes beside texts, and what transformers' pipelines call it.
_OPTIONS: dict[str, tuple[type, ...]] = {
    "truncate": (bool,),
    "prompt": (str, NoneType),
    "prompt_name": (str, NoneType),
    "top_k": (int, NoneType),
    "aggregation": (str,),
    "choices": (list, NoneType),
}
_IN_JSON = {
    bool: "true or false",
    str: "a text",
    int: "a whole number",
    list: "a list of texts",
    NoneType: "null",
}
_THEIR_NAMES = {"truncation": "truncate", "aggregation_strategy": "aggregation"}
#: The two parts of a pair, as pipelines name them.
_PAIRS = (("question", "context"), ("text", "text_pair"))
#: A pipeline answers a single text of these tasks with a list of one.
_LISTED = ("text-classification", "text2text-generation")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that can be understood; whether the model can answer it is another question.

    Attributes:
        texts: a text, a pair, or a list of either; None: the tensors are given.
        tensors: nested lists by the names of the model's inputs.
        options: what ``Model.predict`` is asked for beside the texts.
    """

    texts: Any = None
    tensors: Mapping[str, Any]
    options: Mapping[str, Any]


def read_request(body: str | bytes) -> Request:
    """Return what a body of JSON asks for.

    Raises:
        ValueError: it is no JSON, no object, or asks for something that there is not.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"body: expected JSON, got: {error}") from error
    if not isinstance(given, dict) or not given:
        raise ValueError(
            f'body: expected an object such as {{"inputs": "a text"}}, got {_shorten(given)}'
        )
    if "inputs" not in given:
        return Request(tensors=given, options={})
    other = sorted(given.keys() - {"inputs", "parameters"})
    if other:
        raise ValueError(f"body: expected inputs and parameters, got {', '.join(other)} too")
    options = _read_options(given.get("parameters"))
    inputs = given["inputs"]
    if isinstance(inputs, dict) and _find_pair(inputs) is None:
        if options:
            raise ValueError("parameters: expected texts beside them, got tensors")
        return Request(tensors=inputs, options={})
    return Request(texts=_read_texts(inputs), tensors={}, options=options)


def _read_options(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ValueError(f"parameters: expected an object, got {_shorten(given)}")
    options: dict[str, Any] = {}
    for name, value in given.items():
        options[_THEIR_NAMES.get(str(name), str(name))] = value
    # An option that is ignored would be a wrong answer that nobody notices.
    unknown = sorted(options.keys() - _OPTIONS.keys())
    if unknown:
        known = ", ".join(_OPTIONS)
        raise ValueError(f"parameters: expected some of {known}, got {', '.join(unknown)}")
    for name, value in options.items():
        _check_option(name, value)
    return options


def _check_option(name: str, value: Any) -> None:
    if type(value) not in _OPTIONS[name]:
        kinds = " or ".join(_IN_JSON[kind] for kind in _OPTIONS[name])
        raise ValueError(f"{name}: expected {kinds}, got {_shorten(value)}")
    if isinstance(value, list) and not all(isinstance(one, str) for one in value):
        raise ValueError(f"{name}: expected texts, got {_shorten(value)}")


def _read_texts(inputs: Any) -> Any:
    """Return texts as the reader takes them: pairs are tuples."""
    if isinstance(inputs, list):
        return [_read_row(row) for row in inputs]
    return _read_row(inputs)


def _read_row(row: Any) -> Any:
    pair = _find_pair(row) if isinstance(row, dict) else row
    if pair is None or not isinstance(pair, str | tuple):
        raise ValueError(
            'inputs: expected texts, or pairs such as {"question": …, "context": …}, got '
            f"{_shorten(row)}"
        )
    return pair


def _find_pair(given: dict[str, Any]) -> tuple[str, str] | None:
    for first, second in _PAIRS:
        if given.keys() == {first, second}:
            pair = (given[first], given[second])
            if all(isinstance(part, str) for part in pair):
                return pair
            raise ValueError(f"inputs: expected two texts, {first} and {second}")
    return None


def answer(model: Model, request: Request) -> Any:
    """Return what a model answers, of types that JSON has, arrays aside.

    Raises:
        InputTooLongError: a text or row is too long.
        NoGenerationError: the conversion does not generate.
        ValueError: an input is missing, unknown, or not as the model takes it.
    """
    if request.texts is None:
        _check_tensors(model, request.tensors)
        outputs = model(**request.tensors)
        return {name: outputs[name] for name in model.output_names}
    task = model.manifest.variant.task
    found = model.predict(request.texts, **request.options)
    if task == "text2text-generation":
        found = _name_texts(found)
    return [found] if task in _LISTED and isinstance(found, dict) else found


def _check_tensors(model: Model, tensors: Mapping[str, Any]) -> None:
    """Refuse what is no input: ``model`` itself takes texts and options by such names too."""
    for name, value in tensors.items():
        if name not in model.input_names or not isinstance(value, list):
            expected = ", ".join(model.input_names)
            raise ValueError(
                f"body: expected inputs, or lists of some of {expected}, got {name}: "
                f"{_shorten(value)}"
            )


def _name_texts(found: Any) -> Any:
    if isinstance(found, str):
        return {"generated_text": found}
    return [{"generated_text": text} for text in found]


def to_json(value: Any) -> str:
    """Return an answer as JSON; a float32 is written so that it is read back as it was.

    Raises:
        ValueError: a number is NaN or infinite, which JSON has no form for.
    """
    return json.dumps(value, default=_to_list, ensure_ascii=False, allow_nan=False)


def _to_list(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"expected values that JSON has, got {type(value).__name__}")


def _shorten(given: Any) -> str:
    text = json.dumps(given, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"
