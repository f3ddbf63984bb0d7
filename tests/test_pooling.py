"""Sentence embeddings: sentence-transformers' own files, read, computed, converted and opened."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

import tracefleet
from flows.convert import convert
from tasks.errors import (
    NumericsMismatchError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from tasks.model import embedder
from tasks.model.embedder import pool_tokens
from tasks.model.facts import LoadOptions
from tasks.model.load import load_eager
from tasks.model.pooling import MODES, Dense, Pooling, read_pooling
from tasks.model.preflight import inspect
from tasks.request.conversion import make_request
from tests.support import tiny
from tests.support.gate_support import Bench

TASK = "sentence-similarity"
OLD = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
#: Real tokens of each row.
RIGHT = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
LEFT = RIGHT[:, ::-1].copy()


def write(folder, modes=("mean",), kinds=("Transformer", "Pooling"), *, old=True, **pooling):
    """Write modules.json and the pooling's config as sentence-transformers does."""
    listed = []
    for i, kind in enumerate(kinds):
        path = f"{i}_{kind}" if i else ""
        full = f"sentence_transformers.models.{kind}"
        listed.append({"idx": i, "name": str(i), "path": path, "type": full})
    (folder / "modules.json").write_text(json.dumps(listed, indent=2))
    one_or_more = modes[0] if len(modes) == 1 else list(modes)
    config = {"embedding_dimension": 32, "pooling_mode": one_or_more, "include_prompt": True}
    if old:
        flags = {key: mode in modes for mode, key in OLD.items()}
        config = {"word_embedding_dimension": 32, **flags}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps({**config, **pooling}))
    return folder


def write_dense(folder, path, inputs, outputs, *, activation=TANH, bias=True, seed=0, **config):
    """Write a Dense module and return its weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {"linear.weight": torch.randn(outputs, inputs, generator=generator)}
    if bias:
        tensors["linear.bias"] = torch.randn(outputs, generator=generator)
    (folder / path).mkdir()
    sizes = {"in_features": inputs, "out_features": outputs, "bias": bias}
    config = {**sizes, "activation_function": activation, **config}
    (folder / path / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / path / "model.safetensors")
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def pool_row(tokens, mode):
    """One row's real tokens, shape ``(count, width)``, pooled without torch and without a mask."""
    weights = np.arange(1, len(tokens) + 1)[:, None]
    return {
        "cls": lambda: tokens[0],
        "max": lambda: tokens.max(axis=0),
        "mean": lambda: tokens.mean(axis=0),
        "mean_sqrt_len_tokens": lambda: tokens.sum(axis=0) / np.sqrt(len(tokens)),
        "weightedmean": lambda: (tokens * weights).sum(axis=0) / weights.sum(),
        "lasttoken": lambda: tokens[-1],
    }[mode]()


def pool(tokens, mask, modes):
    pooled = []
    for row, shown in zip(tokens, mask, strict=True):
        real = row[shown.astype(bool)]
        pooled.append(np.concatenate([pool_row(real, mode) for mode in modes]))
    return np.stack(pooled)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


