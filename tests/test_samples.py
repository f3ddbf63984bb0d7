"""Images and sounds: sizes from the processor, the gate, and what a consumer gets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import tracefleet
import tracefleet.reader.dispatcher
from flows.convert import convert
from flows.engine.record import Conversion
from tasks.errors import (
    NumericsMismatchError,
    PaddingChangesError,
    RequestError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from tasks.model.facts import LoadOptions
from tasks.model.feeds import input_specs
from tasks.model.preflight import inspect
from tasks.model.samples import sample_arguments
from tasks.request.conversion import make_request
from tests.support import tiny_samples
from tests.support.gate_support import Bench
from tests.support.tiny import edit_config
from tracefleet.manifest_types import OutputSpec
from tracefleet.triton.config import make_config

IMAGES = [name for name in tiny_samples.MODELS if "Image" in tiny_samples.MODELS[name][0]]
SOUNDS = [name for name in tiny_samples.MODELS if name not in IMAGES]
#: Padding changes the outputs of eager itself, whatever the mask is.
LEAKY = "wav2vec2-group-masked"
#: torch's own complaint about WavLM's two kinds of mask.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny checkpoint; read only."""
    root = tmp_path_factory.mktemp("samples")
    return lambda name: tiny_samples.save(name, root)


def _facts(folder: Path, name: str, lengths: tuple[int, ...] | None = None, **options: Any) -> Any:
    load_options = LoadOptions(task=tiny_samples.task_of(name), **options)
    return inspect(folder, load_options, lengths or tiny_samples.lengths_of(name))


# --- sizes: as the checkpoint's own processor makes them -----------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_has_the_size_that_its_processor_makes(name, folder):
    made = tiny_samples.processor(name)(tiny_samples.image(0), return_tensors="np")
    facts = _facts(folder(name), name)
    (pixels,) = facts.arguments
    assert list(made) == [pixels.name]
    assert pixels.axes == ("batch", *map(str, made["pixel_values"].shape[1:]))
    assert not facts.takes_padding


@pytest.mark.parametrize("name", ["ast", "whisper"])
@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def test_features_have_the_size_that_their_extractor_makes(name, folder):
    extractor = tiny_samples.processor(name)
    made = extractor(
        tiny_samples.sound(0, 900), sampling_rate=extractor.sampling_rate, return_tensors="np"
    )
    (features,) = _facts(folder(name), name).arguments
    assert features.axes == ("batch", *map(str, made[features.name].shape[1:]))


def test_sounds_are_padded_where_the_extractor_gives_a_mask(folder):
    (alone,) = _facts(folder("wav2vec2"), "wav2vec2").arguments
    assert (alone.axes, alone.pad) == (("batch", "length"), None)
    values, mask = _facts(folder("wavlm"), "wavlm").arguments
    assert (values.pad, mask.name, mask.pad, mask.fill) == (0, "attention_mask", 0, 1)
    frames, mask = _facts(folder("wav2vec2-bert"), "wav2vec2-bert").arguments
    assert (frames.axes, mask.axes) == (("batch", "length", "16"), ("batch", "length"))


class _Sees:
    def forward(self, pixel_values: Any, labels: Any = None) -> None: ...


class _SeesPatches:
    def forward(self, pixel_values: Any, spatial_shapes: Any) -> None: ...


class _Hears:
    def forward(self, input_features: Any) -> None: ...


class _Reads:
    def forward(self, input_ids: Any) -> None: ...


def _pixels(folder: Path, processor: Any, height: int, **config: Any) -> tuple[str, ...]:
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (one,) = sample_arguments(folder, _Sees, SimpleNamespace(**config), "float32", (height,))
    return one.axes[1:]


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        ({"size": 224, "feature_extractor_type": "ViTFeatureExtractor"}, (224, 224)),
        ({"size": [192, 256]}, (192, 256)),
        ({"size": {"height": 384, "width": 512}, "do_center_crop": None}, (384, 512)),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, (224, 224)),
        ({"size": 256, "crop_size": {"height": 224, "width": 200}}, (224, 200)),
        # Given and not used: BEiT
        ({"size": 384, "crop_size": 224, "do_center_crop": False}, (384, 384)),
        (
            {"size": {"shortest_edge": 384}, "image_processor_type": "ConvNextImageProcessor"},
            (384, 384),
        ),
        # Perceiver's crops first and resizes then.
        (
            {
                "size": 224,
                "crop_size": 256,
                "do_center_crop": True,
                "image_processor_type": "PerceiverImageProcessor",
            },
            (224, 224),
        ),
    ],
)
def test_every_way_of_saying_a_size_is_read(processor, size, tmp_path):
    assert _pixels(tmp_path, processor, size[0]) == ("3", *map(str, size))


