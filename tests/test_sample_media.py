"""Real pictures and sounds: what they hold, and what each kind of processor makes of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tasks.model.facts import LoadOptions, ModelFacts
from tasks.model.preflight import inspect
from tasks.samples.errors import NoSamples
from tasks.samples.media import load_photograph, load_speech, make_drawing, make_music
from tasks.samples.processed import process_media
from tests.support import tiny_samples

DATA = Path(__file__).parent.parent / "tasks/samples/data"
IMAGES = [name for name in tiny_samples.MODELS if "Image" in tiny_samples.MODELS[name][0]]
SOUNDS = [name for name in tiny_samples.MODELS if name not in IMAGES]
#: Types whose processors are others than those of ``tiny_samples``: made beside these models.
CLIP = {
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    },
    "num_labels": 3,
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values"),
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny checkpoint; read only."""
    root = tmp_path_factory.mktemp("media")
    return lambda name: tiny_samples.save(name, root)


def facts_of(
    folder: Path, name: str, lengths: tuple[int, ...] | None = None, dtype: str = "float32"
) -> ModelFacts:
    options = LoadOptions(task=tiny_samples.task_of(name), dtype=dtype)
    return inspect(folder, options, lengths or tiny_samples.lengths_of(name))


def process(folder: Path, name: str) -> Any:
    return process_media(folder, facts_of(folder, name), tiny_samples.lengths_of(name))


# --- the media themselves ------------------------------------------------------------------------


def test_the_files_are_small_and_described():
    files = {path.name: path.stat().st_size for path in DATA.iterdir()}
    described = (DATA / "README.md").read_text("utf-8")
    assert sum(files.values()) < 20_000
    assert files.keys() - {"README.md"} == {"photograph.jpg", "speech.wav"}
    for name in files.keys() - {"README.md"}:
        part = described.split(f"## {name}")[1].split("\n## ")[0]
        assert all(word in part for word in ("Source:", "Author:", "Licence:", "Made with"))


def count_colours(picture: Any) -> int:
    return len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0))


def test_a_photograph_has_many_shades_and_a_drawing_few():
    photograph, drawing = load_photograph(), make_drawing()
    assert photograph.mode == drawing.mode == "RGB"
    assert count_colours(photograph) > 3000
    assert 4 <= count_colours(drawing) <= 8
    assert drawing.tobytes() == make_drawing().tobytes()


def test_a_drawing_has_thin_lines_and_flat_areas():
    drawing = np.asarray(make_drawing()).astype(int)
    steps = np.abs(np.diff(drawing, axis=1)).sum(2)
    assert (steps == 0).mean() > 0.8
    assert (steps > 500).mean() > 0.03


@pytest.mark.parametrize("rate", [1600, 8000, 16000, 44100])
@pytest.mark.parametrize("make", [load_speech, make_music])
def test_a_sound_lasts_a_second_at_any_rate(make, rate):
    sound = make(rate)
    assert (sound.dtype, sound.shape) == (np.float32, (rate,))
    assert 0.9 < np.abs(sound).max() <= 1
    np.testing.assert_array_equal(sound, make(rate))


def test_speech_is_interpolated_linearly():
    recorded, doubled = load_speech(8000), load_speech(16000)
    np.testing.assert_array_equal(doubled[::2], recorded)
    middle = (recorded[:-1] + recorded[1:]) / 2
    np.testing.assert_allclose(doubled[1:-1:2], middle, atol=1e-7)


def test_speech_has_pauses_and_noise_and_music_has_lines():
    speech, music = load_speech(8000), make_music(8000)
    loudness = np.sqrt((speech.reshape(40, 200) ** 2).mean(1))
    assert loudness.max() > 20 * loudness.min()
    spectrum = np.abs(np.fft.rfft(music * np.hanning(8000)))
    for harmonic in (220, 440, 277, 554):
        assert spectrum[harmonic] > 20 * np.median(spectrum)
    strongest = np.sort(spectrum)[-80:].sum() / spectrum.sum()
    assert strongest > 0.4
    noise = np.abs(np.fft.rfft(speech * np.hanning(8000)))
    assert np.sort(noise)[-80:].sum() / noise.sum() < 0.25


