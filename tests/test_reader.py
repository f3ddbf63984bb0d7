"""The reader: nothing unchecked is loaded, and a call takes what callers have."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tracefleet
from tests.support.reader_support import (
    LENGTHS,
    SEQ2SEQ,
    SOURCE,
    VOCABULARY,
    entry,
    example_manifest,
    flip_byte,
    path_in,
    publish,
    tiny_bundle,
    tiny_seq2seq_bundle,
)
from tracefleet import (
    ArtifactError,
    BackendUnavailableError,
    DigestMismatchError,
    InputTooLongError,
    ManifestError,
    Model,
    NoSuchVariantError,
    Outputs,
    Run,
    StoreError,
    Variant,
)
from tracefleet.canonical import canonical_json
from tracefleet.channel import advance, channel_folder, conversion_folder, source_slug
from tracefleet.manifest_types import General
from tracefleet.store.folder import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(root=tmp_path / "store")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    store = FileStore(root=tmp_path_factory.mktemp("store"))
    publish(store)
    return tracefleet.open(store, SOURCE)


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> Model:
    store = FileStore(root=tmp_path_factory.mktemp("store"))
    publish(store, bundle=tiny_seq2seq_bundle(), **SEQ2SEQ)
    return tracefleet.open(store, SOURCE)


@pytest.fixture
def never_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        pytest.fail("torch saw bytes that were not checked")

    monkeypatch.setattr(torch.jit, "load", load)


# Choosing


def test_one_conversion_opens_by_source_and_by_slug_and_from_url_path_or_store(store: FileStore):
    manifest = publish(store)
    for where in (store, store.url, store.root, str(store.root)):
        for source in (SOURCE, source_slug(SOURCE)):
            opened = tracefleet.open(where, source)
            assert opened.manifest == manifest == tracefleet.load_manifest(where, source)
    assert opened.lengths == LENGTHS
    assert opened.input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert opened.output_names == ("last_hidden_state", "pooler_output")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and home with two folders."""
    for name in ("models/bert", "models/other"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def spelt(here: Path) -> list[str | Path]:
    """The ways to write the folder ``models/bert``."""
    url = f"file://{here}/models/bert"
    return [
        url, f"{url}/", f"file://{here}//models/./bert", "file://./models/bert",
        "file://~/models/bert/", f"{here}/models/bert", "./models/bert/", "models/bert",
        "~/models/bert", "models/../models//bert", here / "models" / "bert", Path("models/bert"),
    ]  # fmt: skip


def test_a_folder_opens_however_it_is_written(store: FileStore, here: Path):
    manifest = publish(store, source=f"file://{here}/models/bert")
    for name in spelt(here):
        assert tracefleet.load_manifest(store, name) == manifest
    assert tracefleet.open(store, "./models/bert").manifest == manifest
    assert [one.slug for one in tracefleet.find(store, "~/models/bert")] == [
        source_slug(manifest.source)
    ]
    for other in ("models/other", "./models", "./bert", here / "models/other", "./models/bert@1"):
        with pytest.raises(NoSuchVariantError, match=r"read as file:///.*; looked for file"):
            tracefleet.load_manifest(store, other)
        assert list(tracefleet.find(store, other)) == []


def test_a_name_of_the_hub_opens_without_its_scheme_but_where_a_folder_has_it(
    store: FileStore, here: Path
):
    manifest = publish(store)
    bare = SOURCE.removeprefix("hf://")
    for name in (bare, f"{bare}/", SOURCE, f"{SOURCE}/"):
        assert tracefleet.load_manifest(store, name) == manifest
    for path in (f"./{bare}", Path(bare), f"/{bare}"):
        with pytest.raises(NoSuchVariantError, match="read as file:///"):
            tracefleet.load_manifest(store, path)
    (here / bare).mkdir(parents=True)
    with pytest.raises(NoSuchVariantError, match=f"read as file://{here}/{bare}; looked for file"):
        tracefleet.load_manifest(store, bare)
    assert tracefleet.load_manifest(store, SOURCE) == manifest


@pytest.mark.parametrize(
    ("published", "names"),
    [
        # Programs of one's own may have published under any text.
        ("file://./models/bert", ["file://./models/bert", "./models/bert"]),
        ("file://{here}/models/bert/", ["file://{here}/models/bert/", "./models/bert"]),
        ("file://{here}//models/bert", ["file://{here}//models/bert"]),
        ("hf://acme/tiny/", ["hf://acme/tiny/", "acme/tiny/"]),
        ("s3://bucket//tiny", ["s3://bucket//tiny"]),
        ("gs://bucket/tiny", ["gs://bucket/tiny"]),
        # A folder that had the three characters in its name, and one that has a space.
        ("file://{here}/a%20b", ["file://{here}/a%20b", "./a%20b"]),
        ("file://{here}/a b", ["file://{here}/a%20b", "file://{here}/a b", "./a b"]),
        # A writer behind a link knows its working directory without it.
        ("file://{here}/models/bert", ["link/bert", "file://{here}/link/bert/"]),
    ],
)  # fmt: skip
def test_what_is_published_under_another_spelling_is_found(
    store: FileStore, here: Path, published: str, names: list[str]
):
    (here / "link").symlink_to(here / "models")
    manifest = publish(store, source=published.format(here=here))
    for name in names:
        assert tracefleet.load_manifest(store, name.format(here=here)) == manifest
    for other in ("models/other", "./link/other", f"file://{here}/a%20c", "acme/tiny2", "./a  b"):
        with pytest.raises(NoSuchVariantError):
            tracefleet.load_manifest(store, other)


def test_of_two_spellings_the_normalised_one_counts_where_it_has_what_fits(
    store: FileStore, here: Path
):
    normal = f"file://{here}/models/bert"
    old = publish(store, source=f"{normal}/")
    new = publish(store, source=normal, channel="candidate")
    assert tracefleet.load_manifest(store, f"{normal}/") == old, "the other has no latest"
    assert tracefleet.load_manifest(store, f"{normal}/", channel="candidate") == new
    (candidate,) = tracefleet.find(store, normal)
    assert candidate.slug == source_slug(normal)
    assert list(tracefleet.find(store, normal, after=candidate.folder)) == [], "no other's page"
    newest = publish(store, source=normal)
    assert tracefleet.load_manifest(store, f"{normal}/") == newest
    with pytest.raises(NoSuchVariantError, match=r"channel candidate.*channel latest.*latest"):
        tracefleet.load_manifest(store, normal, channel="stable")


def test_each_filter_tells_variants_apart(store: FileStore):
    variants = [
        Variant(task="feature-extraction"),
        Variant(task="fill-mask"),
        Variant(task="fill-mask", dtype="float16"),
        Variant(task="fill-mask", dtype="float16", batch=8),
        Variant(task="fill-mask", backend="neuronx"),
    ]
    for variant in variants:
        publish(store, variant=variant)
    for variant in variants:
        found = tracefleet.load_manifest(
            store,
            SOURCE,
            task=variant.task,
            backend=variant.backend,
            dtype=variant.dtype,
            batch=variant.batch,
        )
        assert found.variant == variant
    assert tracefleet.open(store, SOURCE, task="feature-extraction").manifest.variant == variants[0]


def test_several_that_fit_are_listed_with_what_to_add(store: FileStore):
    publish(store, variant=Variant(task="fill-mask"))
    publish(store, variant=Variant(task="fill-mask", dtype="float16"))
    publish(store, variant=Variant(task="fill-mask", backend="neuronx"))
    message = r"got 2: fill-mask\.jit\.float16\.b1, fill-mask\.jit\.float32\.b1\. Add dtype\."
    with pytest.raises(NoSuchVariantError, match=message):
        tracefleet.open(store, SOURCE)


def test_none_that_fits_lists_what_is_there(store: FileStore):
    publish(store)
    with pytest.raises(NoSuchVariantError, match=r"task=fill-mask.*holds feature-extraction\.jit"):
        tracefleet.open(store, SOURCE, task="fill-mask")
    with pytest.raises(NoSuchVariantError, match=r"channel=stable.*\(channel latest\)"):
        tracefleet.open(store, SOURCE, channel="stable")
    with pytest.raises(NoSuchVariantError, match=f"it holds {source_slug(SOURCE)}"):
        tracefleet.open(store, "hf://acme/other")
    for odd in ("../..", "", "/etc", "two words", "a/b/c", "~nobody-here/x", "gs://x"):
        with pytest.raises(NoSuchVariantError):
            tracefleet.open(store, odd)


def test_an_empty_store_and_an_empty_channel_say_so(store: FileStore):
    with pytest.raises(NoSuchVariantError, match="holds nothing at all"):
        tracefleet.open(store, SOURCE)
    folder = channel_folder(SOURCE, Variant(task="fill-mask"), "latest")
    (store.root / folder).mkdir(parents=True)
    with pytest.raises(NoSuchVariantError, match="holds nothing at all"):
        tracefleet.open(store, SOURCE)


def test_the_newest_number_is_opened_and_a_rollback_is_one(store: FileStore):
    first = publish(store, recipe=1)
    second = publish(store, recipe=2)
    assert first.key != second.key
    assert tracefleet.open(store, SOURCE).manifest == second
    folder = channel_folder(SOURCE, first.variant, "latest")
    assert advance(store, folder, manifest_digest=first.digest, key=first.key) == 3
    assert tracefleet.open(store, SOURCE).manifest == first


def test_what_no_device_validated_opens_only_when_asked_for(store: FileStore):
    validation = example_manifest().validation
    unvalidated = type(validation)(**{**vars(validation), "verdict": "unvalidated-on-device"})
    publish(store, validation=unvalidated)
    with pytest.raises(ManifestError, match="expected 'validated', got 'unvalidated-on-device'"):
        tracefleet.open(store, SOURCE)
    opened = tracefleet.open(store, SOURCE, allow_unvalidated=True)
    assert opened([1, 2])["pooler_output"].shape == (1, 4)


def test_another_backend_is_refused_before_torch_sees_it(store: FileStore, never_load: None):
    publish(store, variant=Variant(task="fill-mask", backend="neuronx"))
    with pytest.raises(BackendUnavailableError, match="package torch_neuronx of AWS's Neuron SDK"):
        tracefleet.open(store, SOURCE, backend="neuronx")


# Trusting nothing


@pytest.mark.parametrize("path", ["model/1/model.pt", "model/config.json"])
def test_one_flipped_byte_in_any_file_is_refused_before_loading(
    store: FileStore, never_load: None, path: str
):
    manifest = publish(store)
    damaged = path_in(store, manifest, path)
    expected = hashlib.sha256(damaged.read_bytes()).hexdigest()
    flip_byte(damaged)
    with pytest.raises(DigestMismatchError) as caught:
        tracefleet.open(store, SOURCE)
    assert caught.value.path.endswith(path)
    assert caught.value.expected == expected
    assert caught.value.got == hashlib.sha256(damaged.read_bytes()).hexdigest()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.got) == (str(caught.value), caught.value.got)


