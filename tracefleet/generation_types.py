"""What a manifest says of a bundle's method ``generate``: its constants, and what was proved."""

from __future__ import annotations

from dataclasses import dataclass

from tracefleet.errors import ManifestError


@dataclass(frozen=True, kw_only=True)
class GenerationVerdict:
    """What the gate found out about ``generate``, against transformers' own.

    Attributes:
        max_rel_error: largest error of a step's logits, relative to the largest of them.
        beams: numbers of beams whose answers were compared id for id.
        rows: number of answers that were equal, over all numbers of beams.
        near_ties: number of answers that proved nothing: eager's own choice was closer than ten
            times the error of a step, so that others were drawn instead.
        unproved: what no row of eager showed, such as ``stops early``.
        faults: names of planted faults that the same checks detected.
    """

    max_rel_error: float
    beams: tuple[int, ...]
    rows: int
    near_ties: int
    unproved: tuple[str, ...]
    faults: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The bundle's ``generate(input_ids, attention_mask, max_new_tokens, num_beams, first_token)``.

    The source has at most as many tokens as the largest standard length, and so has the answer.

    Attributes:
        num_beams: beams of a call that names no number; 1 is greedy search.
        max_new_tokens: most ids of an answer, beside the first, of a call that names no number.
        start: first id of every answer.
        pad: id that fills up an answer that ended.
        eos: ids that end an answer.
        layers: layers of the decoder whose keys and values ``step`` takes, two tensors for each and
            two of the source; 0: Neuron's programs, which take all ids of an answer anew.
        options: constants of the search that are not their defaults, in JSON, by their name.
        verdict: what the gate found out.
    """

    num_beams: int
    max_new_tokens: int
    start: int
    pad: int
    eos: tuple[int, ...]
    layers: int
    options: dict[str, str]
    verdict: GenerationVerdict | None

    def __post_init__(self) -> None:
        """Refuse what no search has."""
        for name, least in (("num_beams", 1), ("max_new_tokens", 1), ("layers", 0)):
            value = getattr(self, name)
            if value < least:
                raise ManifestError(f"generation: {name} expected at least {least}, got {value}")

    @property
    def held(self) -> tuple[int, int]:
        """How many tensors a search holds: the decoder's own, and the source's."""
        return (2 * self.layers, 2 * self.layers) if self.layers else (1, 1)