# --- what processors make of them ----------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_pictures_become_pixels_of_the_models_own_size(name, folder):
    facts = facts_of(folder(name), name)
    feeds = process(folder(name), name)
    assert list(feeds) == ["photograph", "drawing"]
    for feed in feeds.values():
        assert tuple(feed) == facts.inputs
        (pixels,) = feed.values()
        assert ("1", *map(str, pixels.shape[1:])) == ("1", *facts.arguments[0].axes[1:])
        assert (pixels.shape[0], pixels.dtype) == (1, torch.float32)
        assert torch.equal(pixels, pixels.half().float())
    assert not torch.equal(*(feed["pixel_values"] for feed in feeds.values()))


@pytest.mark.parametrize("name", IMAGES)
def test_pixels_are_the_processors_own_to_half_precision(name, folder):
    own = tiny_samples.processor(name)(images=load_photograph(), return_tensors="np")
    feed = process(folder(name), name)["photograph"]
    expected = own["pixel_values"].astype("float16").astype("float32")
    np.testing.assert_array_equal(feed["pixel_values"].numpy(), expected)


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_become_what_the_model_hears(name, folder):
    facts = facts_of(folder(name), name)
    feeds = process(folder(name), name)
    assert list(feeds) == ["speech", "music"]
    for feed in feeds.values():
        assert tuple(feed) == facts.inputs
        values = feed[facts.inputs[0]]
        assert (values.shape[0], values.dtype) == (1, torch.float32)
        if facts.varies_in_length:
            assert values.shape[1] == max(tiny_samples.lengths_of(name))
        if "attention_mask" in feed:
            assert feed["attention_mask"].dtype == torch.int64
            assert feed["attention_mask"].shape == values.shape[:2]
    first = facts.inputs[0]
    assert not torch.equal(feeds["speech"][first], feeds["music"][first])


@pytest.mark.parametrize("name", [*IMAGES, *SOUNDS])
def test_the_model_runs_on_them(name, folder):
    model = tiny_samples.build(name)
    with torch.no_grad():
        for feed in process(folder(name), name).values():
            assert bool(model(**feed).logits.isfinite().all())


@pytest.mark.parametrize("name", ["whisper", "ast"])
def test_features_are_the_extractors_own(name, folder):
    extractor = tiny_samples.processor(name)
    rate = extractor.sampling_rate
    own = extractor(load_speech(rate), sampling_rate=rate, return_tensors="np")
    feed = process(folder(name), name)["speech"]
    (values,) = feed.values()
    np.testing.assert_array_equal(values.numpy(), own[next(iter(feed))])


def test_raw_sound_is_normalised_as_the_model_gets_it(folder):
    feed = process(folder("wav2vec2"), "wav2vec2")["speech"]
    values = feed["input_values"]
    assert values.shape == (1, 800)
    assert float(values.mean()) == pytest.approx(0, abs=1e-4)
    assert float(values.std()) == pytest.approx(1, abs=0.02)


def test_a_second_that_is_shorter_than_every_length_is_taken_whole(folder):
    facts = facts_of(folder("wavlm"), "wavlm", (20_000, 40_000))
    feed = process_media(folder("wavlm"), facts, (20_000, 40_000))["music"]
    assert feed["input_values"].shape == feed["attention_mask"].shape == (1, 16_000)
    assert bool((feed["attention_mask"] == 1).all())


def test_an_exact_length_is_the_largest_that_a_second_fills(folder):
    facts = facts_of(folder("wav2vec2"), "wav2vec2", (800, 40_000))
    feed = process_media(folder("wav2vec2"), facts, (800, 40_000))["music"]
    assert feed["input_values"].shape == (1, 800)
    with pytest.raises(NoSamples, match=r"16000 positions, .* shortest standard length is 20000"):
        process_media(folder("wav2vec2"), facts, (20_000, 40_000))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_are_of_the_variants_dtype(dtype, folder):
    for name in ("vit", "wavlm"):
        facts = facts_of(folder(name), name, dtype=dtype)
        for feed in process_media(folder(name), facts, tiny_samples.lengths_of(name)).values():
            assert feed[facts.inputs[0]].dtype == getattr(torch, dtype)


