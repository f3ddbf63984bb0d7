"""The gate's verdict as a manifest has it: tolerance, lengths, accuracy, samples, left padding.

Each value refuses at construction what no gate gives.
"""

from __future__ import annotations

from dataclasses import dataclass

from tracefleet.errors import ManifestError
from tracefleet.manifest_types import FileEntry

VALIDATED = "validated"
UNVALIDATED_ON_DEVICE = "unvalidated-on-device"
HOLDS, DIFFERS, RAISES, UNTRIED = "holds", "differs", "raises", "untried"
REAL, RANDOM = "real", "random"
PADDING = (HOLDS, DIFFERS, UNTRIED)
GENERALITY = (HOLDS, DIFFERS, RAISES, UNTRIED)
#: Fields of a `LengthVerdict` that have one of these values; schema 1 lacks them.
GENERALITY_FIELDS = ("other_lengths", "other_batches")


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The bound of the gate: ``max|traced - eager| <= atol + rtol * max|eager|``.

    Both maxima are over the valid (unpadded) positions of one output. ``max|eager|`` is never taken
    smaller than it is on the traced input.

    Attributes:
        atol: absolute part of the bound.
        rtol: part of the bound that grows with eager's largest value.
    """

    atol: float
    rtol: float


@dataclass(frozen=True, kw_only=True)
class LengthVerdict:
    """What the gate measured at one standard length: the worst over all probes and outputs.

    Attributes:
        length: the standard length, in tokens.
        probes: number of probes that were compared.
        vacuous: names of probes that don't change this model's outputs and so prove nothing.
        max_abs_error: max|traced - eager|.
        max_rel_error: max|traced - eager| / max|eager|.
        min_cosine: smallest cosine similarity between a traced and an eager output.
        top1_agreement: share of last-axis argmaxes that agree, for outputs that are logits.
        passed: whether every probe is within the tolerance.
        other_lengths: behaviour of the graph, without the bundle's guard, at other lengths than the
            traced one, as measured: ``holds``, ``differs`` (silently wrong) or ``raises``;
            ``untried`` if eager refuses other lengths or there are none.
        other_batches: the same for other numbers of rows.
    """

    length: int
    probes: int
    vacuous: tuple[str, ...]
    max_abs_error: float
    max_rel_error: float
    min_cosine: float
    top1_agreement: float
    passed: bool
    other_lengths: str = UNTRIED
    other_batches: str = UNTRIED

    def __post_init__(self) -> None:
        """Refuse words that no measurement gives."""
        for name in GENERALITY_FIELDS:
            _check_word(name, getattr(self, name), GENERALITY)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How far a quantised model is from the float32 one: the worst over inputs of its own.

    Attributes:
        max_rel_error: max|quantised - float32| / max|float32|.
        min_cosine: smallest cosine similarity between a quantised and a float32 output.
        top1_agreement: share of last-axis argmaxes that agree, for outputs that are logits: of a
            classifier, the share of equal labels.
        inputs: ``real`` (texts, pictures or sounds through the checkpoint's own tokenizer or
            processor) or ``random``; None: an earlier schema does not say.
        rank_correlation: Spearman's rank correlation of the similarities of all pairs of inputs,
            for models that return one vector for each; None: it does not, or inputs are random.
    """

    max_rel_error: float
    min_cosine: float
    top1_agreement: float
    inputs: str | None = None
    rank_correlation: float | None = None


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The gate's verdict.

    Attributes:
        verdict: ``validated``, or ``unvalidated-on-device`` if the device was not at hand.
        tolerance: the bound that was applied.
        lengths: one verdict for each standard length.
        negative_controls: names of deliberate corruptions that the same probes detected.
        accuracy: distance of the quantised model from float32; None: nothing is quantised.
        samples: file of golden samples (`tracefleet.golden`), named by its digest; None: there is
            none. Its bytes depend on the machine that ran eager.
        without_samples: why there is none; None: there is one, or an earlier schema does not say.
        left_padding: whether rows with padding on their left, or a hole, give what eager gives for
            them once they are padded on their right as well, by ``forward`` or by a caller who runs
            rows together: ``holds`` or ``differs``; ``untried``: there is no mask, or nothing is
            ever padded, or an earlier schema does not say.
    """

    verdict: str
    tolerance: Tolerance
    lengths: tuple[LengthVerdict, ...]
    negative_controls: tuple[str, ...]
    accuracy: Accuracy | None = None
    samples: FileEntry | None = None
    without_samples: str | None = None
    left_padding: str = UNTRIED

    def __post_init__(self) -> None:
        """Refuse verdicts that no gate gives."""
        _check_word("left_padding", self.left_padding, PADDING)
        if self.verdict not in (VALIDATED, UNVALIDATED_ON_DEVICE):
            raise ManifestError(
                f"validation: verdict expected {VALIDATED!r} or {UNVALIDATED_ON_DEVICE!r}, "
                f"got {self.verdict!r}"
            )
        samples = self.samples
        known = () if samples is None else (samples_path(samples.sha256), _old_path(samples.sha256))
        if samples is not None and samples.path not in known:
            raise ManifestError(
                f"validation: samples expected {samples_path(samples.sha256)}, got {samples.path}"
            )


def samples_path(sha256: str) -> str:
    """Return the path of golden samples in their conversion's folder, by their digest."""
    # In the model's folder: Triton takes every other folder of its repository for a model.
    return f"model/samples-{sha256}.safetensors"


def _old_path(sha256: str) -> str:
    """Return where earlier manifests of the third schema have them."""
    return f"samples/{sha256}.safetensors"


def _check_word(name: str, value: str, words: tuple[str, ...]) -> None:
    if value not in words:
        raise ManifestError(f"validation: {name} expected one of {', '.join(words)}, got {value!r}")
