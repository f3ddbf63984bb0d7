"""What a conversion's report shows beside the gate's own record."""

from __future__ import annotations

from dataclasses import dataclass

from tracefleet.manifest_types import (
    InputSpec,
    OutputSpec,
    Toolchain,
    Variant,
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where and when a conversion was made, and where it lies.

    Attributes:
        date: when it was done, in ISO format.
        host: name of the machine.
        key: conversion key.
        store: URL of the store.
        folder: URL of the conversion's folder; None: it was refused, and is not there.
        manifest: name of the manifest's file in it.
        channel: channel that points to it.
        name: name that it was published under; None: readers say the source.
        text: one that ``Model.predict`` answers; empty: it answers none.
    """

    date: str
    host: str
    key: str
    store: str
    folder: str | None = None
    manifest: str = "manifest.json"
    channel: str = "latest"
    name: str | None = None
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """Facts of a conversion that are not the gate's.

    Attributes:
        source: address of the checkpoint.
        commit: what the source resolved to.
        variant: task, backend, dtype, batch.
        options: the request's other choices, as the manifest records them.
        inputs: positional arguments of ``forward``.
        outputs: elements of the returned tuple.
        shared: whether one and the same graph serves every length.
        same_program: whether the graphs of all lengths are one program.
        toolchain: versions that shaped the bytes.
        tied_groups: names that shared storage.
        seconds: wall time of each step.
        peak_bytes: largest resident size of each step's child.
        bundle_bytes: size of the bundle; 0 if there is none.
        weight_bytes: size of the bundle's weights.
        origin: where and when it was made; None: not told.
    """

    source: str
    commit: str
    variant: Variant
    options: dict[str, str]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    shared: bool
    same_program: bool
    toolchain: Toolchain
    tied_groups: tuple[tuple[str, ...], ...]
    seconds: dict[str, float]
    peak_bytes: dict[str, int]
    bundle_bytes: int
    weight_bytes: int
    origin: Origin | None = None