def test_clip_crops_and_hubert_hears(tmp_path, folder):
    seen = tmp_path / "clip"
    kind = transformers.CLIPForImageClassification
    kind(transformers.CLIPConfig(**CLIP)).save_pretrained(seen)
    sizes = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessorPil(**sizes).save_pretrained(seen)
    facts = inspect(seen, LoadOptions(task="image-classification"), (32,))
    assert process_media(seen, facts, (32,))["drawing"]["pixel_values"].shape == (1, 3, 32, 32)

    heard = tmp_path / "hubert"
    config = transformers.HubertConfig(**tiny_samples._SPEECH, feat_extract_norm="group")
    transformers.HubertForSequenceClassification(config).save_pretrained(heard)
    tiny_samples.processor("wav2vec2").save_pretrained(heard)
    facts = inspect(heard, LoadOptions(task="audio-classification"), (400, 800))
    assert process_media(heard, facts, (400, 800))["speech"]["input_values"].shape == (1, 800)


def test_a_processor_inside_a_combined_file_is_found(tmp_path, folder):
    for name, part in (("vit", "image_processor"), ("wavlm", "feature_extractor")):
        copied = tmp_path / name
        shutil.copytree(folder(name), copied)
        own = json.loads((copied / "preprocessor_config.json").read_text())
        (copied / "preprocessor_config.json").unlink()
        (copied / "processor_config.json").write_text(json.dumps({part: own}))
        again, before = process(copied, name), process(folder(name), name)
        for sample, feed in again.items():
            assert all(torch.equal(feed[key], before[sample][key]) for key in feed)


# --- where there are none ------------------------------------------------------------------------


def reason_of(folder: Path, facts: ModelFacts, lengths: tuple[int, ...]) -> str:
    with pytest.raises(NoSamples) as caught:
        process_media(folder, facts, lengths)
    reason = caught.value.reason
    assert reason == str(caught.value)
    assert "\n" not in reason
    assert str(folder) not in reason
    assert str(folder.parent) not in reason
    return reason


@pytest.fixture
def copied(tmp_path: Path, folder: Callable[[str], Path]) -> Path:
    return Path(shutil.copytree(folder("vit"), tmp_path / "vit"))


def change(folder: Path, **fields: Any) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_without_a_processor_there_are_none(copied):
    facts = facts_of(copied, "vit")
    (copied / "preprocessor_config.json").unlink()
    assert "OSError" in reason_of(copied, facts, (32,))


def test_a_damaged_processor_makes_none(copied):
    facts = facts_of(copied, "vit")
    (copied / "preprocessor_config.json").write_text("{")
    assert "preprocessor" in reason_of(copied, facts, (32,))


def test_a_processor_that_needs_torchvision_makes_none(copied):
    facts = facts_of(copied, "vit")
    change(copied, image_processor_type="Sam3ImageProcessor")
    assert "torchvision" in reason_of(copied, facts, (32,)).lower()


def test_a_processor_of_another_size_makes_none(copied):
    facts = facts_of(copied, "vit")
    change(copied, size={"height": 48, "width": 32})
    expected = "pixel_values of shape (1, 3, 48, 32), and the model takes (1, 3, 32, 32)"
    assert expected in reason_of(copied, facts, (32,))


def test_a_processor_that_divides_by_zero_makes_none(copied):
    facts = facts_of(copied, "vit")
    change(copied, image_std=[0.0, 0.0, 0.0])
    with np.errstate(all="ignore"):
        assert "not finite" in reason_of(copied, facts, (32,))


def test_remote_code_is_not_run_without_trust(copied):
    facts = facts_of(copied, "vit")
    change(copied, image_processor_type="Own", auto_map={"AutoImageProcessor": "own.Own"})
    (copied / "own.py").write_text("raise SystemExit('was run')")
    assert "custom code" in reason_of(copied, facts, (32,))


def test_a_model_of_other_inputs_gets_none(folder):
    facts = facts_of(folder("vit"), "vit")
    (pixels,) = facts.arguments
    ids = dataclasses.replace(pixels, name="input_ids")
    reads = dataclasses.replace(facts, arguments=(ids,))
    assert "takes input_ids, neither pixels nor sound" in reason_of(folder("vit"), reads, (32,))


def test_an_input_that_the_processor_does_not_make_is_named(folder):
    facts = facts_of(folder("vit"), "vit")
    (pixels,) = facts.arguments
    more = dataclasses.replace(facts, arguments=(pixels, dataclasses.replace(pixels, name="depth")))
    assert "makes pixel_values, and no depth" in reason_of(folder("vit"), more, (32,))
