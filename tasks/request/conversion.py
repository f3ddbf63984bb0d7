"""What people ask for: one conversion. ``tasks.fleet.spec`` is many of them.

The model is the Prefect run form, the fleet file's fields and the command line's arguments at
once, so that nonsense is refused at the same place with the same words, before any work starts.
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
from tasks.model.heads import AUTO_CLASSES
from tasks.request.mistakes import mistakes
from tasks.validate.verdict import TOLERANCES
from tracefleet.channel import check_channel
from tracefleet.lengths import check_lengths
from tracefleet.manifest_types import Tolerance, Variant
from tracefleet.store import open_store

#: A request may loosen the tolerance by this factor and no more: planted faults start at 0.1.
MAX_LOOSENING = 10.0


def _number(schema: dict[str, Any]) -> None:
    """Give each field its place: Prefect's form sorts the fields by it."""
    for position, field in enumerate(schema["properties"].values()):
        field["position"] = position


class ConversionRequest(BaseModel):
    """One checkpoint, one task, one backend, its standard lengths."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_number)

    source: str = Field(
        description="hf://org/name, org/name, a folder or s3://bucket/prefix.",
    )
    revision: str | None = Field(
        default=None,
        description="Branch, tag or commit of a hub source; resolved to a commit once.",
    )
    task: str | None = Field(
        default=None,
        description="Hugging Face task name; none: what the checkpoint's own files name "
        f"(modules.json, then architectures). One of {', '.join(AUTO_CLASSES)}.",
        # For Prefect's form and its server, which refuse by the schema alone.
        json_schema_extra={"enum": [*AUTO_CLASSES, None]},
    )
    lengths: tuple[int, ...] = Field(
        description="Standard lengths in tokens, each at most the model's positions; an image's "
        "height in pixels, a sound's samples or frames.",
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
    channel: str = Field(
        default="latest",
        description="Channel that will point to the conversion.",
    )
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = Field(
        default="float32",
        description="Dtype of the weights in the artifact.",
    )
    batch: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Rows in one traced call; the bundle takes any number of rows.",
    )
    # These three before rtol, whose check looks at them.
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
        default=3600,
        gt=0,
        description="Wall seconds for each step in a child process.",
    )
    memory_limit_mb: int | None = Field(
        default=None,
        gt=0,
        description="Resident megabytes for each child process; none: no limit.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="Torch threads in a child; 0: one for each core.",
    )

    @field_validator("source", mode="before")
    @classmethod
    def _known_source(cls, value: object) -> object:
        return _refusing(normalise_source, value) if isinstance(value, str | Path) else value

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str | None) -> str | None:
        if value is not None and value not in AUTO_CLASSES:
            raise ValueError(f"expected one of {', '.join(AUTO_CLASSES)}; got {value!r}")
        return value

    @field_validator("backend")
    @classmethod
    def _known_backend(cls, value: str) -> str:
        if value not in BACKENDS:
            raise ValueError(f"expected one of {', '.join(BACKENDS)}; got {value!r}")
        return value

    @field_validator("lengths")
    @classmethod
    def _sane_lengths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return check_lengths(value)

    @field_validator("store")
    @classmethod
    def _known_store(cls, value: str) -> str:
        _refusing(open_store, value)
        return value

    @field_validator("channel")
    @classmethod
    def _sane_channel(cls, value: str) -> str:
        return _refusing(check_channel, value)

    @field_validator("dtype")
    @classmethod
    def _compilable_dtype(cls, value: str, info: ValidationInfo) -> str:
        backend = info.data.get("backend", "jit")
        if value == "int8" and backend != "jit":
            raise ValueError(
                f"expected float32, float16 or bfloat16 for backend {backend}, got 'int8': Neuron "
                "runs no int8 layers. Its own casts are options of the backend."
            )
        return value

    @field_validator("neuronx", "neuron")
    @classmethod
    def _own_options(cls, value: Options | None, info: ValidationInfo) -> Options | None:
        backend = info.data.get("backend", info.field_name)
        if value is not None and backend != info.field_name:
            raise ValueError(
                f"expected none for backend {backend}, got options; they are for backend "
                f"{info.field_name}"
            )
        return value

    @field_validator("rtol")
    @classmethod
    def _bounded_tolerance(cls, value: float | None, info: ValidationInfo) -> float | None:
        dtype, accepted = info.data.get("dtype"), info.data.get("accept_tolerance_risk")
        known = {"backend", "neuronx", "neuron"} <= info.data.keys()
        if value is None or dtype is None or accepted is not False or not known:
            return value  # what is wrong about the others is told at their own fields
        options = _options(**{name: info.data[name] for name in ("backend", "neuronx", "neuron")})
        if value > (ceiling := _own_tolerance(dtype, options).rtol * MAX_LOOSENING):
            raise ValueError(
                f"expected at most {ceiling:g} for {dtype} ({MAX_LOOSENING:g} times its own "
                f"tolerance), got {value:g}; a looser gate could not tell faults apart. Set "
                "accept_tolerance_risk if you accept that."
            )
        return value

    @property
    def is_loose(self) -> bool:
        """Whether the tolerance is over its ceiling."""
        own = _own_tolerance(self.dtype, self.backend_options)
        return self.rtol is not None and self.rtol > own.rtol * MAX_LOOSENING

    @property
    def backend_options(self) -> Options | None:
        """How the backend compiles; None: it has no options."""
        return _options(backend=self.backend, neuronx=self.neuronx, neuron=self.neuron)

    @property
    def known_task(self) -> str:
        """The task, once it was asked for or found out.

        Raises:
            RequestError: neither has happened.
        """
        if self.task is None:
            raise RequestError("task: expected one, got none. Name the task in the request.")
        return self.task

    @property
    def variant(self) -> Variant:
        """Task, backend, dtype and batch."""
        return Variant(
            task=self.known_task, backend=self.backend, dtype=self.dtype, batch=self.batch
        )

    @property
    def target(self) -> str:
        """Instance family that a device's programs are for."""
        options = self.backend_options
        return options.target if isinstance(options, NeuronxOptions) else "inf1"

    @property
    def tolerance(self) -> Tolerance:
        """What the gate applies."""
        own = _own_tolerance(self.dtype, self.backend_options)
        return own if self.rtol is None else Tolerance(atol=own.atol, rtol=self.rtol)

    @property
    def load_options(self) -> LoadOptions:
        """How the checkpoint may be read."""
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
        """What each child process may take."""
        memory = self.memory_limit_mb
        return Limits(
            timeout=self.timeout_seconds,
            memory=None if memory is None else memory * 1_000_000,
            threads=self.threads,
        )

    @property
    def identity_options(self) -> dict[str, str]:
        """Choices beside the variant that change the conversion or what it was held to."""
        backend = self.backend_options
        options = {} if backend is None else backend.identity
        options |= {} if self.rtol is None else {"rtol": repr(self.rtol)}
        return {**options, "accept_tolerance_risk": "true"} if self.is_loose else options


def make_request(fields: dict[str, Any]) -> ConversionRequest:
    """Build a request from plain fields.

    Raises:
        RequestError: every wrong field, one line each.
    """
    try:
        return ConversionRequest.model_validate(fields)
    except ValidationError as error:
        found = mistakes(error, ConversionRequest.model_fields)
        raise RequestError("\n".join(str(mistake) for mistake in found)) from None


def _refusing(check: Any, value: str | Path) -> str:
    """Call one of our checks and speak pydantic's language about its refusal."""
    try:
        return str(check(value))
    except Exception as error:
        raise ValueError(str(error)) from error


def _options(
    *, backend: str, neuronx: NeuronxOptions | None, neuron: NeuronOptions | None
) -> Options | None:
    if backend == "neuronx":
        return neuronx or NeuronxOptions()
    if backend == "neuron":
        return neuron or NeuronOptions()
    return None


def _own_tolerance(dtype: str, options: Options | None) -> Tolerance:
    """Return the dtype's tolerance, or what the backend's arithmetic may cost if that is more."""
    own = TOLERANCES[dtype]
    return own if options is None else max(own, options.tolerance, key=lambda one: one.rtol)