def test_a_truncated_and_a_missing_file_are_refused(store: FileStore, never_load: None):
    bundle = path_in(store, publish(store), "model/1/model.pt")
    bundle.write_bytes(bundle.read_bytes()[:-1])
    with pytest.raises(DigestMismatchError):
        tracefleet.open(store, SOURCE)
    bundle.unlink()
    with pytest.raises(StoreError, match=r"model\.pt: expected \d+ bytes, but it is not there"):
        tracefleet.open(store, SOURCE)


def test_an_edited_or_missing_manifest_is_refused(store: FileStore, never_load: None):
    path = path_in(store, publish(store), "manifest.json")
    path.write_bytes(path.read_bytes().replace(b'"apache-2.0"', b'"mit"'))
    with pytest.raises(DigestMismatchError, match=r"manifest\.json"):
        tracefleet.open(store, SOURCE)
    path.unlink()
    with pytest.raises(ManifestError, match="missing"):
        tracefleet.open(store, SOURCE)


def test_a_manifest_of_another_conversion_is_refused(store: FileStore, never_load: None):
    victim = publish(store)
    other = publish(store, source="hf://evil/model", variant=victim.variant)
    folder = channel_folder(SOURCE, victim.variant, "latest")
    planted = store.root / conversion_folder(SOURCE, other.key)
    planted.mkdir()
    (planted / "manifest.json").write_bytes(other.to_bytes())
    advance(store, folder, manifest_digest=other.digest, key=other.key)
    with pytest.raises(ManifestError, match="source's slug expected"):
        tracefleet.open(store, SOURCE)
    advance(store, folder, manifest_digest=victim.digest, key=other.key)
    (planted / "manifest.json").write_bytes(victim.to_bytes())
    with pytest.raises(ManifestError, match=f"key expected {other.key}, got {victim.key}"):
        tracefleet.open(store, SOURCE)


