"""Make a tiny random checkpoint for a model type and a task of the installed transformers.

The sweep runs these through the whole conversion, to find out which architectures convert and
which are refused. ``tasks.sweep.shrink`` makes the small config; this module builds the model,
draws weights with which its outputs depend on its inputs, runs eager, and saves.
"""

from __future__ import annotations

import difflib
import inspect
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import RequestError, first_line
from tasks.model.heads import SAMPLE_TASKS, count_choices, model_class
from tasks.model.versions import on_meta
from tasks.sweep.tokenizers import save_tokenizer
from tracefleet.heads import AUTO_CLASSES

if TYPE_CHECKING:
    import torch

#: Tasks whose models read token ids and whose head is transformers' own.
SWEPT_TASKS = tuple(
    task for task in AUTO_CLASSES if task not in (*SAMPLE_TASKS, "sentence-similarity")
)
_PAIR_TASKS = ("feature-extraction", "text2text-generation")
#: 20 MB of float32; a config with more could not be made tiny.
_MOST_PARAMETERS = 5_000_000
#: Weights that keep their own initialisation: with another, recurrent layers are not stable.
_KEPT_WEIGHTS = re.compile(
    r"A_log|dt_bias|dt_proj\.bias|time_(decay|first|mix)|[nN]orm[^.]*\.weight$"
)


class Untestable(Exception):  # noqa: N818 - a result of the sweep, not an error
    """Eager can't run the case from ids and mask; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One architecture to convert.

    Attributes:
        model_type: Model type of the config, such as ``bert``.
        task: Key of ``tracefleet.heads.AUTO_CLASSES``.
    """

    model_type: str
    task: str

    @property
    def name(self) -> str:
        """Model type and task, such as ``bert/fill-mask``."""
        return f"{self.model_type}/{self.task}"


def list_cases(types: Iterable[str] | None = None) -> tuple[Case, ...]:
    """List every (model type, task) that has a head in the installed transformers, sorted.

    Args:
        types: Model types to keep; default: all of them.

    Raises:
        RequestError: no swept task has a head for a type.
    """
    import transformers

    # The auto classes map names to names: nothing of a model is imported.
    found = {
        (model_type, task)
        for task in SWEPT_TASKS
        for model_type in getattr(transformers, AUTO_CLASSES[task])._model_mapping._model_mapping
    }
    known = {model_type for model_type, _ in found}
    wanted = known if types is None else set(types)
    for model_type in sorted(wanted - known):
        raise RequestError(_describe_unknown_type(model_type, known))
    cases = []
    for model_type, task in sorted(found):
        if model_type in wanted:
            cases.append(Case(model_type=model_type, task=task))
    return tuple(cases)


def build(case: Case, folder: Path) -> Path:
    """Save the case's tiny checkpoint (config, safetensors, tokenizer) in ``folder`` and return it.

    A case makes the same bytes on every call.

    Raises:
        Untestable: eager can't run it from ids and mask alone; nothing was saved.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_derive_seed(case))
        try:
            model = _build_model(case)
            _check_runs(model, case)
        except Untestable:
            raise
        except Exception as error:  # every architecture refuses with errors of its own
            cause = error.__cause__ or error  # validators wrap the error that has the reason
            raise Untestable(f"{type(cause).__name__}: {first_line(cause)}") from error
    if model.config.model_type != case.model_type:
        raise Untestable(f"its head is that of {model.config.model_type}, a type of its own")
    model.save_pretrained(folder)
    inputs = inspect.signature(model.forward).parameters
    save_tokenizer(case.model_type, model.config, folder, inputs)
    return folder


def _describe_unknown_type(model_type: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(model_type, sorted(known), n=5, cutoff=0.5)
    return (
        "types: expected model types with a text task in the installed transformers, got "
        f"{model_type!r}. " + (f"Did you mean {', '.join(close)}?" if close else "Check the name.")
    )


def _derive_seed(case: Case) -> int:
    return zlib.crc32(case.name.encode())  # hash() differs from process to process


def _build_model(case: Case) -> Any:
    from tasks.sweep.shrink import make_tiny_config

    config = make_tiny_config(case.model_type, case.task)
    kind = model_class(config, case.task)
    if kind.config_class is config.sub_configs.get("text_config"):
        config = config.text_config  # as the auto classes do for the language model of a composite
    accepted = inspect.signature(kind.forward).parameters
    if "input_ids" not in accepted:
        raise Untestable(
            f"forward() reads {next(iter(list(accepted)[1:]), 'nothing')}, no input_ids"
        )
    _check_size(kind, config)
    model = kind(config).eval()
    _draw_weights(model, _derive_seed(case))
    return model


def _check_size(kind: Any, config: Any) -> None:
    """Refuse a model that is still large before its weights take memory."""
    try:
        with on_meta():
            count = sum(parameter.numel() for parameter in kind(config).parameters())
    except Exception:  # some compute while they are built; those are built for real
        return
    if count > _MOST_PARAMETERS:
        raise Untestable(f"{count} parameters: the config can't be made tiny")


def _draw_weights(model: Any, seed: int) -> None:
    """Draw weights that make activations of order one."""
    import torch

    # With the library's standard deviation of 0.02, outputs hardly depend on inputs.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = _choose_scale(name, parameter)
            if scale is not None:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                # Training keeps it zero, and transformers sets Funnel's to zero when it loads.
                module.weight[module.padding_idx] = 0.0


def _choose_scale(name: str, parameter: torch.Tensor) -> float | None:
    if not parameter.is_floating_point() or _KEPT_WEIGHTS.search(name):
        return None
    if parameter.dim() > 1:
        fan_in = parameter[0].numel() if "conv" in name else parameter.shape[-1]
        return float(max(fan_in, 1) ** -0.5)
    return 0.1 if "bias" in name else None


def _check_runs(model: Any, case: Case) -> None:
    """Run eager on two inputs: the outputs must be finite and must differ."""
    import torch

    with torch.no_grad():
        first = _find_output(model(**_draw_inputs(model, case, seed=0)))
        second = _find_output(model(**_draw_inputs(model, case, seed=1)))
    if not bool(torch.isfinite(first).all() and torch.isfinite(second).all()):
        raise Untestable("NaN or infinity in eager's output")
    if first.shape == second.shape and torch.equal(first, second):
        raise Untestable("eager's output does not depend on the ids")


def _draw_inputs(model: Any, case: Case, seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    choices = count_choices(case.task)
    shape = (2, 12) if choices is None else (2, choices, 12)

    def draw() -> torch.Tensor:
        return torch.randint(100, 190, shape, generator=generator)

    made: dict[str, Any] = {"input_ids": draw(), "attention_mask": torch.ones(shape).long()}
    if model.config.is_encoder_decoder:
        eos = getattr(model.config, "eos_token_id", None)
        if eos is not None:  # BART's classifier counts the end tokens
            made["input_ids"][..., -1] = eos
        if case.task in _PAIR_TASKS:
            made |= {
                "decoder_input_ids": draw(),
                "decoder_attention_mask": torch.ones(shape).long(),
            }
    boxes = torch.zeros(*shape, 4)
    made["bbox"] = boxes if hasattr(model.config, "bbox_scale") else boxes.long()
    made["use_cache"] = False
    accepted = inspect.signature(model.forward).parameters
    return {name: value for name, value in made.items() if name in accepted}


def _find_output(outputs: Any) -> torch.Tensor:
    import torch

    values = outputs.to_tuple() if hasattr(outputs, "to_tuple") else outputs
    for value in values if isinstance(values, tuple) else (values,):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value
    raise Untestable(f"no floating-point tensor in {type(outputs).__name__}")
