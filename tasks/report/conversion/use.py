"""What a report says about using a conversion: three snippets, and where its files are."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.report.conversion.facts import Origin, ReportFacts
from tracefleet.manifest_types import JIT, InputSpec
from tracefleet.triton.config import find_obstacle


def snippets(facts: ReportFacts) -> Iterator[tuple[str, str]]:
    """Yield a title and the lines of each way to use what was published."""
    origin = facts.origin
    if origin is None or origin.folder is None:
        return
    yield "Python", _python(facts, origin)
    if facts.variant.backend == JIT:
        folder = _local(origin.folder)
        where = folder or "./model"
        pull = "" if folder else f"{_pull(facts, origin)}\n"
        yield "C++ (libtorch)", f"{pull and f'// {pull}'}{_cpp(facts, where)}"
        if find_obstacle(facts.inputs, facts.outputs) is None:
            copy = f"tracefleet pull {origin.store} {origin.name or facts.source} --to ./repository"
            yield "Triton", f"{copy} --as triton\ntritonserver --model-repository=./repository"


def manifest_link(facts: ReportFacts) -> str:
    """Return the link from the page to the manifest, in the same store; empty: there is none."""
    origin = facts.origin
    if origin is None or origin.folder is None:
        return ""
    return f"../../{origin.folder.removeprefix(f'{origin.store}/')}/{origin.manifest}"


def _python(facts: ReportFacts, origin: Origin) -> str:
    variant = facts.variant
    options = [f'task="{variant.task}"']
    options += [f'dtype="{variant.dtype}"'] if variant.dtype != "float32" else []
    options += [f'backend="{variant.backend}"'] if variant.backend != JIT else []
    options += [f"batch={variant.batch}"] if variant.batch != 1 else []
    options += [f'channel="{origin.channel}"'] if origin.channel != "latest" else []
    address = origin.name or facts.source
    return (
        "import tracefleet\n\n"
        f'model = tracefleet.open("{origin.store}", "{address}", {", ".join(options)})\n'
        f"{_call(facts, origin)}"
    )


def _call(facts: ReportFacts, origin: Origin) -> str:
    if origin.text:
        return f'model.predict("{origin.text}")'
    called = ", ".join(_example(spec) for spec in facts.inputs if spec.fill_value is None)
    return f'outputs = model({called})\noutputs["{facts.outputs[0].name}"].shape'


def _example(spec: InputSpec) -> str:
    if spec.name == "input_ids" and len(spec.axes) == 2:
        return "input_ids=[[5, 6, 7], [8, 9]]"
    return f"{spec.name}={spec.name}"


def _cpp(facts: ReportFacts, where: str) -> str:
    tensors = ", ".join(spec.name for spec in facts.inputs)
    return (
        f'auto bundle = torch::jit::load("{where}/model/1/model.pt");\n'
        f"auto outputs = bundle.forward({{{tensors}}}).toTuple();  // tensors as listed below"
    )


def _pull(facts: ReportFacts, origin: Origin) -> str:
    return f"tracefleet pull {origin.store} {origin.name or facts.source} --to ./model"


def _local(url: str) -> str:
    """Return the path of a folder's URL; empty: it is on no disk."""
    return url.removeprefix("file://") if url.startswith("file://") else ""