def test_a_manifest_under_another_variants_channel_is_refused(store: FileStore, never_load: None):
    manifest = publish(store)
    folder = channel_folder(SOURCE, Variant(task="fill-mask"), "latest")
    advance(store, folder, manifest_digest=manifest.digest, key=manifest.key)
    with pytest.raises(ManifestError, match="variant expected fill-mask"):
        tracefleet.open(store, SOURCE, task="fill-mask")


def test_a_manifest_in_another_form_is_refused_even_when_the_channel_names_it(store: FileStore):
    manifest = publish(store)
    pretty = json.dumps(json.loads(manifest.to_bytes()), indent=1).encode()
    path_in(store, manifest, "manifest.json").write_bytes(pretty)
    folder = channel_folder(SOURCE, manifest.variant, "latest")
    digest = hashlib.sha256(pretty).hexdigest()
    advance(store, folder, manifest_digest=digest, key=manifest.key)
    with pytest.raises(ManifestError, match="canonical JSON"):
        tracefleet.open(store, SOURCE)


def test_a_path_that_leaves_the_conversion_is_refused_even_when_the_channel_names_it(
    store: FileStore, never_load: None
):
    manifest = publish(store)
    raw = json.loads(manifest.to_bytes())
    raw["files"][0]["path"] = "../../secret"
    data = canonical_json(raw)
    path_in(store, manifest, "manifest.json").write_bytes(data)
    folder = channel_folder(SOURCE, manifest.variant, "latest")
    digest = hashlib.sha256(data).hexdigest()
    advance(store, folder, manifest_digest=digest, key=manifest.key)
    with pytest.raises(ManifestError, match="path expected relative"):
        tracefleet.open(store, SOURCE)


