"""What makes two conversions the same one: ``Identity`` and its key.

Everything that shapes the bytes is in it; nothing of who, when or where is. Weights are in it
through the commit. The same key, already published, means done. A request's identity is made by
``tasks.request.identify``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

from tasks.fetch.source import Checkpoint
from tasks.trace.record import TraceResult
from tracefleet.canonical import canonical_json
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import FileEntry, InputSpec, Toolchain, Validation, Variant

#: Version of tracefleet's own conversion semantics: raise it when the same checkpoint and
#: toolchain give other bytes or other promises than before, and every fleet becomes stale.
RECIPE = 2


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What is converted and how.

    Attributes:
        source: Source as resolved, without a revision.
        commit: Commit that the revision resolved to.
        variant: Task, backend, dtype and batch.
        lengths: Standard lengths, ascending.
        options: Choices beside the variant that change the conversion or its gate.
        toolchain: Versions that shape the bytes; None: only the backend's workers know them.
        recipe: Version of our own semantics.
    """

    source: str
    commit: str
    variant: Variant
    lengths: tuple[int, ...]
    options: dict[str, str]
    toolchain: Toolchain | None
    recipe: int = RECIPE

    @classmethod
    def of(cls, manifest: Manifest) -> Identity:
        """Return the identity that a manifest's own contents give."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(manifest, name) for name in names})

    @property
    def key(self) -> str:
        """The conversion key: sha256 over the canonical JSON of all but the source."""
        assert self.toolchain is not None
        identity = {
            "commit": self.commit,
            "variant": dataclasses.asdict(self.variant),
            "lengths": self.lengths,
            "options": self.options,
            "toolchain": dataclasses.asdict(self.toolchain),
            "recipe": self.recipe,
        }
        return hashlib.sha256(canonical_json(identity)).hexdigest()

    def manifest(
        self,
        checkpoint: Checkpoint,
        traced: TraceResult,
        inputs: tuple[InputSpec, ...],
        files: tuple[FileEntry, ...],
        validation: Validation,
    ) -> Manifest:
        """Return the manifest of what was made of a checkpoint."""
        names = [field.name for field in dataclasses.fields(self)]
        return Manifest(
            key=self.key,
            license=checkpoint.license,
            inputs=inputs,
            outputs=traced.outputs,
            tied_groups=traced.tied_groups,
            same_program=traced.same_program,
            files=files,
            validation=validation,
            **{name: getattr(self, name) for name in names},
        )
