"""`tracefleet check`: the golden samples tell on any machine whether an artifact is what it was."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import tracefleet
from flows.convert import convert
from tasks.request.conversion import make_request
from tasks.sweep.tiny import Case, build
from tests.support.forging import (
    forge_file,
    forge_manifest,
    forge_samples,
    forge_validation,
    scale_weight,
)
from tracefleet.check import OTHER, SAME, UNTRIED
from tracefleet.cli import main
from tracefleet.errors import (
    BackendUnavailableError,
    DigestMismatchError,
    ManifestError,
    NoSamplesError,
)
from tracefleet.golden import GoldenOutput, GoldenSample, choose_stride, pack, unpack
from tracefleet.manifest import Manifest
from tracefleet.manifest_types import InputSpec, OutputSpec
from tracefleet.text import TOKENIZER

TASK = "text-classification"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with one conversion of a tiny classifier that has a tokenizer; and its checkpoint."""
    root = tmp_path_factory.mktemp("check")
    folder = build(Case(model_type="bert", task=TASK), root / "checkpoint")
    fields = {"source": str(folder), "task": TASK, "lengths": [8, 32]}
    convert(make_request({**fields, "store": str(root / "store")}))
    return root / "store", folder


@pytest.fixture
def copied(published: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path, Manifest]:
    """A copy of the store to be forged, its checkpoint, and the manifest."""
    import shutil

    store, folder = published
    shutil.copytree(store, tmp_path / "store")
    return tmp_path / "store", folder, tracefleet.load_manifest(store, folder)


