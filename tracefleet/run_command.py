"""``tracefleet run``: answers to texts, or the outputs of a model for texts or ids."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from tracefleet.canonical import canonical_json
from tracefleet.manifest import Manifest
from tracefleet.printing import print_json
from tracefleet.published import load_manifest
from tracefleet.reader.model import Model
from tracefleet.reader.open import open_selected
from tracefleet.reader.predict import answers_texts
from tracefleet.reader.search import find_generation
from tracefleet.selecting import select_one
from tracefleet.text.tokenize import Row

DESCRIPTION = """\
Run one conversion on texts (with its own tokenizer) or on token ids.

Texts get the answers that people know from transformers' pipelines and sentence-transformers:
labels, vectors, entities, spans, filled masks; encoder-decoders translate or summarise. Lines of
standard input are texts too.
"""
EPILOG = """\
examples:
  tracefleet run ./store org/name --text "A sentence."
  cat reviews.txt | tracefleet run ./store org/name --json
  tracefleet run ./store org/reader --pair "Who wrote it?" "It was written by Ida Holm."
  tracefleet run ./store org/name --ids "101 2023 102"
"""
_STDIN = "-"
#: Lines of standard input that are answered together, so that the first answers show soon.
_LINES = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``run``."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        "--text",
        action="append",
        help="a text; repeat for more; - reads a text from each line of standard input",
    )
    rows.add_argument(
        "--pair",
        action="append",
        nargs=2,
        metavar=("FIRST", "SECOND"),
        help="a pair of texts, such as question and context; repeat for more",
    )
    rows.add_argument("--ids", action="append", help='token ids, "101 2023 102"; repeat for rows')
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long")
    parser.add_argument("--prompt-name", metavar="NAME", help="one of the checkpoint's prompts")
    parser.add_argument(
        "--top-k", type=_parse_count, metavar="N", help="the best N answers (default: the task's)"
    )
    parser.add_argument(
        "--raw", action="store_true", help="print the model's outputs and no answers"
    )
    parser.add_argument(
        "--beams", type=_parse_count, metavar="N", help="beams of generation (default: its own)"
    )
    parser.add_argument(
        "--new-tokens", type=_parse_count, metavar="N", help="most tokens of a generated answer"
    )
    parser.add_argument(
        "--first-token",
        metavar="TOKEN",
        help="token or id that answers begin with",
    )
    parser.add_argument("--device", help="device to run on, such as cuda (default: the CPU)")
    parser.add_argument(
        "--decoder-ids", action="append", help="decoder_input_ids, one for each row"
    )


def run_command(arguments: argparse.Namespace) -> int:
    """Answer texts, one line or one JSON line for each; or print the outputs for texts or ids."""
    texts = None if arguments.ids else _read_texts(arguments)
    store, selection = select_one(arguments)
    manifest = load_manifest(store, selection)
    model = open_selected(store, selection, device=arguments.device)
    is_raw = arguments.raw or arguments.decoder_ids
    search = _read_search(arguments, manifest)
    _refuse_idle(arguments, manifest, is_raw=bool(is_raw))
    if texts is None and manifest.generation is not None and not is_raw:
        _print_ids(arguments, manifest, _generate_ids(model, arguments, search))
    elif texts is None or is_raw or not answers_texts(manifest):
        _print_raw(arguments, manifest, _call(model, texts, arguments))
    else:
        ask = functools.partial(_ask, model, arguments, search)
        _answer(arguments, texts, ask)
    return 0


def _refuse_idle(arguments: argparse.Namespace, manifest: Manifest, *, is_raw: bool) -> None:
    """Refuse options that would have no effect."""
    generates = manifest.generation is not None and not is_raw
    texts = not arguments.ids and not is_raw
    if manifest.variant.task == "text2text-generation" and texts:
        find_generation(manifest)
    idle = []
    if arguments.ids:
        idle += ["truncate", "prompt_name"]
    if generates or is_raw or arguments.ids:
        idle.append("top_k")
    if is_raw:
        idle += ["beams", "new_tokens", "first_token"]
    given = [f"--{name.replace('_', '-')}" for name in idle if getattr(arguments, name)]
    if given:
        arguments.refuse(f"{', '.join(given)}: expected none with what is asked for here")


def _answer(
    arguments: argparse.Namespace, texts: Iterator[Row], ask: Callable[[list[Row]], Any]
) -> None:
    while page := list(islice(texts, _LINES)):
        for row, answer in zip(page, ask(page), strict=True):
            _print_answer(arguments, row, answer)
        sys.stdout.flush()


def _ask(model: Model, arguments: argparse.Namespace, search: dict[str, Any], rows: Any) -> Any:
    options = _read_options(arguments)
    if model.manifest.generation is not None:
        return model.generate(rows, **options, **search)
    if arguments.top_k is not None:
        options["top_k"] = arguments.top_k
    return model.predict(rows, **options)


def _generate_ids(model: Model, arguments: argparse.Namespace, search: dict[str, Any]) -> Any:
    ids = [_parse_ids(row) for row in arguments.ids]
    return model.generate(ids, **search)


def _read_search(arguments: argparse.Namespace, manifest: Manifest) -> dict[str, Any]:
    """Return what was said of a search; refuse it where nothing is generated."""
    first = arguments.first_token
    said = {
        "num_beams": arguments.beams,
        "max_new_tokens": arguments.new_tokens,
        "first_token": int(first) if first is not None and first.isdigit() else first,
    }
    search = {name: value for name, value in said.items() if value is not None}
    if search:
        find_generation(manifest)
    return search


def _read_texts(arguments: argparse.Namespace) -> Iterator[Row]:
    """Return the texts or pairs that were given, or the lines of a pipe."""
    if arguments.pair:
        return iter([(first, second) for first, second in arguments.pair])
    if arguments.text:
        return _expand(arguments.text)
    if sys.stdin is not None and not sys.stdin.isatty():
        texts = _expand([_STDIN])
        # A scheduler gives an empty input to a command whose options were forgotten.
        for first in texts:
            return chain([first], texts)
    arguments.refuse("expected --text, --pair, --ids or a pipe with texts; got none")
    raise AssertionError("refusing ends the process")


def _expand(given: Iterable[str]) -> Iterator[Row]:
    for text in given:
        if text == _STDIN:
            yield from (line.rstrip("\r\n") for line in sys.stdin)
        else:
            yield text


def _read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"truncate": arguments.truncate, "prompt_name": arguments.prompt_name}


def _call(
    model: Model, texts: Iterator[Row] | None, arguments: argparse.Namespace
) -> Mapping[str, Any]:
    named = {}
    if arguments.decoder_ids:
        named["decoder_input_ids"] = [_parse_ids(row) for row in arguments.decoder_ids]
    if texts is None:
        return model([_parse_ids(row) for row in arguments.ids], **named)
    return model(list(texts), **_read_options(arguments), **named)


def _print_answer(arguments: argparse.Namespace, row: Row, answer: Any) -> None:
    """Print one answer; a JSON line names its text, so that it can be joined with others."""
    if arguments.json:
        line = {"text": row if isinstance(row, str) else list(row), "answer": _to_plain(answer)}
        sys.stdout.write(canonical_json(line).decode())
        return
    print(_describe(answer))


def _to_plain(answer: Any) -> Any:
    return answer.tolist() if hasattr(answer, "tolist") else answer


def _describe(answer: Any) -> str:
    """Return an answer for people, on one line."""
    if isinstance(answer, str):
        return answer.replace("\n", " ")
    if hasattr(answer, "reshape"):
        return _describe_array(answer)
    if isinstance(answer, list):
        return "; ".join(map(_describe, answer)) or "nothing"
    shown = []
    for name, value in answer.items():
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        shown.append(text if name in ("label", "answer", "choice") else f"{name} {text}")
    return " ".join(shown)


def _print_raw(
    arguments: argparse.Namespace, manifest: Manifest, outputs: Mapping[str, Any]
) -> None:
    if not arguments.json:
        for name, value in outputs.items():
            print(f"{name} {_describe_array(value)}")
        return
    described = {}
    for name, value in outputs.items():
        shape, dtype = list(value.shape), str(value.dtype)
        described[name] = {"shape": shape, "dtype": dtype, "values": value.tolist()}
    print_json({"source": manifest.source, "key": manifest.key, "outputs": described})


def _print_ids(arguments: argparse.Namespace, manifest: Manifest, ids: Any) -> None:
    """Print generated ids, all of them: a line for each row."""
    if arguments.json:
        _print_raw(arguments, manifest, {"ids": ids})
        return
    for row in ids.tolist():
        print(*row)


def _describe_array(value: Any) -> str:
    shown = [f"{number:.6g}" for number in value.reshape(-1)[:6].tolist()]
    if value.size > len(shown):
        shown.append("…")
    return f"{tuple(value.shape)} {value.dtype}: {', '.join(shown)}"


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(
            f"ids: expected whole numbers such as '101 2023 102', got {text!r}"
        ) from None


def _parse_count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, got {text!r}")
    return int(text)
