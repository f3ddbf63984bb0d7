"""A loaded artifact, called with probes and compared with what eager computed for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import last_line
from tasks.model.outputs import move
from tasks.validate.difference import Difference, incomparable
from tasks.validate.latency import keep_latency, time_call
from tasks.validate.plan import is_timed
from tasks.validate.probes import Probe
from tasks.validate.reference import Reference, compare_outputs, load_outputs

if TYPE_CHECKING:
    import torch

    from tasks.model.feeds import Feed
    from tasks.validate.reference import Outputs


class Artifact:
    """A module with a bundle's methods, and the reference that it is compared with.

    Attributes:
        latency: Milliseconds of one call, by length.
    """

    def __init__(self, module: Any, reference: Reference) -> None:
        self.module, self.reference, self.plan = module, reference, reference.plan
        self.outputs = tuple(spec.name for spec in reference.outputs)
        self.latency: dict[int, float] = {}

    def path(self, index: int) -> Path:
        """Return the file of eager's outputs for a probe; it is missing where eager ran none."""
        return self.reference.folder / f"{index}.safetensors"

    def call(self, probe: Probe, feed: Feed) -> Outputs:
        """Call the method that a probe tests, and time it if that is the probe's own feed."""
        name = "forward" if probe.dispatch else f"forward_{probe.length}"
        outputs, took = time_call(self._run, name, feed)
        if feed is probe.feed and is_timed(self.plan, probe):
            again = None if self.plan.is_general else lambda: self._run(name, feed)
            keep_latency(self.latency, probe.length, took, again)
        return outputs

    def call_measured(self, probe: Probe) -> Outputs:
        """Call ``forward``, or the bare graph of a probe's length: its own, or the shared one."""
        if probe.dispatch:
            return self._run("forward", probe.feed)
        own = f"_traced_{probe.length}"
        shared = f"_traced_{self.plan.lengths[0]}"
        name = own if hasattr(self.module, own) else shared
        return self._run(name, probe.feed)

    def _run(self, name: str, feed: Feed) -> Outputs:
        method: Callable[..., Outputs] = getattr(self.module, name)
        outputs = method(*move(feed, self.plan.device).values())
        return tuple(output.cpu() for output in outputs)

    def compare(self, index: int, probe: Probe, feed: Feed) -> list[Difference]:
        """Call and compare; an artifact that raises has failed the probe like one that differs."""
        import torch

        # TorchScript raises torch.jit.Error, an operator RuntimeError.
        try:
            outputs = self.call(probe, feed)
        except (torch.jit.Error, RuntimeError) as error:
            return [incomparable(f"raised: {last_line(error)}")] * len(self.reference.outputs)
        return self.compare_with(self.path(index), probe, outputs)

    def compare_with(self, path: Path, probe: Probe, outputs: Outputs) -> list[Difference]:
        """Compare outputs with the eager ones in a file."""
        stored = load_outputs(path)
        found = compare_outputs(
            self.reference.outputs,
            self.plan.tolerance,
            outputs,
            stored,
            probe.eager_feed,
            self.reference.scales,
        )
        # The dispatcher slices its outputs: even their shape must be eager's.
        if probe.dispatch:
            for place, (one, two) in enumerate(zip(outputs, stored, strict=True)):
                expected = self._shape_of(place, probe, two)
                if list(one.shape) != list(expected):
                    wrong = f"expected shape {tuple(expected)}, got {tuple(one.shape)}"
                    found[place] = incomparable(wrong)
        return found

    def _shape_of(self, place: int, probe: Probe, stored: torch.Tensor) -> list[int] | torch.Size:
        """Return the shape of an output: eager's, as long as what the dispatcher was given."""
        axis = self.reference.outputs[place].length_axis
        if probe.reference_feed is None or axis is None:
            return stored.shape
        return [*stored.shape[:axis], probe.length, *stored.shape[axis + 1 :]]

    def refuses(self, method: str, feed: Feed) -> bool:
        """Tell whether a method raises on a feed."""
        import torch

        try:
            self._run(method, feed)
        except (torch.jit.Error, RuntimeError):
            return True
        return False
