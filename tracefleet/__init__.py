"""Validated TorchScript conversions of Hugging Face checkpoints, opened by name.

    import tracefleet

    model = tracefleet.open("file:///models", "hf://sentence-transformers/all-MiniLM-L6-v2")
    model.predict(["A sentence.", "Another one."]).shape    # (2, 384): what `encode` gives
    model("A sentence.")["sentence_embedding"].shape        # (1, 384): the model's own outputs
    model([[101, 7592, 102], [101, 7592, 2088, 999, 102]])  # ids: rows of any length
    model.lengths                                           # you never choose among them
    model.manifest.validation.verdict                       # 'validated'

``predict`` answers as transformers' pipelines do for the task: labels, entities, filled masks.
A store is a folder or ``s3://bucket/prefix``. A conversion holds one traced graph for each
standard length, with the weights once. ``open`` follows the channel (``latest``) to its manifest,
checks every file by sha256, and only then loads. ``load_manifest`` reads what a conversion is
without its weights, ``verify`` compares a published channel's digests,
``check`` runs a conversion's golden samples on this machine, ``pull`` copies a conversion to a
folder for C++ or Triton. On the command line: ``tracefleet --help``.

Everything that can go wrong is an `ArtifactError`, or a `ValueError` for a wrong input. Importing
this package imports nothing but the standard library; torch comes with the first ``open``.
"""

from importlib.metadata import PackageNotFoundError, version

from tracefleet.channel import find_variants
from tracefleet.check import CheckReport, OutputCheck, check
from tracefleet.errors import (
    AnswerTooLongError,
    ArtifactError,
    BackendUnavailableError,
    BenchError,
    DigestMismatchError,
    InputTooLongError,
    ManifestError,
    NoFormError,
    NoGenerationError,
    NoSamplesError,
    NoSuchVariantError,
    StoreError,
    StoreUnavailableError,
    TextRefusedError,
    WithdrawnError,
)
from tracefleet.manifest import Manifest, parse
from tracefleet.manifest_types import Variant
from tracefleet.published import find, select
from tracefleet.pull import pull
from tracefleet.reader.model import Model
from tracefleet.reader.open import load_manifest, open  # noqa: A004 - read as tracefleet.open
from tracefleet.reader.outputs import Outputs, Run
from tracefleet.reader.watch import Change, WatchedModel, watch
from tracefleet.store import ReadableStore, Store, open_store, open_writable
from tracefleet.store.folder import FileStore
from tracefleet.store.s3 import S3Store
from tracefleet.verify import FileCheck, verify

try:
    __version__ = version("tracefleet")
except PackageNotFoundError:  # a source tree on the path, as in the pipeline's image
    __version__ = "0+source"

__all__ = [
    "AnswerTooLongError",
    "ArtifactError",
    "BackendUnavailableError",
    "BenchError",
    "Change",
    "CheckReport",
    "DigestMismatchError",
    "FileCheck",
    "FileStore",
    "InputTooLongError",
    "Manifest",
    "ManifestError",
    "Model",
    "NoFormError",
    "NoGenerationError",
    "NoSamplesError",
    "NoSuchVariantError",
    "OutputCheck",
    "Outputs",
    "ReadableStore",
    "Run",
    "S3Store",
    "Store",
    "StoreError",
    "StoreUnavailableError",
    "TextRefusedError",
    "Variant",
    "WatchedModel",
    "WithdrawnError",
    "check",
    "find",
    "find_variants",
    "load_manifest",
    "open",
    "open_store",
    "open_writable",
    "parse",
    "pull",
    "select",
    "verify",
    "watch",
]


def __dir__() -> list[str]:
    """Return the public names alone: the modules behind them are nobody's business."""
    return [*__all__, "__doc__", "__version__"]