def test_a_size_that_contradicts_the_digest_is_refused(store: FileStore, never_load: None):
    manifest = publish(store)
    files = [*manifest.files[:-1], entry("model/config.json", b"{}")]
    wrong = type(files[-1])(**{**vars(files[-1]), "size": 3})
    changed = example_manifest(
        key=manifest.key, variant=manifest.variant, files=(manifest.bundle, wrong)
    )
    path_in(store, manifest, "manifest.json").write_bytes(changed.to_bytes())
    folder = channel_folder(SOURCE, manifest.variant, "latest")
    advance(store, folder, manifest_digest=changed.digest, key=manifest.key)
    with pytest.raises(ManifestError, match="says 3 bytes"):
        tracefleet.open(store, SOURCE)


def test_the_very_file_that_was_checked_is_loaded(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
):
    bundle = path_in(store, publish(store), "model/1/model.pt")
    real = torch.jit.load

    def swap_then_load(*arguments: Any, **named: Any) -> Any:
        bundle.unlink()
        bundle.write_bytes(b"swapped between check and use")
        return real(*arguments, **named)

    monkeypatch.setattr(torch.jit, "load", swap_then_load)
    assert tracefleet.open(store, SOURCE)([1])["pooler_output"].shape == (1, 4)


def test_an_archive_that_torch_refuses_is_an_artifact_error(store: FileStore):
    publish(store, bundle=b"published like this, and no archive")
    with pytest.raises(ArtifactError, match=r"model\.pt: torch .* can't load it"):
        tracefleet.open(store, SOURCE)


# Calling: what comes out


IDS = [[3, 1, 2]]


