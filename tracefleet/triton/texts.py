"""A model that is asked in texts, in front of the one that serves a conversion.

``<repository>/<name>-text``: a model of Triton's Python backend with the conversion's tokenizer and
the part of the reader that it needs (``front`` runs it). It asks the model ``<name>`` in the same
version, so that nobody's ids meet another version's weights while a channel moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tracefleet.errors import NoFormError
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import InputSpec
from tracefleet.reader.left_padding import MASK
from tracefleet.reader.predict import answers_texts
from tracefleet.store import ReadableStore
from tracefleet.text.tokenize import TOKENIZER
from tracefleet.triton.config import MAX_ROWS, Serving, describe
from tracefleet.triton.folders import CONFIG, copy_file, put, read_channels
from tracefleet.triton.front import ANSWER, PAIR, TEXT, TOKENS, VECTORS
from tracefleet.triton.repository import Model, check_model_name, find_version

SUFFIX = "-text"
_MARK = "text-channel"
#: Inputs that a tokenizer makes.
_MADE = ("input_ids", "token_type_ids")
#: Tasks whose answers need the position of each token in its text.
_POSITIONS = ("token-classification", "question-answering", "fill-mask")
_PACKAGE = Path(__file__).parent.parent
#: What of this package the model runs; a test requires all that it imports.
_MODULES = {
    ".": "canonical decode errors generation_types lengths manifest manifest_types opens_with "
    "verdict_types",
    "reader": "__init__ inputs left_padding outputs predict rows texts",
    "text": "__init__ entities files fill labels opening pieces rows spans spec tokenize",
    "triton": "__init__ calling config front",
}
_PROGRAM = '''"""Texts in front of a conversion; written by `tracefleet pull --as triton --text`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tracefleet.triton.front import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
'''


def check_text_form(model: Model) -> None:
    """Refuse a conversion that Triton can't be asked about in texts.

    Raises:
        NoFormError: it can't; the message has the reason.
    """
    obstacle = _find_obstacle(model.manifest)
    if obstacle is not None:
        raise NoFormError(
            f"{model.manifest.source}: no form for texts in Triton: {obstacle}. Pull it without "
            "--text and send ids."
        )


def check_text_names(models: Sequence[Model], repository: Path) -> None:
    """Refuse names that would be those of two models.

    Raises:
        NoFormError: a model is called as another one's front would be.
    """
    taken = {model.name for model in models} | set(read_channels(repository).values())
    for model in models:
        front = check_model_name(f"{model.name}{SUFFIX}")
        if front in taken:
            raise NoFormError(
                f"triton: expected {front} to be the model that is asked in texts, got another "
                "conversion of that name. Pull one of them by itself with --model-name."
            )


def _find_obstacle(manifest: Manifest) -> str | None:
    text, task = manifest.text, manifest.variant.task
    if text is None:
        return "it was published before conversions said what their texts need. Convert it again"
    if text.refused is not None:
        return text.refused
    if task == "multiple-choice":
        return "a request has no place for the choices"
    if task == "text2text-generation" or not answers_texts(manifest):
        return f"task {task} has no answers to texts there"
    if text.tokenizer is None and (text.pieces is None or task in _POSITIONS):
        return f"it was published without {TOKENIZER}, which tells where in a text a token is"
    for spec in manifest.inputs:
        if not _can_make(spec):
            return f"no tokenizer makes its input {spec.name}"
    return None


def _can_make(spec: InputSpec) -> bool:
    """Tell whether an input follows from a text, padding included."""
    if len(spec.axes) != 2 or spec.length_axis is None:
        return False
    if spec.name in _MADE:
        return spec.pad_value is not None
    return spec.name == MASK or spec.fill_value is not None


def add_text_model(
    store: ReadableStore, model: Model, repository: Path, serving: Serving
) -> list[Path]:
    """Write the model that is asked in texts; see ``add_model``.

    Returns:
        Its files beside the versions, and the version's program.

    Raises:
        NoFormError: the conversion can't be asked in texts.
        StoreError: another model has the name, or a file can't be written.
        DigestMismatchError: a file in the store is damaged.
    """
    check_text_form(model)
    version = find_version(model, repository / f"{model.name}{SUFFIX}", _MARK)
    texts = {_MARK: model.channel.encode(), CONFIG: _make_config(model, serving).encode()}

    def fill(folder: Path) -> None:
        for file in model.manifest.files:
            if file.path in _list_tokenizer(model.manifest):
                copy_file(store, model.selection, file, folder / file.path)
        _copy_code(folder)

    return [put(version, fill, texts) / "model.py", *(version.model / name for name in texts)]


def _list_tokenizer(manifest: Manifest) -> tuple[str, ...]:
    """Return the paths of the tokenizer's files."""
    pieces = None if manifest.text is None else manifest.text.pieces
    return (TOKENIZER,) if pieces is None else (pieces.model, pieces.vocabulary)


def _copy_code(folder: Path) -> None:
    (folder / "model.py").write_text(_PROGRAM)
    package = folder / _PACKAGE.name
    for part, names in _MODULES.items():
        (package / part).mkdir(parents=True, exist_ok=True)
        for name in names.split():
            path = Path(part, f"{name}.py")
            (package / path).write_bytes((_PACKAGE / path).read_bytes())
    (package / "__init__.py").write_text('"""What of the reader a model asked in texts runs."""\n')


def _make_config(model: Model, serving: Serving) -> str:
    """Return the configuration: of tokenizers there are as many as of the model behind."""
    text = "data_type: TYPE_STRING dims: [ 1 ]"
    lines = [f'name: "{model.name}{SUFFIX}"', 'backend: "python"', f"max_batch_size: {MAX_ROWS}"]
    lines.append(f'input [ {{ name: "{TEXT}" {text} }} ]')
    # A question has a context; of others a pair of texts is asked where the second is given.
    optional = "" if model.manifest.variant.task == "question-answering" else " optional: true"
    lines.append(f'input [ {{ name: "{PAIR}" {text}{optional} }} ]')
    lines += [f"output [ {{ {output} }} ]" for output in _describe_outputs(model.manifest)]
    lines.append(f"instance_group [ {{ kind: KIND_CPU count: {serving.instances} }} ]")
    lines.append(f'parameters {{ key: "bundle" value {{ string_value: "{model.name}" }} }}')
    return "\n".join(lines) + "\n"


def _describe_outputs(manifest: Manifest) -> list[str]:
    task = manifest.variant.task
    if task not in VECTORS:
        return [f'name: "{ANSWER}" data_type: TYPE_STRING dims: [ 1 ]']
    named = {spec.name: spec for spec in manifest.outputs}
    spec = named.get("sentence_embedding", manifest.outputs[0])
    found = [describe(spec)]
    if "sentence_embedding" not in named:
        found.append(f'name: "{TOKENS}" data_type: TYPE_INT64 dims: [ 1 ]')
    return found