# --- the arithmetic ------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [RIGHT, LEFT], ids=["right", "left"])
@pytest.mark.parametrize("modes", [*[(mode,) for mode in MODES], ("mean", "cls", "max"), MODES])
def test_pooling_is_that_of_the_real_tokens_alone(modes, mask):
    tokens = np.random.default_rng(0).standard_normal((3, 5, 7)) - 3  # all maxima are below 0
    got = pool_tokens(torch.from_numpy(tokens), torch.from_numpy(mask), modes)
    np.testing.assert_allclose(got.numpy(), pool(tokens, mask, modes), rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_holes_are_left_out_wherever_they_are(mode):
    tokens, mask = np.random.default_rng(1).standard_normal((1, 5, 4)), np.array([[0, 1, 0, 1, 0]])
    expected = pool(tokens, mask, [mode])
    if mode == "weightedmean":  # weights count positions, as sentence-transformers has it
        expected = (tokens[:, 1] * 1 + tokens[:, 3] * 3) / 4
    got = pool_tokens(torch.from_numpy(tokens), torch.from_numpy(mask), [mode])
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    tokens = torch.full((1, 4096, 1), 1.0, dtype=dtype)
    tokens[0, 0] = 100.0
    got = pool_tokens(tokens, torch.ones(1, 4096, dtype=torch.int64), ["mean"])
    assert got.dtype == dtype
    assert float(got) == float(torch.tensor(4195 / 4096, dtype=dtype))


# --- the files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("old", [True, False])
def test_both_forms_of_the_config_are_read(mode, old, tmp_path):
    assert read_pooling(write(tmp_path, [mode], old=old)) == Pooling(modes=(mode,))


def test_the_old_form_concatenates_in_the_librarys_order_and_the_new_in_its_own(tmp_path):
    """Not in that of the config's keys, where the mean comes before the maximum."""
    assert read_pooling(write(tmp_path, MODES)).modes == MODES
    modes = ("mean", "cls", "max")
    assert read_pooling(write(tmp_path, modes)).modes == ("cls", "max", "mean")
    assert read_pooling(write(tmp_path, modes, old=False)).modes == modes


def test_later_modules_and_new_names_are_read(tmp_path):
    write(tmp_path, kinds=("Transformer", "Pooling", "Dense", "Dense", "Normalize"))
    write_dense(tmp_path, "2_Dense", 32, 64, activation=IDENTITY, bias=False)
    write_dense(tmp_path, "3_Dense", 64, 16)
    text = (tmp_path / "modules.json").read_text()
    text = text.replace("models.Pooling", "sentence_transformer.modules.pooling.Pooling")
    (tmp_path / "modules.json").write_text(text)
    assert read_pooling(tmp_path) == Pooling(
        modes=("mean",),
        dense=(
            Dense(path="2_Dense", inputs=32, outputs=64, bias=False, activation="Identity"),
            Dense(path="3_Dense", inputs=64, outputs=16, bias=True, activation="Tanh"),
        ),
        normalise=True,
    )


@pytest.mark.parametrize(
    ("kinds", "got"),
    [
        (("Transformer",), r"\['Transformer'\]"),
        (("Transformer", "Pooling", "LayerNorm"), "LayerNorm"),
        (("Transformer", "WeightedLayerPooling", "Pooling"), "WeightedLayerPooling"),
        (("Transformer", "Pooling", "Normalize", "Dense"), "Normalize"),
        (("BoW", "Pooling"), "BoW"),
    ],
)
def test_unknown_modules_are_refused_by_name(kinds, got, tmp_path):
    with pytest.raises(UnsupportedCheckpointError, match=rf"modules\.json: expected.*{got}"):
        read_pooling(write(tmp_path, kinds=kinds))


def test_a_checkpoints_own_class_is_no_known_one(tmp_path):
    write(tmp_path)
    text = (tmp_path / "modules.json").read_text()
    text = text.replace("sentence_transformers.models.Transformer", "custom_st.Transformer")
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(UnsupportedCheckpointError, match=r"custom_st\.Transformer"):
        read_pooling(tmp_path)


def test_a_transformer_in_another_folder_is_refused(tmp_path):
    write(tmp_path)
    text = (tmp_path / "modules.json").read_text().replace('"path": ""', '"path": "0_BERT"')
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(UnsupportedCheckpointError, match="0_BERT"):
        read_pooling(tmp_path)


@pytest.mark.parametrize(
    ("pooling", "match"),
    [
        ({"pooling_mode_mean_tokens": False}, r"1_Pooling/config\.json.*none of them"),
        ({"pooling_mode_psychic": True}, "pooling_mode_psychic"),
        ({"pooling_mode": "psychic"}, "psychic"),
        ({"pooling_mode": ["mean", 7]}, "7"),
        ({"pooling_mode": 7}, "got 7"),
        ({"include_prompt": False}, "include_prompt"),
    ],
)
def test_unknown_modes_are_refused_by_name(pooling, match, tmp_path):
    with pytest.raises(UnsupportedCheckpointError, match=match):
        read_pooling(write(tmp_path, **pooling))


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("text", [None, "{", "7", '"text"'])
def test_a_missing_or_damaged_file_is_refused_by_name(name, text, tmp_path):
    write(tmp_path)
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(UnsupportedCheckpointError, match=rf"{name}.*feature-extraction"):
        read_pooling(tmp_path)


def test_a_module_outside_the_checkpoint_is_refused(tmp_path):
    write(tmp_path)
    text = (tmp_path / "modules.json").read_text().replace("1_Pooling", "../1_Pooling")
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(UnsafeCheckpointError, match="outside"):
        read_pooling(tmp_path)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"activation_function": "torch.nn.modules.activation.Softplus"}, "Softplus"),
        ({"activation_function": "os.system"}, r"os\.system"),
        ({"activation_function": None}, "None"),
        ({"use_residual": True}, "use_residual"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
        ({"in_features": 0}, "in_features"),
        ({"out_features": "64"}, "out_features"),
    ],
)
def test_a_dense_module_that_does_more_is_refused(config, match, tmp_path):
    write(tmp_path, kinds=("Transformer", "Pooling", "Dense"))
    write_dense(tmp_path, "2_Dense", 32, 64, **{"activation_function": TANH, **config})
    with pytest.raises(UnsupportedCheckpointError, match=rf"2_Dense.*{match}"):
        read_pooling(tmp_path)