def test_outputs_are_named_by_key_attribute_and_position(model: Model):
    outputs = model(np.array(IDS))
    assert list(outputs) == ["last_hidden_state", "pooler_output"]
    assert len(outputs) == 2
    assert outputs["pooler_output"] is outputs.pooler_output is outputs[1] is outputs[-1]
    assert dict(outputs).keys() == outputs.keys()
    assert repr(outputs) == "Outputs(last_hidden_state: (1, 3, 4), pooler_output: (1, 4))"
    with pytest.raises(KeyError, match="expected one of"):
        outputs["logits"]
    with pytest.raises(AttributeError, match="expected one of"):
        _ = outputs.logits
    with pytest.raises(IndexError):
        outputs[2]
    with pytest.raises(AttributeError, match="read-only"):
        outputs.logits = 1
    for again in (pickle.loads(pickle.dumps(outputs)), copy.deepcopy(outputs)):
        assert np.array_equal(again.pooler_output, outputs.pooler_output)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (np.array(IDS), np.ndarray),
        (np.array(IDS, dtype=np.uint8), np.ndarray),
        (np.array(IDS, dtype=">i4"), np.ndarray),
        (torch.tensor(IDS), torch.Tensor),
        (torch.tensor(IDS, dtype=torch.int32), torch.Tensor),
        (IDS, np.ndarray),
        (tuple(tuple(row) for row in IDS), np.ndarray),
        ([np.array(IDS[0])], np.ndarray),
        (IDS[0], np.ndarray),
        (np.array(IDS[0]), np.ndarray),
        (torch.tensor(IDS[0]), torch.Tensor),
    ],
)
def test_every_form_of_ids_gives_the_same_numbers_and_its_own_kind(
    model: Model, given: Any, kind: type
):
    outputs = model(given)
    expected = model(torch.tensor(IDS))
    assert isinstance(outputs.pooler_output, kind)
    for name, value in outputs.items():
        assert np.array_equal(np.asarray(value), expected[name].numpy())
        assert value.shape[0] == 1


def test_a_read_only_array_is_taken_and_not_changed(model: Model):
    ids = np.array(IDS)
    ids.setflags(write=False)
    model(ids)
    assert ids.tolist() == IDS


def test_any_number_of_rows_and_any_length_up_to_the_maximum(model: Model):
    for rows in (1, 2, 5):
        for length in range(1, max(LENGTHS) + 1):
            ids = np.arange(rows * length).reshape(rows, length) % VOCABULARY
            outputs = model(ids)
            assert outputs.last_hidden_state.shape == (rows, length, 4)
            assert outputs.pooler_output.shape == (rows, 4)


def test_the_numbers_are_those_of_the_model(model: Model):
    module = torch.jit.load(_buffer())
    ids = torch.tensor(IDS)
    embedded = module.ids.weight[ids] + module.kinds.weight[torch.zeros_like(ids)]
    expected = embedded.mean(1)
    assert torch.allclose(model(ids).pooler_output, expected, atol=1e-6)
    assert not torch.allclose(model(ids + 1).pooler_output, expected, atol=1e-2)


def _buffer() -> Any:
    import io

    return io.BytesIO(tiny_bundle())


def test_outputs_can_feed_a_head_that_is_trained(model: Model):
    features = model(torch.tensor(IDS)).pooler_output
    head = torch.nn.Linear(4, 1)
    head(features).sum().backward()
    assert not features.requires_grad
    assert head.weight.grad is not None


