"""What the double does, where that is written, and whether it is documented or assumed.

``documented``: AWS's documentation or an open-source caller says so. ``observed``: seen in a public
issue thread (``sdk#n`` is aws-neuron-sdk). ``assumed``: nobody could say; the first thing to check
on hardware. Every row is shown by a test of ``tests/test_neuron_double*.py``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Status = Literal["documented", "observed", "assumed"]


class Behaviour(NamedTuple):
    """One row of the table."""

    name: str
    what: str
    source: str
    status: Status


_TRACE = "torch_neuronx trace API"
_BATCH = "torch_neuronx dynamic_batch API"
_PLACE = "torch_neuronx placement API"
_INF1 = "torch_neuron trace API (archived)"
_RT = "Neuron runtime configuration"

BEHAVIOURS: tuple[Behaviour, ...] = (
    Behaviour("signature", "trace refuses unknown keywords", _TRACE, "documented"),
    Behaviour("positional", "positional extras warn and are inferred", _TRACE, "documented"),
    Behaviour("order", "... folder first, a list or dashes are flags", "-", "assumed"),
    Behaviour("inputs", "only nests of tensors: no dict, None, int, str", "sdk#1101", "observed"),
    Behaviour(
        "outputs", "tensor, tuple or dict; a dataclass fails", "optimum-neuron", "documented"
    ),
    Behaviour("no-device", "no device, no cpu_backend: PJRT num_devices", "sdk#910", "observed"),
    Behaviour("cpu-backend", "cpu_backend without --target is refused", "sdk#902 #944", "observed"),
    Behaviour("cross", "cpu_backend with --target compiles anywhere", _TRACE, "documented"),
    Behaviour("flags", "a wrong flag value fails in the compiler", "neuronx-cc CLI", "documented"),
    Behaviour("flag-status", "... with status 70 and argparse's words", "-", "assumed"),
    Behaviour("flag-new", "no integer flags before 2.27.5334", "compiler notes", "documented"),
    Behaviour("flag-cores", "--native-int64: trn2 and later alone", "neuronx-cc CLI", "documented"),
    Behaviour("flag-lnc", "... other cores know no LNC of 2: EARG001", "error codes", "documented"),
    Behaviour("flag-order", "the right-most of two flags wins", "neuronx-cc CLI", "documented"),
    Behaviour("unsupported", "unsupported operator: status 70", "sdk#816, error codes", "observed"),
    Behaviour("lowering", "... or an exception before the compiler", _TRACE, "documented"),
    Behaviour("partitioner", "PartitionerConfig keeps operators on the CPU", _TRACE, "documented"),
    Behaviour("thresholds", "... and ValueError beyond its limits", _TRACE, "documented"),
    Behaviour("exit-70", "neuronx-cc failed with 70", "sdk#690 #706", "observed"),
    Behaviour("killed", "out of memory: neuronx-cc failed with -9", "samples#10", "observed"),
    Behaviour("hang", "a compiler may hang; it is a process of its own", "sdk#431", "observed"),
    Behaviour("segfault", "the tracing process may die", "sdk#1265", "observed"),
    Behaviour("no-compiler", "neuronx-cc is not installed", "optimum-neuron#68", "observed"),
    Behaviour("diagnostic", "[NCC_...] on stderr, then status 70", "error codes", "documented"),
    Behaviour("limit-2gb", "torch_neuronx: protobuf's ValueError", "-", "assumed"),
    Behaviour("workdir", "compiler_workdir keeps program, graph and log", _TRACE, "documented"),
    Behaviour("unties", "tracing unties the caller's parameters", "pytorch/xla#2719", "observed"),
    Behaviour("frozen", "control flow and buffers are frozen", _TRACE, "documented"),
    Behaviour("auto-cast", "operands rounded as --auto-cast says", "neuronx-cc CLI", "documented"),
    Behaviour("never-equal", "never bit-equal to the CPU, same every time", "sdk#765", "assumed"),
    Behaviour("int32", "int64 is computed as int32", "neuronx-cc CLI", "documented"),
    Behaviour("round-trip", "torch.jit.save and load, same answer", _TRACE, "documented"),
    Behaviour("no-import", "load without the import: unknown op", "sdk#240", "observed"),
    Behaviour("stamp", "the double's own mark in every archive", "this project", "documented"),
    Behaviour("generation", "a program for other cores is refused", "nrt_status", "documented"),
    Behaviour("newer", "a newer compiler's program is refused", "sdk#820 #1061", "observed"),
    Behaviour("legacy-neff", "NEURON_RT_ALLOW_LEGACY_NEFF: v2 on trn2", _RT, "documented"),
    Behaviour("weights", "inline False: replace_weights by name", _TRACE, "documented"),
    Behaviour("weights-refused", "... another name or shape is refused", "-", "assumed"),
    Behaviour("weights-inlined", "replace_weights warns when inlined", _TRACE, "documented"),
    Behaviour("load-device", "load without a device is refused", "sdk#718", "observed"),
    Behaviour("lazy", "lazy_load: refused at the first call; survives save", _PLACE, "documented"),
    Behaviour("cores", "NUM_CORES and VISIBLE_CORES; round robin", _RT, "documented"),
    Behaviour("exhausted", "no free core: status 9", "nrt_status", "documented"),
    Behaviour("memory", "no room on a core: status 4", "nrt_status", "documented"),
    Behaviour("shape", "another shape, rank or count raises", _TRACE, "documented"),
    Behaviour("shape-text", "... through the interpreter's RuntimeError", "-", "assumed"),
    Behaviour("dtype", "another dtype raises", "-", "assumed"),
    Behaviour("dynamic", "dynamic_batch: dim 0 is free, in chunks", _BATCH, "documented"),
    Behaviour("dynamic-dim", "... another axis: ValueError", _BATCH, "documented"),
    Behaviour("dynamic-text", "... wrapped by TorchScript's RuntimeError", "-", "assumed"),
    Behaviour("dynamic-rows", "... unequal rows: Inconsistent batch sizes", "sdk#405", "observed"),
    Behaviour("dynamic-compile", "... outputs without that dim 0", "flair#3188", "observed"),
    Behaviour("dynamic-weights", "... not with separated weights", "optimum-neuron", "documented"),
    Behaviour(
        "buckets", "bucket_model_trace routes through its kernel", "autobucketing", "documented"
    ),
    Behaviour(
        "bucket-kernel", "... a kernel that is not scripted fails", "autobucketing", "documented"
    ),
    Behaviour("bucket-long", "... an over-long input fails", "autobucketing", "documented"),
    Behaviour("no-grad", "outputs carry no gradient", _TRACE, "documented"),
    Behaviour("state", "input_output_aliases keep state between calls", _TRACE, "documented"),
    Behaviour("state-out", "... and still return it", "-", "assumed"),
    Behaviour("placement", "core calls: RuntimeError, ValueError, no-op", _PLACE, "documented"),
    Behaviour("parallel", "DataParallel: a copy per core", "DataParallel API", "documented"),
    Behaviour("parallel-device", "... RuntimeError without a device", "samples#44", "observed"),
    Behaviour("analyze", "names unsupported operators, flat counts", "analyze API", "documented"),
    Behaviour("analyze-device", "... also without a device", "-", "assumed"),
    Behaviour(
        "analyze-deadlock", "... may hang if not told of transformers", "analyze API", "documented"
    ),
    Behaviour("analyze-folder", "... leaves a folder without cleanup", "analyze API", "documented"),
    Behaviour("numerical", "a run may fail with status 1003", "sdk#1148", "observed"),
    Behaviour("wrong", "a run may give NaN or wrong numbers", "sdk#672", "observed"),
    Behaviour("1-fallback", "Inf1: the rest falls back to the CPU", _INF1, "documented"),
    Behaviour("1-embedding", "Inf1: embeddings stay on the CPU", _INF1, "documented"),
    Behaviour("1-no-fallback", "Inf1: fallback=False: AttributeError", _INF1, "documented"),
    Behaviour("1-nothing", "Inf1: nothing compiled: aborting trace", "sdk#603 #1064", "observed"),
    Behaviour("1-log", "Inf1: a failed subgraph is logged, then CPU", "sdk#410 #618", "observed"),
    Behaviour("1-half", "Inf1: a warning under half", "sdk#1064", "observed"),
    Behaviour("1-timeout", "Inf1: compiler_timeout: TimeoutExpired", _INF1, "documented"),
    Behaviour("1-2gb", "Inf1: DecodeError without separate_weights", "sdk#420 #424", "observed"),
    Behaviour("1-dict", "Inf1: strict=False for dict outputs", _INF1, "documented"),
    Behaviour("1-keywords", "Inf1: keywords go on to torch.jit.trace", _INF1, "documented"),
    Behaviour(
        "1-whitelist", "Inf1: op_whitelist, builder, segment size", "sdk#470 #246", "observed"
    ),
    Behaviour("1-fast-math", "Inf1: a matmul is never float32", "sdk#765", "observed"),
    Behaviour("1-analyze", "Inf1: support is listed and logged", _INF1, "documented"),
    Behaviour("1-dynamic", "Inf1: dynamic_batch_size", _INF1, "documented"),
    Behaviour("1-anywhere", "Inf1: compiles without a device", _INF1, "documented"),
    Behaviour("1-legacy", "old torch-neuron without device: garbage", "sdk#325 #458", "observed"),
)


def table() -> str:
    """Return the rows, tab separated, a heading first."""
    lines = ["name\tbehaviour\tsource\tstatus"]
    return "\n".join([*lines, *("\t".join(row) for row in BEHAVIOURS)])