def test_the_golden_samples_are_the_texts_with_eagers_outputs(published):
    store, folder = published
    model = tracefleet.open(store, folder)
    manifest = model.manifest
    entry = manifest.validation.samples
    assert entry is not None
    assert manifest.validation.without_samples is None
    assert entry.size <= max(1_000_000, manifest.bundle.size // 100)
    samples = unpack(model.read(entry), manifest.inputs, manifest.outputs)
    assert {"english", "emoji", "russian", "pair"} <= {sample.name for sample in samples}
    assert [sample.name for sample in samples if sample.pair] == ["pair"]
    import transformers

    eager = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for sample in samples:
        encoded = tokenizer(
            sample.text, sample.pair, return_tensors="pt", truncation=True, max_length=32
        )
        if not sample.name.startswith("passage"):
            assert torch.equal(sample.inputs[0], encoded["input_ids"])
        with torch.no_grad():
            named = dict(zip(model.input_names, sample.inputs, strict=True))
            expected = eager(**named).logits
        (output,) = sample.outputs
        torch.testing.assert_close(output.values, expected.flatten()[:: output.stride])


def test_what_was_proved_passes_and_is_told(published, capsys):
    store, folder = published
    report = tracefleet.check(tracefleet.open(store, folder))
    assert report.ok
    assert all(one.error is not None and one.error <= 1e-5 for one in report.outputs)
    assert {result for _, result in report.tokenizer} == {SAME}
    assert main(["check", str(store), str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "all as eager computed them" in shown
    assert "english" in shown
    assert main(["check", str(store), str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_a_weight_that_is_one_percent_off_is_told_though_every_digest_fits(copied, capsys):
    store, folder, manifest = copied
    bundle = next(store.rglob("model.pt"))
    forge_file(store, manifest, manifest.bundle.path, scale_weight(bundle, 1.01))
    assert main(["verify", str(store), str(folder)]) == 0, "the digests do not fit"
    capsys.readouterr()
    assert main(["check", str(store), str(folder)]) == 1
    told = capsys.readouterr()
    assert "DIFFERS" in told.out
    assert "logits: error " in told.err
    assert "expected at most" in told.err


def test_a_tokenizer_that_makes_other_ids_is_told(copied):
    store, folder, manifest = copied
    path = next(store.rglob("tokenizer.json"))
    changed = json.loads(path.read_text("utf-8"))
    changed["normalizer"] = {"type": "Lowercase"}
    changed["pre_tokenizer"] = {"type": "CharDelimiterSplit", "delimiter": "e"}
    forge_file(store, manifest, TOKENIZER, json.dumps(changed).encode())
    report = tracefleet.check(tracefleet.open(store, folder))
    assert OTHER in {result for _, result in report.tokenizer}
    assert all(one.ok for one in report.outputs)
    assert not report.ok


def test_texts_are_untried_where_the_tokenizer_file_never_made_their_ids(copied):
    store, folder, manifest = copied
    entry = manifest.validation.samples
    assert entry is not None
    model = tracefleet.open(store, folder)
    samples = unpack(model.read(entry), manifest.inputs, manifest.outputs)
    changed = [dataclasses.replace(sample, tokenized=False) for sample in samples]
    forge_samples(store, manifest, pack(changed))
    report = tracefleet.check(tracefleet.open(store, folder))
    assert {result for _, result in report.tokenizer} == {UNTRIED}
    assert report.ok


def test_a_conversion_without_samples_says_why(copied, capsys):
    store, folder, manifest = copied
    reason = "the checkpoint has no tokenizer"
    forge_validation(store, manifest, samples=None, without_samples=reason)
    with pytest.raises(NoSamplesError, match=reason):
        tracefleet.check(tracefleet.open(store, folder))
    assert main(["check", str(store), str(folder)]) == 1
    assert reason in capsys.readouterr().err


def test_damaged_and_foreign_samples_are_refused(copied):
    store, folder, manifest = copied
    path = next(store.rglob("model/samples-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DigestMismatchError):
        tracefleet.check(tracefleet.open(store, folder))
    assert main(["verify", str(store), str(folder)]) == 1
    for data in (b"\0", b"no safetensors at all", pack([]), pack([_sample()])):
        forge_samples(store, manifest, data)
        with pytest.raises(ManifestError, match="golden samples"):
            tracefleet.check(tracefleet.open(store, folder))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda out: out[:, :-1], "expected (1, 3)"),
        (lambda out: out.double(), "torch.float64"),
        (lambda out: out * float("nan"), "expected NaN"),
    ],
)
def test_another_shape_type_or_a_nan_is_no_agreement(published, change, expected):
    store, folder = published
    model = tracefleet.open(store, folder)
    run = model.forward
    model.forward = lambda tensors: tuple(change(one) for one in run(tensors))  # type: ignore[method-assign]
    report = tracefleet.check(model)
    assert not report.ok
    assert all(expected in one.reason for one in report.outputs)


def test_without_a_source_all_conversions_are_checked_and_one_that_cant_be_stops_none(
    copied, capsys, checkpoint
):
    store, _, manifest = copied
    command = ["check", str(store)]
    assert main(command) == 0
    assert "all as eager computed them" in capsys.readouterr().out
    fields = {"source": str(checkpoint("bert")), "task": "feature-extraction", "lengths": [8]}
    convert(make_request({**fields, "store": str(store)}))
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "not checked" in shown
    assert "the checkpoint has no tokenizer" in shown
    forge_samples(store, manifest, b"no safetensors at all")
    assert main([*command, "--json"]) == 1
    told = capsys.readouterr()
    assert {row["ok"] for row in json.loads(told.out)} == {None, False}
    assert "golden samples" in told.err
    assert main([*command, "--task", "feature-extraction"]) == 1
    assert "nothing that fits can be checked here" in capsys.readouterr().err
    assert main([*command, "--triton", "http://127.0.0.1:9"]) == 1
    assert "expected a SOURCE" in capsys.readouterr().err


def test_it_works_without_transformers(published):
    store, folder = published
    program = (
        "import sys\n"
        "sys.modules['transformers'] = None\n"
        "from tracefleet.cli import main\n"
        f"sys.exit(main(['check', {str(store)!r}, {str(folder)!r}]))\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "all as eager computed them" in outcome.stdout


def test_a_second_machine_with_other_bits_keeps_the_first_ones_samples(published, tmp_path):
    from tasks.publish.conversion import publish
    from tracefleet.channel import conversion_folder
    from tracefleet.store.folder import FileStore

    store, folder = published
    model = tracefleet.open(store, folder)
    manifest, entry = model.manifest, model.manifest.validation.samples
    assert entry is not None
    root = store / conversion_folder(manifest.source, manifest.key)
    target = tmp_path / "other"
    files = {file.path: root / file.path for file in manifest.files}
    first = publish(
        FileStore(root=target), manifest, files | {entry.path: root / entry.path}, channel="latest"
    )
    samples = unpack(model.read(entry), manifest.inputs, manifest.outputs)
    other = tmp_path / "other.safetensors"
    other.write_bytes(pack(samples[:1]))
    later = _rename_samples(manifest, other)
    assert later.validation.samples is not None
    files[later.validation.samples.path] = other
    second = publish(FileStore(root=target), later, files, channel="latest")
    assert (second.number, second.manifest_digest) == (first.number, first.manifest_digest)
    assert tracefleet.check(tracefleet.open(target, folder)).ok


def _rename_samples(manifest: Manifest, path: Path) -> Manifest:
    from tasks.validate.verdict import GoldenFile
    from tracefleet.store.durable import sha256_of

    size, digest = path.stat().st_size, sha256_of(path)
    golden = GoldenFile(path=path, size=size, sha256=digest)
    validation = dataclasses.replace(manifest.validation, samples=golden.entry)
    return dataclasses.replace(manifest, validation=validation)


# -- the file --


def _sample(**changes: Any) -> GoldenSample:
    output = GoldenOutput(
        values=torch.tensor([1.0, float("inf")]), shape=(1, 4), stride=3, scale=2.0, bound=2e-5
    )
    output = dataclasses.replace(output, **changes.pop("output", {}))
    whole: dict[str, Any] = {
        "name": "emoji",
        "text": "🎉 “x”",
        "pair": None,
        "tokenized": True,
        "cut": False,
        "inputs": (torch.tensor([[1, 2]]),),
        "outputs": (output,),
    }
    return GoldenSample(**{**whole, **changes})


SPECS = (
    [InputSpec(name="input_ids", dtype="int64", axes=("batch", "length"), pad_value=0)],
    [OutputSpec(name="logits", dtype="float32", axes=("batch", "4"))],
)


def test_samples_are_read_back_as_they_were_packed():
    (read,) = unpack(pack([_sample(pair="y")]), *SPECS)
    assert (read.name, read.text, read.pair, read.tokenized) == ("emoji", "🎉 “x”", "y", True)
    assert torch.equal(read.inputs[0], torch.tensor([[1, 2]]))
    assert torch.equal(read.outputs[0].values, torch.tensor([1.0, float("inf")]))
    assert (read.outputs[0].shape, read.outputs[0].stride) == ((1, 4), 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"stride": 0},
        {"stride": 1},
        {"shape": (1, 9)},
        {"shape": (-1, 4)},
        {"bound": float("inf")},
        {"bound": -1.0},
        {"scale": float("nan")},
        {"values": torch.tensor([[1.0, 2.0]])},
    ],
)
def test_numbers_that_no_conversion_writes_are_refused(changes):
    with pytest.raises(ManifestError, match="golden samples"):
        unpack(pack([_sample(output=changes)]), *SPECS)


def test_pixels_take_half_the_room_where_nothing_is_lost():
    specs = [InputSpec(name="pixel_values", dtype="float32", axes=("batch", "64"), pad_value=None)]
    rounded = torch.rand(1, 64).half().float()
    exact = torch.rand(1, 64)
    for pixels in (rounded, exact):
        (read,) = unpack(pack([_sample(inputs=(pixels,))]), specs, SPECS[1])
        assert read.inputs[0].dtype == torch.float32
        assert torch.equal(read.inputs[0], pixels)
    saved = len(pack([_sample(inputs=(exact,))])) - len(pack([_sample(inputs=(rounded,))]))
    assert saved >= 64 * 2


@pytest.mark.parametrize(("values", "most", "width"), [(10, 100, 10), (1000, 10, 100), (7, 1, 7)])
def test_a_stride_keeps_no_more_than_fit_and_visits_all_columns(values, most, width):
    stride = choose_stride(values, most, width)
    kept = list(range(0, values, stride))
    assert len(kept) <= most
    if stride > 1 and values > stride * width:
        assert {place % width for place in kept} == set(range(width))


# -- a server of the KServe protocol --


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Serve what a function answers to each request, as Triton's HTTP API does."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Any) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answered = answer(self.path, body)
                data = json.dumps(answered).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _serving(model: Any, factor: float = 1.0) -> Any:
    def answer(path: str, body: Any) -> tuple[int, Any]:
        if path != "/v2/models/model/infer":
            return 400, {"error": "Request for unknown model"}
        assert [one["name"] for one in body["inputs"]] == list(model.input_names)
        assert {one["datatype"] for one in body["inputs"]} == {"INT64"}
        tensors = [torch.tensor(one["data"]).reshape(one["shape"]) for one in body["inputs"]]
        outputs = []
        for place, tensor in enumerate(model.forward(tensors)):
            data = (tensor * factor).flatten().tolist()
            name, shape = f"OUTPUT__{place}", list(tensor.shape)
            outputs.append({"name": name, "datatype": "FP32", "shape": shape, "data": data})
        return 200, {"model_name": "model", "outputs": outputs}

    return answer


def test_a_server_is_checked_with_the_same_samples(published, serve, capsys):
    store, folder = published
    model = tracefleet.open(store, folder)
    right, wrong = serve(_serving(model)), serve(_serving(model, 1.01))
    command = ["check", str(store), str(folder), "--triton"]
    assert main([*command, right]) == 0
    assert "all as eager computed them" in capsys.readouterr().out
    assert main([*command, wrong]) == 1
    assert "DIFFERS" in capsys.readouterr().out
    assert main([*command, right, "--triton-model", "other"]) == 1
    assert "Request for unknown model" in capsys.readouterr().err


def test_no_server_and_no_url_are_told(published, capsys):
    store, folder = published
    command = ["check", str(store), str(folder), "--triton"]
    assert main([*command, "http://127.0.0.1:9"]) == 1
    assert "expected a server of the KServe V2 protocol" in capsys.readouterr().err
    assert main([*command, "file:///etc/passwd"]) == 1
    assert "expected a URL such as http://host:8000" in capsys.readouterr().err


def test_a_server_without_the_output_is_no_agreement(published, serve):
    store, folder = published
    url = serve(lambda path, body: (200, {"outputs": []}))
    assert main(["check", str(store), str(folder), "--triton", url]) == 1


def test_a_type_that_json_lacks_is_refused_before_anything_is_sent(published, serve, copied):
    store, folder, manifest = copied
    from tracefleet.published import select
    from tracefleet.store import open_store
    from tracefleet.triton.check import check_server

    outputs = tuple(dataclasses.replace(spec, dtype="bfloat16") for spec in manifest.outputs)
    forge_manifest(store, dataclasses.replace(manifest, outputs=outputs))
    opened = open_store(store)
    with pytest.raises(ValueError, match="bfloat16"):
        check_server(opened, select(opened, folder), "http://127.0.0.1:9", "model")
    assert BackendUnavailableError.__doc__