def test_bfloat16_comes_to_numpy_as_float32():
    class Half(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return tensors[0].to(torch.bfloat16), tensors[0].to(torch.float16)

    model = Model(example_manifest(), Half())  # type: ignore[arg-type]
    outputs = model(IDS)
    assert outputs[0].dtype == np.float32
    assert outputs[1].dtype == np.float16
    assert model(torch.tensor(IDS))[0].dtype == torch.bfloat16


def test_a_bundle_that_returns_another_number_of_outputs_is_refused():
    class One(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor]:
            return (tensors[0],)

    with pytest.raises(ManifestError, match="2 outputs expected, the bundle returned 1"):
        Model(example_manifest(), One())(IDS)  # type: ignore[arg-type]


# Calling: padding and masks


def test_ragged_rows_get_what_each_row_gets_alone(model: Model):
    rows = [[3, 1, 2, 9, 4], [7], [5, 6, 8]]
    together = model(rows)
    assert together.last_hidden_state.shape == (3, 5, 4)
    for index, row in enumerate(rows):
        alone = model([row])
        assert np.allclose(together.pooler_output[index], alone.pooler_output[0], atol=1e-6)
        hidden = together.last_hidden_state[index, : len(row)]
        assert np.allclose(hidden, alone.last_hidden_state[0], atol=1e-6)
    # The control: padded by hand and not masked, the rows come out different.
    padded = model([row + [0] * (5 - len(row)) for row in rows])
    assert not np.allclose(together.pooler_output[1], padded.pooler_output[1], atol=1e-2)


def test_a_mask_of_the_callers_own_is_used(model: Model):
    masked = model([[3, 1, 2]], attention_mask=[[1, 1, 0]])
    assert np.allclose(masked.pooler_output, model([[3, 1]]).pooler_output, atol=1e-6)
    assert not np.allclose(masked.pooler_output, model([[3, 1, 2]]).pooler_output, atol=1e-2)
    positional = model([[3, 1, 2]], [[1, 1, 0]])
    assert np.array_equal(masked.pooler_output, positional.pooler_output)


def test_ragged_rows_take_ragged_companions(model: Model):
    rows, kinds = [[3, 1], [2]], [[0, 1], [1]]
    together = model(rows, [[1, 1], [1]], token_type_ids=kinds)
    alone = model([[2]], token_type_ids=[[1]])
    assert np.allclose(together.pooler_output[1], alone.pooler_output[0], atol=1e-6)
    with pytest.raises(ValueError, match="attention_mask: expected 0 where"):
        model(rows, np.ones((2, 2), dtype=int))


def test_an_input_that_is_left_out_gets_the_models_own_default(model: Model):
    given = model(IDS, [[1, 1, 1]], token_type_ids=[[0, 0, 0]])
    assert np.array_equal(model(IDS).pooler_output, given.pooler_output)
    other = model(IDS, token_type_ids=[[1, 1, 1]])
    assert not np.allclose(model(IDS).pooler_output, other.pooler_output, atol=1e-2)


def test_one_torch_input_among_others_makes_torch_outputs(model: Model):
    outputs = model(IDS, torch.ones(1, 3, dtype=torch.int64))
    assert isinstance(outputs.pooler_output, torch.Tensor)


def test_a_decoder_may_have_another_length(seq2seq: Model):
    outputs = seq2seq([[1, 2, 3]], decoder_input_ids=[[1, 1, 1, 1, 1]])
    assert outputs.logits[0, :, 0].tolist() == [7, 8, 9, 10, 11]
    ragged = seq2seq([[1, 2, 3], [5]], decoder_input_ids=[[1], [2, 3]])
    assert ragged.logits.shape == (2, 2, 1)
    assert ragged.logits[1, :, 0].tolist() == [7, 10]
    with pytest.raises(InputTooLongError, match="9 tokens"):
        seq2seq([[1]], decoder_input_ids=[[1] * 9])
    with pytest.raises(ValueError, match="decoder_input_ids: this conversion needs it"):
        seq2seq([[1]])
    with pytest.raises(ValueError, match="expected batch 2 as in input_ids, got 1"):
        seq2seq([[1], [2]], decoder_input_ids=[[1]])


class _Echo(torch.nn.Module):
    """Returns each row's first id, and counts its calls' rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, int]] = []

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.rows.append((ids.shape[0], ids.shape[1]))
        return ids.unsqueeze(2).expand(*ids.shape, 4), ids[:, :1].expand(-1, 4)


def test_rows_whose_padding_nothing_hides_run_with_their_equals():
    """Without a mask a shorter row would be computed with its padding."""
    echo = _Echo()
    bare = Model(example_manifest(inputs=example_manifest().inputs[:1]), echo)  # type: ignore[arg-type]
    found = bare([[1, 2], [3], [4, 5]])
    assert found.pooler_output[:, 0].tolist() == [1, 3, 4]
    assert found.last_hidden_state[:, :, 0].tolist() == [[1, 2], [3, 0], [4, 5]]
    assert sorted(echo.rows) == [(1, 1), (2, 2)]


# Calling: many rows


def _general(rows: int = 4, tokens: int = 16) -> tuple[Model, _Echo]:
    echo = _Echo()
    manifest = example_manifest(
        inputs=example_manifest().inputs[:1], general=General(shortest=1, rows=rows, tokens=tokens)
    )
    return Model(manifest, echo), echo  # type: ignore[arg-type]


def test_rows_may_be_arrays_and_tensors_of_one_axis(model: Model):
    lists = [[3, 1, 2], [7]]
    expected = model(lists).pooler_output
    arrays = [np.array(row) for row in lists]
    assert np.array_equal(model(arrays).pooler_output, expected)
    assert np.array_equal(model([torch.tensor(row) for row in lists]).pooler_output, expected)
    streamed = [one.pooler_output for one in model.stream(arrays)]
    assert np.allclose(streamed, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"row 1: expected whole numbers, got 1\.5"):
        model([np.array([1, 2]), np.array([1.5])])


def test_a_stream_yields_each_row_in_order_without_padding_and_reads_a_window_ahead():
    model, echo = _general()
    taken = []

    def rows() -> Iterator[list[int]]:
        for index in range(25):
            taken.append(index)
            yield [index + 1] * (1 + index % 3)

    found = model.stream(rows(), window=10)
    first = next(found)
    assert len(taken) == 10
    rest = list(found)
    assert len(taken) == 25
    for index, one in enumerate([first, *rest]):
        assert one.pooler_output.tolist() == [index + 1] * 4
        assert one.last_hidden_state.shape == (1 + index % 3, 4)
    assert max(rows for rows, _ in echo.rows) <= 4
    assert all(rows * tokens <= 16 for rows, tokens in echo.rows)
    assert list(model.stream([])) == []


def test_a_stream_takes_every_input_by_name(model: Model):
    rows = [
        {"input_ids": [3, 1], "token_type_ids": [0, 1]},
        {"input_ids": [2], "token_type_ids": [1]},
    ]
    found = list(model.stream(rows))
    for row, one in zip(rows, found, strict=True):
        alone = model([row["input_ids"]], token_type_ids=[row["token_type_ids"]])
        assert np.allclose(one.pooler_output, alone.pooler_output[0], atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([], ValueError, "input_ids: row 5: expected at least one token"),
        ([1, "a"], ValueError, "input_ids: row 5: expected whole numbers, got 'a'"),
        ([1] * 9, InputTooLongError, "row 5 has 9 tokens; expected at most 8"),
        (3, ValueError, "a list of ids for each row"),
        ({"ids": [1]}, ValueError, r"row 5: expected \['input_ids'\] as in the rows before, got"),
    ],
)
def test_a_row_that_makes_no_sense_is_named(bad: Any, error: type[Exception], message: str):
    model, _ = _general()
    rows = [[1]] * 5 + [bad] + [[2]] * 3
    with pytest.raises(error, match=message):
        list(model.stream(rows, window=3))
    if isinstance(bad, list):
        with pytest.raises(error, match=message):
            model(rows)


def test_a_window_and_the_inputs_of_a_stream_are_checked(model: Model):
    with pytest.raises(ValueError, match="window: expected at least 1 row, got 0"):
        next(model.stream([[1]], window=0))
    with pytest.raises(ValueError, match=r"unknown inputs \['text'\]"):
        next(model.stream([{"text": [1]}]))


def test_every_run_is_told_to_whoever_counts(model: Model):
    runs: list[Run] = []
    model.on_run = runs.append
    model([[3, 1, 2, 9, 4], [7], [5, 6, 8]])
    model(np.ones((1, 3), dtype=int))
    assert sum(run.rows for run in runs) == 4
    assert sum(run.tokens for run in runs) == 5 + 1 + 3 + 3
    assert all(0 <= run.padded < 1 and run.seconds > 0 for run in runs)
    # Its bundle pads three tokens to four.
    assert runs[-1].padded == pytest.approx(1 / 4)


# Calling: what is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least one token in each row"),
        ([[]], "at least one token in each row"),
        ([[1], []], "at least one token in each row"),
        (np.zeros((0, 3), dtype=int), "at least one row and one token"),
        (np.zeros((1, 0), dtype=int), "at least one row and one token"),
        (np.zeros((1, 2, 3), dtype=int), r"expected shape \(batch, length\)"),
        (np.array(3), r"expected shape \(batch, length\)"),
        (np.array([[1.0]]), "expected integers, got float64"),
        (np.array([[True]]), "expected integers, got bool"),
        (torch.tensor([[1.0]]), r"expected integers, got torch\.float32"),
        (torch.tensor([[True]]), r"expected integers, got torch\.bool"),
        ([[1.5]], "expected whole numbers, got 1.5"),
        ([["a"]], "expected whole numbers, got 'a'"),
        ([[True]], "expected whole numbers, got True"),
        ([1, [2]], "got a mixture"),
        ([[1, -1]], "from 0 to .* got -1"),
        (np.array([[2**63]], dtype=np.uint64), "from 0 to"),
        ([[2**70]], "64 bits"),
        (None, "input_ids: this conversion needs it"),
        ("text", "input_ids: expected integers"),
        ([[VOCABULARY]], f"outside the model's vocabulary .largest given: {VOCABULARY}"),
    ],
)
def test_ids_that_make_no_sense_are_refused(model: Model, given: Any, message: str):
    with pytest.raises(ValueError, match=message):
        model(given)


@pytest.mark.parametrize(
    "given", [[[1] * 9], [1] * 9, np.ones((2, 9), dtype=int), [[1], [1] * 9], torch.ones(9).long()]
)
def test_one_token_too_many_is_refused_not_cut(model: Model, given: Any):
    with pytest.raises(InputTooLongError, match="9 tokens; expected at most 8"):
        model(given)


def test_inputs_that_do_not_fit_together_are_refused(model: Model):
    with pytest.raises(
        ValueError, match=r"unknown inputs \['token_types'\]; this .*token_type_ids"
    ):
        model(IDS, token_types=IDS)
    with pytest.raises(
        ValueError, match="attention_mask: expected length 3 as in input_ids, got 2"
    ):
        model(IDS, [[1, 1]])
    with pytest.raises(ValueError, match="attention_mask: expected batch 1 as in input_ids, got 2"):
        model(IDS, [[1, 1, 1], [1, 1, 1]])
    with pytest.raises(ValueError, match="token_type_ids: expected whole numbers from 0"):
        model(IDS, token_type_ids=[[0, -1, 0]])


def test_an_id_too_large_for_the_bundles_dtype_is_refused_not_wrapped(model: Model):
    narrow = type(model.manifest.inputs[0])(**{**vars(model.manifest.inputs[0]), "dtype": "int32"})
    module = torch.jit.load(_buffer())
    inputs = (narrow, *model.manifest.inputs[1:])
    narrowed = Model(example_manifest(inputs=inputs), module)
    with pytest.raises(ValueError, match=f"from 0 to {2**31 - 1}, got {2**32 + 1}"):
        narrowed([[2**32 + 1]])
    assert narrowed([[1]]).pooler_output.shape == (1, 4), "the control: a small id runs"


# Calling one length exactly


def test_exact_runs_one_graph_and_only_at_its_own_shape(model: Model):
    ids = torch.tensor([[3, 1, 2, 4]])
    ones, zeros = torch.ones_like(ids), torch.zeros_like(ids)
    outputs = model.exact(4, ids, ones, zeros)
    assert isinstance(outputs, Outputs)
    assert torch.equal(outputs.pooler_output, model(ids).pooler_output)
    with pytest.raises(ValueError, match=r"expected one of \(4, 8\), got 5"):
        model.exact(5, ids, ones, zeros)
    with pytest.raises(ValueError, match="expected 3 tensors"):
        model.exact(4, ids)
    with pytest.raises(ValueError, match=r"input_ids: expected shape \(1, 8\), got \(1, 4\)"):
        model.exact(8, ids, ones, zeros)
