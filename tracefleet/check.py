"""Run a conversion's golden samples on this machine: does it compute here what was proved there?

``verify`` compares digests, ``check`` runs the golden samples, ``validate`` (the pipeline's) runs
the whole gate. Called by ``tracefleet check`` and by services that test themselves as they start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracefleet.errors import NoSamplesError
from tracefleet.golden import GoldenOutput, GoldenSample, unpack
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import FileEntry
from tracefleet.reader.model import Model
from tracefleet.text import encode
from tracefleet.text.files import ReadFile
from tracefleet.text.opening import open_tokenizer
from tracefleet.text.spec import TextSpec

if TYPE_CHECKING:
    import torch

    Read = Callable[[FileEntry], bytes]
    Run = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]

SAME, OTHER, UNTRIED = "same", "other ids", "untried"


@dataclass(frozen=True, kw_only=True)
class OutputCheck:
    """One output of one golden sample, compared.

    Attributes:
        sample: name of the sample, such as ``emoji``.
        output: name of the output.
        error: max|here - eager| over the values that are kept, divided by max|eager|; None: they
            can't be compared.
        bound: largest error that is allowed.
        reason: why they can't be compared (shape, type, NaN); empty if they can.
    """

    sample: str
    output: str
    error: float | None
    bound: float
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the error is within the bound."""
        return not self.reason and self.error is not None and self.error <= self.bound


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What became of all golden samples.

    Attributes:
        outputs: each output of each sample.
        tokenizer: name of each sample with ``same``, ``other ids`` or ``untried``: whether this
            machine's ``tokenizers`` makes the sample's ids of its text.
    """

    outputs: tuple[OutputCheck, ...]
    tokenizer: tuple[tuple[str, str], ...]

    @property
    def ok(self) -> bool:
        """Whether every output is right, and no text has other ids."""
        drifted = any(result == OTHER for _, result in self.tokenizer)
        return all(one.ok for one in self.outputs) and not drifted


def check(model: Model) -> CheckReport:
    """Run the golden samples of an opened conversion on its device and compare.

    The bound is the gate's tolerance. On another device than the gate's, the distance of eager
    there from eager on the CPU is added where the gate was run there too. For int8 it is the
    distance of the quantised model from float32: a value between two int8 levels goes to either by
    its last bit, which differs between machines.

    Args:
        model: what `tracefleet.open` returned.

    Raises:
        NoSamplesError: the conversion was published without golden samples.
        DigestMismatchError: their bytes are not those that were published.
        StoreError: they can't be read.
    """
    manifest = model.manifest
    samples = find_samples(manifest, model.read)
    outputs: list[OutputCheck] = []
    for sample in samples:
        outputs += compare_sample(manifest, sample, model.forward, model.distance)
    texts = check_texts(manifest, samples, model.read)
    return CheckReport(outputs=tuple(outputs), tokenizer=texts)


def find_samples(manifest: Manifest, read: Read) -> tuple[GoldenSample, ...]:
    """Return the golden samples of a conversion; ``read`` returns a file's checked bytes.

    Raises:
        NoSamplesError: it was published without them.
        ManifestError: they do not fit the conversion.
    """
    file = manifest.validation.samples
    if file is None:
        reason = manifest.validation.without_samples or "it was made before there were any"
        raise NoSamplesError(
            f"{manifest.source}: expected golden samples, got none: {reason}. Convert the "
            "checkpoint again, with its tokenizer or processor beside it."
        )
    return unpack(read(file), manifest.inputs, manifest.outputs)


def compare_sample(
    manifest: Manifest, sample: GoldenSample, run: Run, distance: float = 0.0
) -> list[OutputCheck]:
    """Run one sample and compare each output.

    Args:
        manifest: of the conversion.
        sample: one of its golden samples.
        run: what calls the artifact with its inputs in order.
        distance: relative difference that is allowed beside the sample's own bound.
    """
    try:
        returned = [tensor.cpu() for tensor in run(sample.inputs)]
    except (RuntimeError, ValueError) as error:
        reason = f"raised: {str(error).strip().splitlines()[-1]}"
        return [_fail(sample, spec.name, reason) for spec in manifest.outputs]
    found = []
    for spec, got, expected in zip(manifest.outputs, returned, sample.outputs, strict=True):
        found.append(_compare(sample.name, spec.name, got, expected, distance))
    return found


def _compare(
    sample: str, output: str, got: torch.Tensor, expected: GoldenOutput, distance: float
) -> OutputCheck:
    bound = distance + (expected.bound / expected.scale if expected.scale else 0.0)
    reason = _find_mismatch(got, expected)
    error = None if reason else _measure(got, expected)
    return OutputCheck(sample=sample, output=output, error=error, bound=bound, reason=reason)


def _find_mismatch(got: torch.Tensor, expected: GoldenOutput) -> str:
    """Say why two outputs can't be compared; nothing if they can."""
    import torch

    values = expected.values
    if tuple(got.shape) != expected.shape or got.dtype != values.dtype:
        wanted = f"{expected.shape} {values.dtype}"
        return f"expected {wanted}, got {tuple(got.shape)} {got.dtype}"
    here, finite = got.flatten()[:: expected.stride], values.isfinite()
    equal = torch.allclose(here[~finite], values[~finite], equal_nan=True)
    if not equal or not bool(here[finite].isfinite().all()):
        return "expected NaN and infinity where eager has them, got others"
    return ""


def _measure(got: torch.Tensor, expected: GoldenOutput) -> float:
    """Return the largest difference of finite values, relative to the largest value."""
    here, there = got.flatten()[:: expected.stride].double(), expected.values.double()
    differences = (here - there)[there.isfinite()].abs()
    largest = float(differences.max()) if differences.numel() else 0.0
    return largest / expected.scale if expected.scale else largest


def _fail(sample: GoldenSample, output: str, reason: str) -> OutputCheck:
    return OutputCheck(sample=sample.name, output=output, error=None, bound=0.0, reason=reason)


def check_texts(
    manifest: Manifest, samples: Sequence[GoldenSample], read: Read
) -> tuple[tuple[str, str], ...]:
    """Make the ids of the texts again, where the published tokenizer made them before."""
    tokenizer = None
    if any(sample.tokenized for sample in samples):
        pieces = None if manifest.text is None else manifest.text.pieces
        # Nothing else of the section was done to the samples.
        spec = TextSpec(pieces=pieces, prompts={}, special={})
        tokenizer = open_tokenizer(spec, read_checkpoint_files(manifest, read))
    return tuple((one.name, _check_text(tokenizer, one)) for one in samples if one.text)


def read_checkpoint_files(manifest: Manifest, read: Read) -> ReadFile:
    """Return a function that returns a published file's checked bytes by its own name."""
    files = {file.path: file for file in manifest.files}

    def read_one(name: str) -> bytes | None:
        file = files.get(f"model/{name}")
        return None if file is None else read(file)

    return read_one


def _check_text(tokenizer: Any, sample: GoldenSample) -> str:
    if tokenizer is None or not sample.tokenized:
        return UNTRIED
    ids = sample.inputs[0][0].tolist()
    most = len(ids) if sample.cut else None
    return SAME if encode(tokenizer, sample.text, sample.pair, most) == ids else OTHER
