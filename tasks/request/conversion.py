"""The request of one conversion; ``tasks.fleet.spec`` holds many.

One model serves the command line, the fleet file and Prefect's run form: all of them refuse a
wrong field with the same message, before any work starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from tasks.backends.base import BACKENDS
from tasks.backends.options import NeuronOptions, NeuronxOptions, Options
from tasks.child import Limits
from tasks.errors import RequestError
from tasks.fetch.checkpoint import normalise_source
from tasks.model.facts import LoadOptions
from tasks.model.generation import Choice
from tasks.request.checks import call_check, choose_options, number_fields
from tasks.request.mistakes import describe_mistakes
from tasks.request.names import read_name
from tasks.request.tolerance import MAX_LOOSENING, check_ceiling, find_tolerance, is_loose
from tracefleet.channel import check_channel
from tracefleet.heads import AUTO_CLASSES
from tracefleet.lengths import check_lengths
from tracefleet.manifest_types import Variant
from tracefleet.names import check_name
from tracefleet.store import open_store
from tracefleet.verdict_types import Tolerance


class ConversionRequest(BaseModel):
    """One checkpoint, one task, one backend, the standard lengths."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=number_fields)

    source: str = Field(description="hf://org/name, org/name, a folder or s3://bucket/prefix.")
    revision: str | None = Field(
        default=None,
        description="Branch, tag or commit of a hub source; resolved to a commit once.",
    )
    task: str | None = Field(
        default=None,
        description="Hugging Face task name; none: what the checkpoint's own files name "
        f"(modules.json, then architectures). One of {', '.join(AUTO_CLASSES)}.",
        # Prefect's form and its server know the schema alone, not the check below.
        json_schema_extra={"enum": [*AUTO_CLASSES, None]},
    )
    lengths: tuple[int, ...] | None = Field(
        default=None,
        description="Standard lengths in tokens, each at most the model's positions; an image's "
        "height in pixels, a sound's samples or frames; none: 32, 64, … up to what model and "
        "tokenizer allow, at most 512, or the processor's size.",
        json_schema_extra={"minItems": 1, "items": {"type": "integer", "minimum": 1}},
    )
    backend: str = Field(
        default="jit",
        description=f"What runs the artifact: {', '.join(BACKENDS)}.",
        json_schema_extra={"enum": list(BACKENDS)},
    )
    store: str = Field(
        default="file://./store",
        description="Root URL of the store, such as file:///srv/models or s3://bucket/models.",
    )
    channel: str = Field(default="latest", description="Channel that will point to the conversion.")
    publish_as: str | None = Field(
        default=None,
        description="Name that readers open the conversion by, beside its source, such as "
        "support-classifier; it moves with the channel.",
    )
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = Field(
        default="float32", description="Dtype of the weights in the artifact."
    )
    batch: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Rows in one traced call; the bundle takes any number of rows.",
    )
    generation: Choice = Field(
        default="own",
        description="How a text2text-generation artifact generates: own (the checkpoint's "
        "generation config), greedy (whatever it asks for), none.",
    )
    # These three stand before `rtol`: pydantic checks in this order, and its check reads them.
    neuronx: NeuronxOptions | None = Field(
        default=None,
        description="How backend neuronx compiles (Inf2, Trn); none: its defaults.",
    )
    neuron: NeuronOptions | None = Field(
        default=None,
        description="How backend neuron compiles (Inf1); none: its defaults.",
    )
    accept_tolerance_risk: bool = Field(
        default=False,
        description="Let rtol be looser than its ceiling: faults may pass. Recorded.",
    )
    rtol: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Relative tolerance instead of the dtype's own; recorded in the manifest. "
        f"At most {MAX_LOOSENING:g} times the dtype's own without accept_tolerance_risk.",
    )
    allow_pickle: bool = Field(
        default=False,
        description="Read pickled weights where there is no safetensors (weights_only).",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code of the checkpoint; needs the full commit as revision.",
    )
    timeout_seconds: float = Field(
        default=3600, gt=0, description="Wall seconds for each step in a child process."
    )
    memory_limit_mb: int | None = Field(
        default=None,
        gt=0,
        description="Resident megabytes for each child process; none: no limit.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="Torch threads; 0: OMP_NUM_THREADS, or one for each core.",
    )

    @field_validator("source", mode="before")
    @classmethod
    def _check_source(cls, value: object) -> object:
        return call_check(normalise_source, value) if isinstance(value, str | Path) else value

    @field_validator("task", "backend", "dtype", mode="before")
    @classmethod
    def _read_name(cls, value: object, info: ValidationInfo) -> object:
        named = isinstance(value, str) and info.field_name is not None
        return read_name(str(info.field_name), str(value)) if named else value

    @field_validator("lengths")
    @classmethod
    def _check_lengths(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if value is None else check_lengths(value)

    @field_validator("store")
    @classmethod
    def _check_store(cls, value: str) -> str:
        call_check(open_store, value)
        return value

    @field_validator("channel")
    @classmethod
    def _check_channel(cls, value: str) -> str:
        return call_check(check_channel, value)

    @field_validator("publish_as")
    @classmethod
    def _check_name(cls, value: str | None) -> str | None:
        return None if value is None else check_name(value)

    @field_validator("dtype")
    @classmethod
    def _check_dtype(cls, value: str, info: ValidationInfo) -> str:
        backend = info.data.get("backend", "jit")
        if value == "int8" and backend != "jit":
            raise ValueError(
                f"expected float32, float16 or bfloat16 for backend {backend}, got 'int8': Neuron "
                "runs no int8 layers. Its own casts are options of the backend."
            )
        return value

    @field_validator("neuronx", "neuron")
    @classmethod
    def _check_options(cls, value: Options | None, info: ValidationInfo) -> Options | None:
        backend = info.data.get("backend", info.field_name)
        if value is not None and backend != info.field_name:
            raise ValueError(
                f"expected none for backend {backend}, got options; they are for backend "
                f"{info.field_name}"
            )
        return value

    @field_validator("rtol")
    @classmethod
    def _check_tolerance(cls, value: float | None, info: ValidationInfo) -> float | None:
        # Fields that are wrong themselves are not in `data`: their own mistakes are enough.
        needed = {"dtype", "accept_tolerance_risk", "backend", "neuronx", "neuron"}
        data = info.data
        if value is None or not needed <= data.keys() or data["accept_tolerance_risk"]:
            return value
        options = choose_options(data["backend"], data["neuronx"], data["neuron"])
        check_ceiling(value, data["dtype"], options)
        return value

    @property
    def backend_options(self) -> Options | None:
        """Options of the backend's compiler; None: it has none."""
        return choose_options(self.backend, self.neuronx, self.neuron)

    @property
    def known_task(self) -> str:
        """The task, from the request or the checkpoint's files.

        Raises:
            RequestError: the request names none, and the files were not read yet.
        """
        if self.task is None:
            raise RequestError("task: expected one, got none. Name the task in the request.")
        return self.task

    @property
    def known_lengths(self) -> tuple[int, ...]:
        """The standard lengths, from the request or by default.

        Raises:
            RequestError: the request names none, and the files were not read yet.
        """
        if self.lengths is None:
            raise RequestError("lengths: expected some, got none. Name them in the request.")
        return self.lengths

    @property
    def variant(self) -> Variant:
        """Task, backend, dtype and batch."""
        return Variant(
            task=self.known_task, backend=self.backend, dtype=self.dtype, batch=self.batch
        )

    @property
    def target(self) -> str:
        """Instance family that Neuron programs are compiled for."""
        options = self.backend_options
        return options.target if isinstance(options, NeuronxOptions) else "inf1"

    @property
    def tolerance(self) -> Tolerance:
        """Tolerance that the gate applies."""
        own = find_tolerance(self.dtype, self.backend_options)
        return own if self.rtol is None else Tolerance(atol=own.atol, rtol=self.rtol)

    @property
    def load_options(self) -> LoadOptions:
        """Options for reading the checkpoint."""
        return LoadOptions(
            task=self.known_task,
            dtype=self.dtype,
            allow_pickle=self.allow_pickle,
            trust_remote_code=self.trust_remote_code,
        )

    @property
    def permissions(self) -> dict[str, Any]:
        """Revision and permissions that the checkpoint is resolved with."""
        names = ("revision", "allow_pickle", "trust_remote_code")
        return {name: getattr(self, name) for name in names}

    @property
    def limits(self) -> Limits:
        """Limits of each child process."""
        memory = self.memory_limit_mb
        return Limits(
            timeout=self.timeout_seconds,
            memory=None if memory is None else memory * 1_000_000,
            threads=self.threads,
        )

    @property
    def identity_options(self) -> dict[str, str]:
        """Options outside the variant that change the conversion or its gate."""
        backend = self.backend_options
        options = {} if backend is None else dict(backend.identity)
        if self.generation != "own":
            options["generation"] = self.generation
        if self.rtol is not None:
            options["rtol"] = repr(self.rtol)
        # Only where it made a difference: within the ceiling nothing was risked.
        if is_loose(self.rtol, self.dtype, backend):
            options["accept_tolerance_risk"] = "true"
        return options


def make_request(fields: dict[str, Any]) -> ConversionRequest:
    """Make a request of plain fields.

    Raises:
        RequestError: fields are wrong; the message has a line for each.
    """
    try:
        return ConversionRequest.model_validate(fields)
    except ValidationError as error:
        mistakes = describe_mistakes(error, ConversionRequest.model_fields)
        raise RequestError("\n".join(map(str, mistakes))) from None
