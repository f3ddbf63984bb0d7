"""What makes two conversions the same one: ``Identity`` and its key.

It holds everything that shapes the bytes, the weights through the commit, and nothing of the run,
its time or its host. A key that is published already means that there is nothing to do.
``tasks.request.identify`` makes the identity of a request.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

from tasks.fetch.source import Checkpoint
from tasks.trace.record import TraceResult
from tracefleet.canonical import canonical_json
from tracefleet.manifest import GENERAL_SCHEMA, SCHEMA, Manifest
from tracefleet.manifest_types import (
    JIT,
    FileEntry,
    InputSpec,
    Toolchain,
    Variant,
)
from tracefleet.opens_with import OPENS_WITH
from tracefleet.text.spec import TextSpec
from tracefleet.verdict_types import Validation

#: Version of tracefleet's own conversion semantics. Raise it when the same checkpoint and
#: toolchain give other bytes or other guarantees than before: every fleet becomes stale.
RECIPE = 3
#: Option of what was made for a store that limits its schema.
_SCHEMA = "schema"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Everything that a conversion key is made of, and the source.

    Attributes:
        source: Source as resolved, without a revision.
        commit: Commit that the revision resolved to.
        variant: Task, backend, dtype and batch.
        lengths: Standard lengths, ascending.
        options: Options outside the variant that change the conversion or its gate.
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
        """Return the identity that follows from a manifest's contents."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(manifest, name) for name in names})

    @property
    def schema(self) -> int:
        """Schema of the manifest."""
        return int(self.options.get(_SCHEMA, SCHEMA))

    @property
    def may_be_general(self) -> bool:
        """Whether the manifest says where one graph serves every shape, and on which devices."""
        return self.schema >= GENERAL_SCHEMA

    def limited_to(self, schema: int) -> Identity:
        """Return the identity in a store whose manifests have at most this schema."""
        if schema >= SCHEMA:
            return self
        return dataclasses.replace(self, options={**self.options, _SCHEMA: str(schema)})

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
        text: TextSpec | None = None,
    ) -> Manifest:
        """Return the manifest of a conversion with this identity.

        Args:
            checkpoint: Checkpoint that was converted.
            traced: Result of tracing.
            inputs: Inputs of the artifact.
            files: Entries of its files.
            validation: Verdict of the gate.
            text: How texts become its inputs; None: they are no texts.
        """
        names = [field.name for field in dataclasses.fields(self)]
        opens_with = OPENS_WITH if self.variant.backend == JIT else None
        manifest = Manifest(
            key=self.key,
            license=checkpoint.license,
            inputs=inputs,
            outputs=traced.outputs,
            tied_groups=traced.tied_groups,
            same_program=traced.same_program,
            general=traced.general,
            routed=traced.routed,
            device=traced.device,
            follows_device=traced.follows_device,
            opens_with=opens_with,
            text=text,
            generation=traced.generation,
            without_generation=traced.without_generation,
            files=files,
            validation=validation,
            **{name: getattr(self, name) for name in names},
        )
        return manifest.in_schema(self.schema)