def test_dense_modules_that_do_not_fit_each_other_are_refused(tmp_path):
    write(tmp_path, kinds=("Transformer", "Pooling", "Dense", "Dense"))
    write_dense(tmp_path, "2_Dense", 32, 64)
    write_dense(tmp_path, "3_Dense", 32, 16)
    with pytest.raises(UnsupportedCheckpointError, match=r"3_Dense: expected in_features 64"):
        read_pooling(tmp_path)


# --- a Dense module's weights --------------------------------------------------------------------


@pytest.fixture
def dense_checkpoint(own_checkpoint):
    folder = own_checkpoint("bert")
    write(folder, kinds=("Transformer", "Pooling", "Dense", "Normalize"))
    return folder, write_dense(folder, "2_Dense", 32, 8)


def _load(folder, **options):
    return load_eager(folder, LoadOptions(task=TASK, **options))


@pytest.mark.parametrize(
    "tensors",
    [
        {"linear.weight": torch.ones(8, 31), "linear.bias": torch.ones(8)},
        {"linear.weight": torch.ones(8, 32)},
        {"linear.weight": torch.ones(8, 32), "linear.bias": torch.ones(8), "x": torch.ones(1)},
    ],
)
def test_dense_weights_of_another_shape_are_refused(tensors, dense_checkpoint):
    folder, _ = dense_checkpoint
    save_file(tensors, folder / "2_Dense/model.safetensors")
    with pytest.raises(UnsupportedCheckpointError, match="2_Dense: expected the weights"):
        _load(folder)


def test_damaged_dense_weights_are_refused(dense_checkpoint):
    folder, _ = dense_checkpoint
    path = folder / "2_Dense/model.safetensors"
    nan = {"linear.weight": torch.full((8, 32), float("nan")), "linear.bias": torch.ones(8)}
    save_file(nan, path)
    with pytest.raises(UnsafeCheckpointError, match=r"linear\.weight"):
        _load(folder)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UnsafeCheckpointError, match="2_Dense: expected weights that load"):
        _load(folder)


def test_pickled_dense_weights_load_only_when_allowed(dense_checkpoint):
    folder, weights = dense_checkpoint
    tensors = {name: torch.from_numpy(tensor) for name, tensor in weights.items()}
    torch.save(tensors, folder / "2_Dense/pytorch_model.bin")
    (folder / "2_Dense/model.safetensors").unlink()
    with pytest.raises(UnsafeCheckpointError, match=r"2_Dense.*allow_pickle"):
        _load(folder)
    assert torch.equal(
        _load(folder, allow_pickle=True).dense[0].linear.weight, tensors["linear.weight"]
    )


def test_dense_weights_follow_the_variants_dtype(dense_checkpoint):
    folder, _ = dense_checkpoint
    assert _load(folder, dtype="bfloat16").dense[0].linear.weight.dtype == torch.bfloat16


# --- models that can't be pooled -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["bart", "fnet"])
def test_a_model_without_tokens_to_pool_by_a_mask_is_refused(name, own_checkpoint, tmp_path):
    if name == "fnet":
        folder = tmp_path / "fnet"
        config = transformers.FNetConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=1, intermediate_size=32
        )
        transformers.FNetModel(config).save_pretrained(folder)
    else:
        folder = own_checkpoint(name)
    with pytest.raises(UnsupportedCheckpointError, match="attention_mask to pool by"):
        inspect(write(folder), LoadOptions(task=TASK), (8,))