def test_without_a_processor_the_size_is_the_models_own(tmp_path):
    assert _pixels(tmp_path, None, 64, image_size=64, num_channels=1) == ("1", "64", "64")


def test_a_combined_processor_comes_first(tmp_path):
    combined = {"image_processor": {"size": {"height": 48, "width": 48}}, "processor_class": "X"}
    (tmp_path / "processor_config.json").write_text(json.dumps(combined))
    assert _pixels(tmp_path, {"size": 224}, 48) == ("3", "48", "48")


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (None, "names no image_size either"),
        ({"size": {"longest_edge": 800}}, "got {'longest_edge': 800}"),
        ({"size": {"height": "tall", "width": 32}}, "expected size or crop_size"),
        ({"size": {"shortest_edge": 640}}, "keeps its own proportions"),
        ({"size": {"shortest_edge": 640, "longest_edge": 800}}, "keeps its own proportions"),
    ],
)
def test_a_missing_size_is_refused(processor, message, tmp_path):
    with pytest.raises(UnsupportedCheckpointError, match=re.escape(message)):
        _pixels(tmp_path, processor, 224)


def test_a_damaged_processor_is_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("version https://git-lfs")
    with pytest.raises(UnsafeCheckpointError, match=r"preprocessor_config\.json: expected JSON"):
        _pixels(tmp_path, None, 224, image_size=224)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_Reads, "pixel_values, input_features or input_values"),
        (_SeesPatches, "sizes of images in unequal patches"),
        (_Hears, "The size of its features is not known"),
    ],
)
def test_a_model_that_needs_something_else_is_refused(kind, message, tmp_path):
    with pytest.raises(UnsupportedCheckpointError, match=message):
        sample_arguments(tmp_path, kind, SimpleNamespace(), "float32", (8,))


@pytest.mark.parametrize(
    ("name", "lengths", "message"),
    [
        ("vit", (224,), r"expected 32 alone.*\(3 × 32 × 32\); got 224"),
        ("vit", (32, 64), "expected 32 alone.*got 32, 64"),
        ("vit-wide", (48,), r"expected 32 alone.*3 × 32 × 48"),
        ("ast", (16,), r"expected 24 alone.*24 × 16"),
        ("whisper", (8,), r"expected 20 alone.*8 × 20"),
        ("wav2vec2", (16, 800), "at least 27 samples.*got 16.*sampling_rate"),
    ],
)
def test_a_length_that_no_input_has_is_refused(name, lengths, message, folder):
    with pytest.raises(RequestError, match=message):
        _facts(folder(name), name, lengths)


def test_a_processor_of_another_size_than_the_model_takes_is_refused(tmp_path):
    checkpoint = tiny_samples.save("vit", tmp_path)
    edit_config(checkpoint, image_size=48)
    (checkpoint / "model.safetensors").unlink()
    transformers.ViTForImageClassification(
        transformers.ViTConfig.from_pretrained(checkpoint)
    ).save_pretrained(checkpoint)
    bench = Bench(
        folder=checkpoint, work=tmp_path / "work", task="image-classification", lengths=(32,)
    )
    with pytest.raises(UnsupportedCheckpointError, match=r"expected eager to run on.*32, 32"):
        bench.trace()


# --- the gate ------------------------------------------------------------------------------------


def _bench(folder: Callable[[str], Path], name: str, work: Path, **options: Any) -> Bench:
    lengths = options.pop("lengths", tiny_samples.lengths_of(name))
    task = tiny_samples.task_of(name)
    return Bench(folder=folder(name), work=work, task=task, lengths=lengths, **options)


@pytest.mark.parametrize("name", [name for name in tiny_samples.MODELS if name != LEAKY])
def test_sound_bundles_pass_the_whole_gate(name, folder, tmp_path):
    bench = _bench(folder, name, tmp_path)
    report = bench.validate(bench.trace())
    assert report.passed
    masked = "attention_mask" in bench.facts.inputs
    assert report.negative_controls == ("wrong-weight", *(["dropped-mask"] if masked else []))
    assert [v.length for v in report.lengths()] == list(bench.lengths)
    assert all(v.max_rel_error <= 1e-5 and v.probes >= 12 for v in report.lengths())
    assert [spec.axes for spec in bench.outputs] == [("batch", "3")]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["vit", "resnet", "wavlm"])
