"""Opening by name: what is found, and that nothing unchecked is loaded."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import tracefleet
from tests.support.reader_support import (
    LENGTHS,
    SOURCE,
    entry,
    example_manifest,
    flip_byte,
    path_in,
    publish,
)
from tracefleet import (
    ArtifactError,
    BackendUnavailableError,
    DigestMismatchError,
    ManifestError,
    NoSuchVariantError,
    StoreError,
    Variant,
)
from tracefleet.canonical import canonical_json
from tracefleet.channel import advance, channel_folder, conversion_folder, source_slug
from tracefleet.store.folder import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(root=tmp_path / "store")


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
        with pytest.raises(NoSuchVariantError, match=r"read as .*file:///.*; looked for "):
            tracefleet.load_manifest(store, other)
        assert list(tracefleet.find(store, other)) == []


def test_a_name_of_the_hub_opens_without_its_scheme_whatever_folders_there_are(
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
    assert tracefleet.load_manifest(store, bare) == manifest, "readers look into the store alone"
    folder = publish(store, source=f"file://{here}/{bare}")
    assert tracefleet.load_manifest(store, bare) == manifest, "the hub's comes first"
    assert tracefleet.load_manifest(store, f"./{bare}") == folder


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
