"""Make a checkpoint's real inputs once, and read them where the probes run."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.child_main import report_progress
from tasks.model.facts import LoadOptions, ModelFacts
from tasks.model.heads import SAMPLE_TASKS
from tasks.samples.errors import NoSamples
from tasks.samples.processed import process_media
from tasks.samples.text_spec import describe_text
from tasks.samples.texts import Text
from tasks.samples.tokenized import find_tokenized, tokenize_texts
from tasks.samples.tokenizer_file import FILE, read_from
from tracefleet.text.spec import TextSpec

if TYPE_CHECKING:
    from tasks.model.feeds import Feed


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Real inputs of one checkpoint, in a file of this machine.

    Attributes:
        path: Safetensors with a tensor for each name and input; None: there are none.
        texts: Name of each sample, with its text; a photograph or sound has an empty one.
        tokenized: Names of those whose ids the published tokenizer makes by itself.
        cut: Names of those among them that were cut to a number of tokens.
        missing: Why there are none; None: there are some.
        text: What the manifest says about texts; None: the inputs are none.
        tokenizer: ``tokenizer.json`` that was made for consumers; None: the checkpoint has its own,
            or none can be made.
    """

    path: Path | None = None
    texts: tuple[Text, ...] = ()
    tokenized: frozenset[str] = frozenset()
    cut: frozenset[str] = frozenset()
    missing: str | None = None
    # Prompts are a dict, and samples are the key of a cache.
    text: TextSpec | None = field(default=None, hash=False)
    tokenizer: Path | None = None


NO_SAMPLES = Samples()


def make_samples(
    folder: Path, options: LoadOptions, facts: ModelFacts, lengths: tuple[int, ...], path: Path
) -> Samples:
    """Put texts, pictures and sounds through the checkpoint's own files; a child's whole job.

    Args:
        folder: Folder of the checkpoint.
        options: Task, and whether the checkpoint's code may run.
        facts: Facts of the model.
        lengths: Standard lengths, ascending.
        path: File to write.
    """
    from safetensors.torch import save_file

    report_progress("real inputs")
    is_text, written = options.task not in SAMPLE_TASKS, path.with_name(FILE)
    spec = describe_text(folder, options, lengths, written) if is_text else None
    is_right = spec is not None and spec.refused is None and written.is_file()
    known = Samples(text=spec, tokenizer=written if is_right else None)
    try:
        made = list(_make_all(folder, options, facts, lengths))
    except NoSamples as found:
        return replace(known, missing=found.reason)
    tensors = {}
    for text, feed in made:
        for name, tensor in feed.items():
            tensors[f"{text.name}/{name}"] = tensor.contiguous()
    save_file(tensors, path)
    known = replace(known, path=path, texts=tuple(text for text, _ in made))
    if spec is None:
        return known
    tokenized, cut = find_tokenized(spec, read_from(folder, written), made)
    return replace(known, tokenized=tokenized, cut=cut)


def _make_all(
    folder: Path, options: LoadOptions, facts: ModelFacts, lengths: tuple[int, ...]
) -> Iterable[tuple[Text, Feed]]:
    if options.task not in SAMPLE_TASKS:
        return tokenize_texts(folder, options, facts, lengths)
    feeds = process_media(folder, facts, lengths, options.trust_remote_code)
    return [(Text(name=name, text=""), feed) for name, feed in feeds.items()]


@functools.lru_cache(maxsize=2)
def read_feeds(samples: Samples, inputs: tuple[str, ...]) -> dict[str, Feed]:
    """Return the feed of each sample by its name, with its inputs in this order."""
    if samples.path is None:
        return {}
    from safetensors.torch import load_file

    tensors = load_file(samples.path)
    feeds = {}
    for text in samples.texts:
        feeds[text.name] = {name: tensors[f"{text.name}/{name}"] for name in inputs}
    return feeds