def test_half_precision_takes_inputs_of_its_own_dtype(name, dtype, folder, tmp_path):
    bench = _bench(folder, name, tmp_path, dtype=dtype)
    assert bench.validate(bench.trace()).passed
    assert input_specs(bench.facts)[0].dtype == dtype
    assert {spec.dtype for spec in bench.outputs} == {dtype}


@pytest.mark.parametrize("lengths", [(400, 800), (404, 804)])  # 403 samples make as many frames
def test_padding_that_leaks_past_the_mask_is_found(lengths, folder, tmp_path):
    bench = _bench(folder, LEAKY, tmp_path, lengths=lengths)
    bench.trace()
    with pytest.raises(PaddingChangesError, match="padding on the right changes"):
        bench.reference()


def _failures(bench: Bench, corrupt: Callable[[Any], None]) -> set[str]:
    """Plant a fault in what is traced and return the probes that caught it."""
    with pytest.raises(NumericsMismatchError) as caught:
        bench.validate(bench.trace(corrupt), bits=False)
    assert caught.value.report is not None
    return {p.name for p in caught.value.report.probes if not p.difference.passed}


def _before(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], None]:
    """Let a model see one of its inputs changed."""

    def corrupt(model: Any) -> None:
        forward = model.forward
        model.forward = lambda **feed: forward(**{**feed, name: change(feed[name])})

    return corrupt


@pytest.mark.parametrize(
    "change",
    [lambda x: x.transpose(2, 3), lambda x: x.flip(1), lambda x: x.clamp(-2, 2)],
    ids=["rows-for-columns", "blue-for-red", "clipped"],
)
@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_pixels_in_another_order_are_caught(name, change, folder, tmp_path):
    failed = _failures(_bench(folder, name, tmp_path), _before("pixel_values", change))
    assert {"traced-input", "fresh-0", "dispatch-32", "batch-3"} <= failed


def test_a_corrupted_weight_is_caught(folder, tmp_path):
    def corrupt(model: Any) -> None:
        model.classifier[-1].weight.data[1] *= 1.5

    failed = _failures(_bench(folder, "resnet", tmp_path / "numbers"), corrupt)
    assert {"traced-input", "fresh-0"} <= failed
    bench = _bench(folder, "resnet", tmp_path / "bits")
    with pytest.raises(UnsafeCheckpointError, match=r"classifier\.1\.weight"):
        bench.validate(bench.trace(corrupt))


def test_batch_statistics_in_place_of_the_learned_ones_are_caught(folder, tmp_path):
    def corrupt(model: Any) -> None:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean = module.running_var = None

    failed = _failures(_bench(folder, "resnet", tmp_path), corrupt)
    assert {"traced-input", "batch-3"} <= failed


def test_a_mask_that_is_not_heeded_is_caught(folder, tmp_path):
    failed = _failures(
        _bench(folder, "wavlm", tmp_path), _before("attention_mask", torch.ones_like)
    )
    assert {"right-pad-300", "right-pad-600", "dispatch-600"} <= failed
    assert "fresh-0" not in failed


def test_a_bundle_that_takes_images_of_another_size_is_caught(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tracefleet.reader.dispatcher, "write_shape_checks", lambda _: [])
    bench = _bench(folder, "resnet", tmp_path)
    with pytest.raises(NumericsMismatchError, match=r"\(1, 3, 32, 31\) to be refused"):
        bench.validate(bench.trace())


def test_triton_is_told_the_fixed_sizes_and_the_dtype(folder):
    specs = input_specs(_facts(folder("vit-wide"), "vit-wide", dtype="float16"))
    logits = OutputSpec(name="logits", dtype="float16", axes=("batch", "3"))
    assert make_config(specs, (logits,), (1,)).splitlines()[3:5] == [
        'input [ { name: "pixel_values" data_type: TYPE_FP16 dims: [ 3, 32, 48 ] } ]',
        'output [ { name: "logits" data_type: TYPE_FP16 dims: [ 3 ] } ]',
    ]
    specs = input_specs(_facts(folder("wavlm"), "wavlm"))
    assert make_config(specs, (), (1,)).splitlines()[3:5] == [
        'input [ { name: "input_values" data_type: TYPE_FP32 dims: [ -1 ] } ]',
        'input [ { name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] } ]',
    ]


# --- the whole way through: convert, store, open, call -------------------------------------------


