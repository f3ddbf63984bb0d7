"""The untouched model of a checkpoint, as users of transformers load and call it."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracefleet.bench.cases import Feed
from tracefleet.bench.optional import import_optional
from tracefleet.errors import BenchError
from tracefleet.heads import AUTO_CLASSES
from tracefleet.manifest import Manifest

if TYPE_CHECKING:
    import torch

_POOLED = "sentence_embedding"
_POOLINGS = ("mean", "cls")

Tensors = dict[str, "torch.Tensor"]


@dataclass(frozen=True, kw_only=True)
class Eager:
    """A loaded model.

    Attributes:
        module: the ``PreTrainedModel``, in eval mode and float32.
        forward: runs a feed and returns the conversion's outputs; gradients are the caller's.
    """

    module: Any
    forward: Callable[[Feed], Tensors]


def find_checkpoint(manifest: Manifest, given: Path | None) -> Path:
    """Return the folder of the conversion's checkpoint; nothing is downloaded.

    Args:
        manifest: of the conversion.
        given: folder that was named for it.

    Raises:
        BenchError: it is not on this machine.
    """
    if given is not None:
        return given
    scheme, _, rest = manifest.source.partition("://")
    folder = Path(rest)
    if scheme == "hf":
        repository = rest.partition("@")[0].replace("/", "--")
        folder = _hub_cache() / f"models--{repository}" / "snapshots" / manifest.commit
    if scheme == "s3" or not (folder / "config.json").is_file():
        raise BenchError(
            f"{manifest.source}: its checkpoint is not on this machine; name a copy: "
            "--checkpoint FOLDER"
        )
    return folder


def _hub_cache() -> Path:
    """Return the folder that the hub's library keeps repositories in."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def load_eager(folder: Path, manifest: Manifest) -> Eager:
    """Load a checkpoint with transformers.

    Raises:
        BenchError: transformers is missing, or has no head for the task; its pooling is not known.
        Exception: whatever transformers raises for a checkpoint that it can't load.
    """
    transformers = import_optional("transformers")
    pool = None
    if manifest.variant.task == "sentence-similarity":
        pool = _read_pooling(folder)
    with _quietly(transformers):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = getattr(transformers, _choose_class(config, manifest))
        model = kind.from_pretrained(folder, config=config, local_files_only=True)
    # Since version 5 it is loaded in the checkpoint's own type, often bfloat16: slow on most CPUs.
    model = model.float().eval()
    return Eager(module=model, forward=_make_forward(model, manifest, pool))


def _choose_class(config: Any, manifest: Manifest) -> str:
    task = manifest.variant.task
    name = AUTO_CLASSES.get(task)
    if name is None:
        raise BenchError(f"task {task!r}: expected one of {', '.join(AUTO_CLASSES)}")
    pair = getattr(config, "is_encoder_decoder", False)
    decodes = any(spec.name == "decoder_input_ids" for spec in manifest.inputs)
    if name == "AutoModel" and pair and not decodes:  # sentence-t5 is an encoder alone
        return "AutoModelForTextEncoding"
    return name


def _make_forward(
    model: Any, manifest: Manifest, pool: Callable[[Any, Any], Any] | None
) -> Callable[[Feed], Tensors]:
    options: dict[str, Any] = {"return_dict": True}
    # A cache is no output of a conversion: filling one would be work that it does not do.
    if "use_cache" in inspect.signature(model.forward).parameters:
        options["use_cache"] = False

    def forward(feed: Feed) -> Tensors:
        outputs = model(**feed, **options)
        if pool is not None:
            return {_POOLED: pool(outputs[0], feed["attention_mask"])}
        return {spec.name: outputs[spec.name] for spec in manifest.outputs}

    return forward


def _read_pooling(folder: Path) -> Callable[[Any, Any], Any]:
    """Return what makes one vector of a row's, as the checkpoint's files for sentences say."""
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    kinds = [str(one.get("type")).rpartition(".")[2] for one in modules]
    mode = None
    if kinds[:2] == ["Transformer", "Pooling"] and kinds[2:] in ([], ["Normalize"]):
        path = folder / str(modules[1].get("path")) / "config.json"
        mode = _find_mode(json.loads(path.read_text("utf-8")))
    if mode not in _POOLINGS:
        raise BenchError(
            f"its sentences are made by {' → '.join(kinds)}, and transformers has no pooling; here "
            f"it is measured with {' or '.join(_POOLINGS)} (and Normalize) alone"
        )
    normalises = kinds[-1] == "Normalize"

    def pool(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        import torch

        vectors = tokens[:, 0]
        if mode == "mean":
            shares = mask.unsqueeze(-1).to(tokens.dtype)
            vectors = (tokens * shares).sum(1) / shares.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(vectors, dim=-1) if normalises else vectors

    return pool


def _find_mode(config: dict[str, Any]) -> str | None:
    """Return the one pooling that is switched on; before sentence-transformers 6 by its switch."""
    named = config.get("pooling_mode")
    if isinstance(named, str):
        return named
    switches = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    return switches.get(on[0]) if len(on) == 1 else None


@contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """Keep progress bars and notes of loading out of the figures."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