def test_without_modules_the_task_is_refused_before_weights(checkpoint):
    with pytest.raises(UnsupportedCheckpointError, match=r"modules\.json.*feature-extraction"):
        inspect(checkpoint("bert"), LoadOptions(task=TASK), (8,))


# --- whole conversions ---------------------------------------------------------------------------


def _convert(folder, store, **fields):
    request = make_request(
        {
            "source": f"file://{folder}",
            "task": TASK,
            "lengths": [8, 16],
            "store": f"file://{store}",
            **fields,
        }
    )
    convert(request)
    return tracefleet.open(f"file://{store}", request.source, task=TASK)


def _hidden(model, ids, mask):
    with torch.no_grad():
        feed = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return model(**feed).last_hidden_state.numpy()


def _rows(seed=0, rows=3, length=11):
    """Rows of 4, 7, … tokens, padded on the right."""
    ids = np.random.default_rng(seed).integers(5, 250, (rows, length))
    mask = (np.arange(length) < np.arange(4, 4 + 3 * rows, 3)[:, None]).astype(np.int64)
    return ids, mask


@pytest.mark.parametrize("normalise", [True, False])
def test_bert_with_a_pooling_from_folder_to_reader(normalise, own_checkpoint, tmp_path):
    folder, modes = own_checkpoint("bert"), ("cls", "mean", "lasttoken")
    tail = ("Normalize",) if normalise else ()
    write(folder, modes, kinds=("Transformer", "Pooling", *tail))
    model = _convert(folder, tmp_path / "store")
    assert model.output_names == ("sentence_embedding",)
    assert [spec.axes for spec in model.manifest.outputs] == [("batch", "96")]
    ids, mask = _rows()
    expected = pool(_hidden(tiny.build("bert"), ids, mask), mask, modes)
    expected = unit(expected) if normalise else expected
    got = model(ids, mask)["sentence_embedding"]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    ragged = [list(map(int, row[: shown.sum()])) for row, shown in zip(ids, mask, strict=True)]
    np.testing.assert_allclose(model(ragged)["sentence_embedding"], expected, atol=1e-5)
    assert (np.abs(np.linalg.norm(got, axis=-1) - 1) < 1e-5).all() == normalise


def test_a_projection_from_folder_to_reader(dense_checkpoint, tmp_path):
    folder, dense = dense_checkpoint
    model = _convert(folder, tmp_path / "store")
    ids, mask = _rows(1)
    mean = pool(_hidden(tiny.build("bert"), ids, mask), mask, ["mean"])
    expected = unit(np.tanh(mean @ dense["linear.weight"].T + dense["linear.bias"]))
    np.testing.assert_allclose(model(ids, mask)["sentence_embedding"], expected, atol=1e-5)


def test_sentence_t5_from_folder_to_reader(tmp_path):
    """The encoder alone; a projection without bias or activation; unit length."""
    torch.manual_seed(0)
    config = transformers.T5Config(**tiny.T5, architectures=["T5EncoderModel"])
    eager = transformers.T5EncoderModel(config).eval()
    folder = tmp_path / "st5"
    eager.save_pretrained(folder)
    write(folder, kinds=("Transformer", "Pooling", "Dense", "Normalize"))
    dense = write_dense(folder, "2_Dense", 32, 24, activation=IDENTITY, bias=False)
    model = _convert(folder, tmp_path / "store")
    assert model.input_names == ("input_ids", "attention_mask")
    ids, mask = _rows(2)
    expected = unit(pool(_hidden(eager, ids, mask), mask, ["mean"]) @ dense["linear.weight"].T)
    np.testing.assert_allclose(model(ids, mask)["sentence_embedding"], expected, atol=1e-5)