class _Fleet:
    """Whole conversions of tiny checkpoints, each made once."""

    def __init__(self, folder: Callable[[str], Path], root: Path) -> None:
        self._folder, self._root = folder, root
        self._made: dict[str, Conversion] = {}

    def convert(self, name: str, **fields: Any) -> Conversion:
        if name not in self._made:
            request = {
                "source": f"file://{self._folder(name)}",
                "lengths": list(tiny_samples.lengths_of(name)),
                "store": f"file://{self._root / name}",
                "threads": 1,
            }
            self._made[name] = convert(make_request({**request, **fields}))
        return self._made[name]

    def open(self, name: str, **fields: Any) -> tracefleet.Model:
        manifest = self.convert(name, **fields).manifest
        return tracefleet.open(f"file://{self._root / name}", manifest.source)

    def published(self, name: str) -> Path:
        (manifest,) = (self._root / name).rglob("manifest.json")
        return manifest.parent

    def eager(self, name: str) -> Any:
        """The model as anybody else would load it: by transformers alone."""
        auto = (
            transformers.AutoModelForImageClassification
            if tiny_samples.task_of(name) == "image-classification"
            else transformers.AutoModelForAudioClassification
        )
        return auto.from_pretrained(self._folder(name)).eval()


@pytest.fixture(scope="module")
def fleet(folder, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("fleet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACEFLEET_CACHE", str(root / "cache"))
        patch.setenv("HF_HOME", str(root / "hf"))
        yield _Fleet(folder, root)


def _logits(eager: Any, **feed: Any) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = eager(**feed).logits.numpy()
        return logits


def test_an_image_classifier_from_the_checkpoint_to_the_answer(fleet):
    result = fleet.convert("vit")
    assert result.manifest.variant.task == "image-classification"  # as the checkpoint names it
    assert [file.path for file in result.manifest.files] == [
        "model/1/model.pt",
        "model/config.json",
        "model/config.pbtxt",
        "model/preprocessor_config.json",
    ]
    published = fleet.published("vit") / "model"
    assert "dims: [ 3, 32, 32 ]" in (published / "config.pbtxt").read_text()
    # A consumer makes the pixels with what is published beside the bundle.
    processor = transformers.ViTImageProcessorPil.from_pretrained(published)
    images = [tiny_samples.image(seed) for seed in range(3)]
    pixels = processor(images, return_tensors="np")["pixel_values"]
    expected = _logits(fleet.eager("vit"), pixel_values=torch.tensor(pixels))
    model = fleet.open("vit")
    np.testing.assert_allclose(model(pixel_values=pixels)["logits"], expected, atol=1e-5)
    one = model(pixel_values=torch.tensor(pixels[1])).logits
    np.testing.assert_allclose(one.numpy(), expected[1:2], atol=1e-5)
    double = model(pixel_values=pixels.astype("float64").tolist())["logits"]
    np.testing.assert_allclose(double, expected, atol=1e-5)
    exact = model.exact(32, torch.tensor(pixels[:1])).logits
    np.testing.assert_allclose(exact.numpy(), expected[:1], atol=1e-5)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((1, 3, 32, 31), "float32"), r"expected shape \(batch, 3, 32, 32\).*32, 31"),
        (np.zeros((1, 1, 32, 32), "float32"), r"expected shape \(batch, 3, 32, 32\)"),
        (np.zeros((1, 32, 32, 3), "float32"), r"expected shape \(batch, 3, 32, 32\)"),
        (np.zeros((32, 32), "float32"), "or one row without its batch axis"),
        (np.zeros((0, 3, 32, 32), "float32"), "at least one row"),
        (np.zeros((1, 3, 32, 32), "uint8"), "expected real numbers.*got uint8.*processor first"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), r"expected real numbers.*torch\.int64"),
        (np.zeros((1, 3, 32, 32), "complex64"), "expected real numbers"),
        (np.zeros((1, 3, 32, 32), bool), "expected real numbers"),
        (None, "this conversion needs it"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(pixels, message, fleet):
    with pytest.raises(ValueError, match=message):
        fleet.open("vit")(pixel_values=pixels)


def test_ids_given_to_an_image_classifier_are_refused(fleet):
    with pytest.raises(ValueError, match=r"unknown inputs \['input_ids'\].*pixel_values"):
        fleet.open("vit")([[1, 2, 3]])


def test_the_bundle_itself_refuses_an_image_of_another_size(fleet):
    """C++ and Triton have no reader in front of it."""
    module = torch.jit.load(fleet.published("vit") / "model/1/model.pt")
    with pytest.raises(torch.jit.Error, match="pixel_values: expected shape"):
        module(torch.zeros(1, 3, 32, 31))
    with pytest.raises(torch.jit.Error, match="forward_32: pixel_values expected shape"):
        module.forward_32(torch.zeros(2, 3, 32, 32))


def test_sounds_of_any_length_with_a_mask(fleet):
    model, eager = fleet.open("wavlm"), fleet.eager("wavlm")
    assert model.input_names == ("input_values", "attention_mask")
    for samples in (300, 400, 401, 799):
        sound = tiny_samples.sound(samples, samples)
        expected = _logits(eager, input_values=torch.tensor(sound[None]))
        np.testing.assert_allclose(model(input_values=sound)["logits"], expected, atol=1e-5)
    batch = tiny_samples.processor("wavlm")(
        [tiny_samples.sound(1, 500), tiny_samples.sound(2, 700)],
        sampling_rate=16000,
        padding=True,
        return_tensors="np",
    )
    expected = _logits(eager, **{name: torch.tensor(value) for name, value in batch.items()})
    np.testing.assert_allclose(model(**batch)["logits"], expected, atol=1e-5)
    with pytest.raises(tracefleet.InputTooLongError, match="801"):
        model(input_values=tiny_samples.sound(0, 801))


@pytest.mark.parametrize("name", ["wav2vec2", LEAKY])
def test_sounds_that_can_not_be_padded_run_at_their_own_length(name, fleet):
    """Without a mask; and where padding changes eager itself, whatever its mask is."""
    model, eager = fleet.open(name), fleet.eager(name)
    assert {spec.pad_value for spec in model.manifest.inputs} == {None}
    assert ("attention_mask" in model.input_names) == (name == LEAKY)
    sounds = np.stack([tiny_samples.sound(seed, 800) for seed in range(2)])
    feed = {"input_values": torch.tensor(sounds)}
    if name == LEAKY:
        feed["attention_mask"] = (torch.arange(800) < torch.tensor([[800], [620]])).long()
    expected = _logits(eager, **feed)
    np.testing.assert_allclose(model(**feed).logits.numpy(), expected, atol=1e-5)
    shorter = {key: value[:, :700] for key, value in feed.items()}
    expected = _logits(eager, **shorter)
    np.testing.assert_allclose(model(**shorter).logits.numpy(), expected, atol=1e-5)
    with pytest.raises(ValueError, match="expected at least 400, got 300"):
        model(input_values=sounds[:, :300])
    module = torch.jit.load(fleet.published(name) / "model/1/model.pt")
    with pytest.raises(torch.jit.Error, match="exactly one of the lengths 400, 800, got 300"):
        module(*[value[:, :300] for value in feed.values()])


def test_from_a_hub_with_its_processor(hub, folder, tmp_path):
    """Features in float16: the request's dtype is the input's."""
    files = {path.name: path.read_bytes() for path in folder("whisper").iterdir()}
    hub.push(files)
    store = tmp_path / "store"
    fields = {"lengths": [20], "store": f"file://{store}", "dtype": "float16"}
    manifest = convert(make_request({"source": "hf://acme/tiny", **fields})).manifest
    assert manifest.variant.task == "audio-classification"
    (published,) = store.rglob("preprocessor_config.json")
    assert published.read_bytes() == files["preprocessor_config.json"]
    model = tracefleet.open(store, "hf://acme/tiny")
    eager = transformers.WhisperForAudioClassification.from_pretrained(
        folder("whisper"), dtype=torch.float16
    ).eval()
    features = np.random.default_rng(0).standard_normal((2, 8, 20)).astype("float32")
    expected = _logits(eager, input_features=torch.tensor(features).half())
    answer = model(input_features=features)["logits"]
    assert answer.dtype == np.float16
    np.testing.assert_allclose(answer, expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("name", ["vit", "wav2vec2"])
def test_labels_of_images_and_sounds_are_those_of_the_pipeline(name: str, fleet, folder):
    model, task = fleet.open(name), tiny_samples.task_of(name)
    given: Any = tiny_samples.image(3)
    if task == "image-classification":
        given = Image.fromarray(given)
        inputs = tiny_samples.processor(name)(given, return_tensors="np")
    else:
        given = tiny_samples.sound(3, 800)
        inputs = tiny_samples.processor(name)(given, sampling_rate=16_000, return_tensors="np")
    asked = transformers.pipeline(task, model=str(folder(name)), device="cpu")
    expected = asked(given, top_k=2)
    [answer] = model.predict(**inputs, top_k=2)
    assert [one["label"] for one in answer] == [one["label"] for one in expected]
    for one, other in zip(answer, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=2e-5)
    assert len(model.predict(**inputs)[0]) == 3
    with pytest.raises(ValueError, match="expected"):
        model.predict(**inputs, top_k=0)
