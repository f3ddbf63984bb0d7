"""Which conversions are measured, and at which lengths all of them run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tracefleet.channel import Published, check_channel, parse_label
from tracefleet.choices import list_choices
from tracefleet.errors import BenchError, NoSuchVariantError
from tracefleet.lengths import smallest_fit
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import JIT
from tracefleet.published import Selection, find, load_manifest, resolve
from tracefleet.store import ReadableStore


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """One conversion to measure.

    Attributes:
        selection: where it is published.
        manifest: its checked manifest.
        name: under which it is shown.
    """

    selection: Selection
    manifest: Manifest
    name: str


def choose_conversions(
    store: ReadableStore,
    source: str | Path,
    *,
    task: str | None,
    dtypes: Sequence[str],
    batch: int | None,
    channel: str,
) -> list[Conversion]:
    """Return the current conversions of one source and task, float32 first.

    Args:
        store: store to search.
        source: the checkpoint's name.
        task: task; None takes the only one published.
        dtypes: dtypes that have to be there; none: every one that is.
        batch: rows in one traced call; None takes every one.
        channel: channel whose newest numbers are measured.

    Raises:
        NoSuchVariantError: none fits, one of the dtypes is missing, or several tasks fit.
        ManifestError: a manifest or a channel's entry is damaged.
    """
    check_channel(channel)
    wanted = {"task": task, "backend": JIT, "batch": batch, "channel": channel}
    found: list[Published] = []
    for dtype in dtypes or (None,):
        fitting = list(find(store, source, dtype=dtype, **wanted))  # type: ignore[arg-type]
        filters = {**wanted, "dtype": dtype}
        words = [f"{name}={value}" for name, value in filters.items() if value is not None]
        if not fitting or len({_task_of(one) for one in fitting}) > 1:
            raise NoSuchVariantError(list_choices(store, source, fitting, ", ".join(words)))
        found += fitting
    return _name_all([_load(store, one) for one in found])


def _task_of(published: Published) -> str:
    variant = parse_label(published.variant)
    return variant.task if variant else ""


def _load(store: ReadableStore, published: Published) -> tuple[Selection, Manifest]:
    selection = resolve(store, published)
    return selection, load_manifest(store, selection)


def _name_all(found: list[tuple[Selection, Manifest]]) -> list[Conversion]:
    variants = [manifest.variant for _, manifest in found]
    dtypes = [variant.dtype for variant in variants]
    conversions = []
    for selection, manifest in found:
        dtype, batch = manifest.variant.dtype, manifest.variant.batch
        # The traced batch tells conversions apart only where one dtype has several.
        twin = f" b{batch}" if dtypes.count(dtype) > 1 else ""
        name = f"tracefleet {dtype}{twin}"
        conversions.append(Conversion(selection=selection, manifest=manifest, name=name))
    return sorted(conversions, key=lambda one: (one.manifest.variant.dtype != "float32", one.name))


def choose_lengths(conversions: Sequence[Conversion], asked: Sequence[int]) -> tuple[int, ...]:
    """Return the lengths to measure: those asked for, or up to three standard ones.

    Raises:
        InputTooLongError: a length is over the largest of a conversion.
        BenchError: a conversion does not run at a length, or no length suits all of them.
    """
    for length in asked:
        for conversion in conversions:
            smallest_fit(conversion.manifest.lengths, length)
            if not _runs_at(conversion.manifest, length):
                raise BenchError(_refuse_length(conversion, length))
    if asked:
        return tuple(asked)
    return _spread(_find_common(conversions))


def _find_common(conversions: Sequence[Conversion]) -> list[int]:
    """Return the standard lengths at which every conversion runs."""
    lengths = {length for one in conversions for length in one.manifest.lengths}
    common = sorted(lengths)
    for conversion in conversions:
        common = [length for length in common if _runs_at(conversion.manifest, length)]
    if not common:
        names = ", ".join(one.name for one in conversions)
        raise BenchError(
            f"lengths: expected one at which {names} all run, got none among their standard "
            f"lengths {sorted(lengths)}. Measure one of them: --dtype."
        )
    return common


def _spread(lengths: list[int]) -> tuple[int, ...]:
    """Return the first, the last and one in the middle."""
    last = len(lengths) - 1
    return tuple(lengths[place] for place in sorted({0, last // 2, last}))


def _runs_at(manifest: Manifest, length: int) -> bool:
    if length in manifest.lengths:
        return True
    general = manifest.general
    unpadded = general is not None and length >= general.shortest
    varying = [spec for spec in manifest.inputs if spec.length_axis is not None]
    padded = all(spec.pad_value is not None for spec in varying)
    return bool(varying) and length <= manifest.lengths[-1] and (unpadded or padded)


def _refuse_length(conversion: Conversion, length: int) -> str:
    lengths = ", ".join(map(str, conversion.manifest.lengths))
    return (
        f"lengths: expected some of {lengths} for {conversion.name}, whose inputs are never "
        f"padded, got {length}. Name one of those, or leave --lengths out."
    )