def test_other_dense_weights_are_another_commit(dense_checkpoint, tmp_path):
    """A projection is part of the checkpoint's identity as much as its transformer."""
    from tasks.fetch.checkpoint import resolve

    folder, _ = dense_checkpoint
    before = resolve(f"file://{folder}")
    assert {"modules.json", "1_Pooling/config.json", "2_Dense/config.json"} <= {
        file.path for file in before.files
    }
    shutil.rmtree(folder / "2_Dense")
    write_dense(folder, "2_Dense", 32, 8, seed=1)
    assert resolve(f"file://{folder}").commit != before.commit


def test_a_list_of_modules_that_is_damaged_does_not_stop_other_tasks(own_checkpoint):
    from tasks.fetch.checkpoint import resolve

    folder = write(own_checkpoint("bert"))
    for text in ("{", "7", "[7]", '[{"type": "x"}]'):
        (folder / "modules.json").write_text(text)
        assert resolve(f"file://{folder}").commit


def test_a_list_of_modules_reaches_no_file_outside(own_checkpoint):
    from tasks.fetch.checkpoint import resolve

    folder = write(own_checkpoint("bert"))
    (folder / "modules.json").write_text('[{"path": "../../secret", "type": "x.Dense"}]')
    with pytest.raises(UnsafeCheckpointError, match=r"modules\.json.*secret"):
        resolve(f"file://{folder}")


def test_the_real_sample_embeds_what_is_alike_alike(sample, tmp_path):
    from tokenizers import Tokenizer

    model = _convert(sample, tmp_path / "store", lengths=[16])
    tokenizer = Tokenizer.from_file(str(sample / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The sky is blue."]
    ids = [tokenizer.encode(text).ids for text in texts]
    got = model(ids)["sentence_embedding"]
    eager = transformers.AutoModel.from_pretrained(sample).eval()
    rows = [_hidden(eager, np.array([row]), np.ones((1, len(row)), np.int64))[0] for row in ids]
    expected = unit(np.stack([row.mean(axis=0) for row in rows]))
    np.testing.assert_allclose(got @ got.T, expected @ expected.T, atol=1e-5)
    alike, unrelated = float(got[0] @ got[1]), float(got[0] @ got[2])
    assert alike == pytest.approx(0.7553, abs=1e-3)  # as sentence-transformers' own examples show
    assert unrelated < 0.2 < alike


# --- the gate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mean", "max", "lasttoken", "weightedmean"])
def test_a_pooling_that_ignores_the_mask_is_caught(mode, own_checkpoint, tmp_path, monkeypatch):
    bench = Bench(folder=write(own_checkpoint("bert"), [mode]), work=tmp_path / "work", task=TASK)
    with monkeypatch.context() as patched:
        patched.setattr(
            embedder,
            "pool_tokens",
            lambda tokens, mask, modes: pool_tokens(tokens, torch.ones_like(mask), modes),
        )
        bundle = bench.trace()
    with pytest.raises(NumericsMismatchError, match=r"right-pad-1 at length 8: sent") as caught:
        bench.validate(bundle)
    report = caught.value.report
    assert report is not None
    failed = {result.name for result in report.probes if not result.difference.passed}
    assert {"traced-input", "right-pad-1", "right-pad-4"} <= failed
    assert not {"fresh-0", "constant-ids"} & failed  # whole rows: there the fault can't show


def test_a_projection_of_other_weights_is_caught(dense_checkpoint, tmp_path):
    folder, _ = dense_checkpoint
    bench = Bench(folder=folder, work=tmp_path / "work", task=TASK, lengths=(8,))

    def corrupt(model):
        model.dense[0].linear.weight.data[0, 0] += 0.5

    bundle = bench.trace(corrupt)
    with pytest.raises(UnsafeCheckpointError, match=r"dense\.0\.linear\.weight"):
        bench.validate(bundle)
    with pytest.raises(NumericsMismatchError, match="sentence_embedding"):
        bench.validate(bundle, bits=False)


def test_every_mode_passes_the_gate_in_half_precision(own_checkpoint, tmp_path):
    folder = write(own_checkpoint("bert"), MODES, kinds=("Transformer", "Pooling", "Normalize"))
    bench = Bench(folder=folder, work=tmp_path, task=TASK, lengths=(8,), dtype="bfloat16")
    report = bench.validate(bench.trace())
    assert report.passed
    assert dataclasses.asdict(bench.outputs[0])["axes"] == ("batch", "192")
