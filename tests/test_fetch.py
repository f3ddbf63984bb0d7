"""Fetch from folders, and what all sources share: needed files, whole files, digests, license."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import RequestError, UnsafeCheckpointError, UnsupportedCheckpointError
from tasks.fetch import digests
from tasks.fetch.checkpoint import fetch, fetch_description, normalise_source, resolve
from tasks.fetch.digests import file_sha256
from tasks.fetch.verify import check_safetensors
from tests.support.fetch_support import (
    CARD,
    NEEDED_OF_WHOLE,
    POINTER,
    safetensors,
    sharded,
    whole,
    write,
)
from tracefleet.store.cache import cache_root

LATER_NS = 3_000_000_000


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files whose bytes were hashed."""
    names: list[str] = []
    original = digests.hash_stream

    def spy(file, name):
        names.append(name)
        return original(file, name)

    monkeypatch.setattr(digests, "hash_stream", spy)
    return names


@pytest.fixture
def later(monkeypatch):
    """Let the digest cache's clock run three seconds ahead: fresh files are not racy."""
    now = time.time_ns
    monkeypatch.setattr("time.time_ns", lambda: now() + LATER_NS)


def test_a_folder_is_used_in_place_with_exactly_the_needed_files(tmp_path):
    source = write(tmp_path / "tiny", whole())
    resolved = resolve(source)
    checkpoint = fetch(resolved)
    assert tuple(file.path for file in resolved.files) == NEEDED_OF_WHOLE
    assert checkpoint.folder == fetch_description(resolved) == tmp_path / "tiny"
    assert (checkpoint.files, checkpoint.commit) == (resolved.files, resolved.commit)
    assert checkpoint.license == "apache-2.0"
    assert (checkpoint.source, checkpoint.revision) == (source, None)


def test_the_commit_is_the_needed_content_and_not_the_place(tmp_path):
    commit = resolve(write(tmp_path / "one", whole())).commit
    assert resolve(write(tmp_path / "two", whole())).commit == commit
    (tmp_path / "two" / "pytorch_model.bin").write_bytes(b"not needed")
    assert resolve(f"file://{tmp_path}/two").commit == commit
    (tmp_path / "two" / "vocab.txt").write_bytes(b"[PAD]!")
    assert resolve(f"file://{tmp_path}/two").commit != commit


def test_shards_are_those_that_the_index_names(tmp_path):
    checkpoint = fetch(resolve(write(tmp_path / "sharded", sharded())))
    assert [file.path for file in checkpoint.files] == [
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
    ]
    assert checkpoint.license is None


def test_a_name_of_a_shard_that_is_not_there(tmp_path):
    files = sharded()
    del files["model-2.safetensors"]
    with pytest.raises(UnsafeCheckpointError, match=r"all 2 shards.*model-2\.safetensors"):
        resolve(write(tmp_path / "sharded", files))


def test_a_shard_without_the_tensor_that_the_index_promises(tmp_path):
    files = sharded() | {"model-2.safetensors": safetensors({"x": b"bb"})}
    with pytest.raises(UnsafeCheckpointError, match=r"b in model-2\.safetensors"):
        fetch(resolve(write(tmp_path / "sharded", files)))


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "/etc/secret.safetensors", "a//b.safetensors", 7, None]
)
def test_an_index_that_leads_out_of_the_folder(tmp_path, shard):
    write(tmp_path, {"secret.safetensors": safetensors({"a": b"a"})})
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    files = sharded() | {"model.safetensors.index.json": index}
    with pytest.raises(UnsafeCheckpointError, match="relative and normalised"):
        resolve(write(tmp_path / "evil", files))


def test_an_index_of_safetensors_can_not_bring_in_a_pickle(tmp_path):
    index = json.dumps({"weight_map": {"a": "pytorch_model.bin"}}).encode()
    files = sharded() | {"model.safetensors.index.json": index, "pytorch_model.bin": b"pickle"}
    with pytest.raises(UnsafeCheckpointError, match=r"end in \.safetensors"):
        resolve(write(tmp_path / "evil", files))


@pytest.mark.parametrize("index", [b"", b"[]", b'{"weight_map": 3}', b'{"weight_map": {}}'])
def test_an_index_that_is_none(tmp_path, index):
    files = sharded() | {"model.safetensors.index.json": index}
    with pytest.raises(UnsafeCheckpointError, match="weight_map"):
        resolve(write(tmp_path / "damaged", files))


def test_pickle_weights_need_permission(tmp_path):
    files = {"config.json": b"{}", "pytorch_model.bin": b"pickle", "training_args.bin": b"more"}
    source = write(tmp_path / "old", files)
    with pytest.raises(UnsafeCheckpointError, match="allow_pickle"):
        resolve(source)
    checkpoint = fetch(resolve(source, allow_pickle=True))
    assert [file.path for file in checkpoint.files] == ["config.json", "pytorch_model.bin"]


def test_pickle_shards_and_safetensors_first(tmp_path):
    index = json.dumps({"weight_map": {"a": "pytorch_model-1.bin"}}).encode()
    pickled = {"pytorch_model.bin.index.json": index, "pytorch_model-1.bin": b"pickle"}
    source = write(tmp_path / "old", {"config.json": b"{}"} | pickled)
    names = [file.path for file in resolve(source, allow_pickle=True).files]
    assert names == ["config.json", "pytorch_model-1.bin", "pytorch_model.bin.index.json"]
    write(tmp_path / "old", sharded())
    names = [file.path for file in resolve(source, allow_pickle=True).files]
    assert not [name for name in names if "pytorch" in name]


def test_python_files_only_when_asked(tmp_path):
    source = write(tmp_path / "own", whole())
    with_code = {file.path for file in resolve(source, trust_remote_code=True).files}
    assert with_code - {file.path for file in resolve(source).files} == {"modeling_tiny.py"}


def test_no_config(tmp_path):
    source = write(tmp_path / "empty", {"weights.gguf": b"x"})
    with pytest.raises(UnsupportedCheckpointError, match=r"no config\.json.*weights\.gguf"):
        resolve(source)


def test_no_weights(tmp_path):
    source = write(tmp_path / "empty", {"config.json": b"{}", "tf_model.h5": b"x"})
    with pytest.raises(UnsupportedCheckpointError, match=r"no weights.*tf_model\.h5"):
        resolve(source)


def test_a_pointer_in_place_of_weights(tmp_path):
    source = write(tmp_path / "cloned", whole() | {"model.safetensors": POINTER})
    with pytest.raises(UnsafeCheckpointError, match="git lfs pull"):
        fetch(resolve(source))


def test_truncated_weights_are_refused_with_their_size(tmp_path):
    data = safetensors({"a": b"12345678"})
    source = write(tmp_path / "cut", whole() | {"model.safetensors": data[:-3]})
    message = rf"expected a whole safetensors file, got {len(data) - 3} bytes .* not fully covered"
    with pytest.raises(UnsafeCheckpointError, match=message):
        fetch(resolve(source))


def _with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def _u8(start: int, stop: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [abs(stop - start)], "data_offsets": [start, stop]}


def _with_tensors(data: bytes, **header: dict[str, Any]) -> bytes:
    return _with_header(json.dumps(header).encode(), data)


DAMAGED = {
    "empty": b"",
    "shorter than its length": b"short",
    "enormous header": b"\xff" * 64,
    "web page": b"<html>not found</html>",
    "no JSON": _with_header(b"not json"),
    "a list": _with_header(b"[]"),
    "deep": _with_header(b"[" * 100_000),
    "no offsets": _with_header(b'{"a": {}}'),
    "infinite": _with_header(b'{"a": {"data_offsets": [0, Infinity]}}'),
    "hole": _with_tensors(b"1234", a=_u8(1, 4)),
    "gap": _with_tensors(b"1234", a=_u8(0, 2), b=_u8(3, 4)),
    "overlap": _with_tensors(b"1234", a=_u8(0, 3), b=_u8(2, 4)),
    "backwards": _with_tensors(b"", a=_u8(0, -4)),
    "truncated": safetensors({"a": b"1234"})[:-1],
    "a git-lfs pointer": POINTER,
    "a shape that its offsets contradict": _with_tensors(b"1234", a=_u8(0, 4) | {"shape": [3]}),
    "a number that overflows": _with_tensors(b"1234", a=_u8(0, 4) | {"shape": [1 << 62, 1 << 62]}),
    "an unknown dtype": _with_tensors(b"1234", a=_u8(0, 4) | {"dtype": "X9"}),
    "bytes after the end": safetensors({"a": b"a"}) + b"more",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_safetensors_are_refused(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(UnsafeCheckpointError, match="expected a whole safetensors file, got"):
        check_safetensors(tmp_path / "x.safetensors")


def test_the_control_of_the_damaged_ones_is_whole(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(_with_tensors(b"1234", a=_u8(0, 2), b=_u8(2, 4)))
    assert check_safetensors(tmp_path / "x.safetensors") == {"a", "b"}


def test_whole_safetensors_are_not(tmp_path):
    for tensors in ({"a": b"a", "empty": b"", "b": b"bb"}, {}):
        (tmp_path / "x.safetensors").write_bytes(safetensors(tensors))
        assert check_safetensors(tmp_path / "x.safetensors") == tensors.keys()


def test_what_safetensors_itself_writes_is_whole(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    tensors = {"a": np.zeros((3, 5), np.float16), "b": np.ones(7, np.float16)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert check_safetensors(tmp_path / "x.safetensors") == {"a", "b"}


def test_a_file_that_changed_between_resolve_and_fetch(tmp_path):
    source = write(tmp_path / "tiny", whole(b"before"))
    resolved = resolve(source)
    fetch(resolved)
    write(tmp_path / "tiny", whole(b"behind"))
    with pytest.raises(UnsafeCheckpointError, match=r"model\.safetensors: expected .* changed"):
        fetch(resolved)
    (tmp_path / "tiny" / "model.safetensors").unlink()
    with pytest.raises(UnsafeCheckpointError, match="got no file"):
        fetch(resolved)


def test_a_repeat_reads_no_weights(tmp_path, hashed, later):
    source = write(tmp_path / "tiny", whole())
    first = resolve(source)
    assert "model.safetensors" in hashed
    hashed.clear()
    assert resolve(source) == first
    fetch(first)
    assert hashed == []


def test_a_changed_file_is_read_again(tmp_path, hashed, later):
    source = write(tmp_path / "tiny", whole(b"before"))
    first = resolve(source)
    hashed.clear()
    weights = tmp_path / "tiny" / "model.safetensors"
    stat = weights.stat()
    weights.write_bytes(whole(b"behind")["model.safetensors"])
    # Size and mtime as before: the ctime alone tells.
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert resolve(source).commit != first.commit
    assert hashed == ["model.safetensors"]


def test_a_file_written_a_moment_ago_is_not_remembered(tmp_path, hashed):
    path = tmp_path / "fresh"
    path.write_bytes(b"fresh")
    os.utime(path, (1, 1))  # an old mtime alone proves nothing
    assert file_sha256(path) == file_sha256(path)
    assert hashed == ["fresh", "fresh"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"sha256": 3}', b"\xff"])
def test_a_damaged_digest_cache_is_ignored(tmp_path, hashed, later, damage):
    path = tmp_path / "file"
    path.write_bytes(b"data")
    digest = file_sha256(path)
    (entry,) = (cache_root() / "digests").iterdir()
    entry.write_bytes(damage)
    assert file_sha256(path) == digest
    assert file_sha256(path) == digest
    assert hashed == ["file", "file"]  # the second time it was remembered again


def test_a_cache_that_can_not_be_written_does_no_harm(tmp_path, later, monkeypatch):
    (tmp_path / "occupied").write_bytes(b"")
    monkeypatch.setenv("TRACEFLEET_CACHE", str(tmp_path / "occupied"))
    (tmp_path / "file").write_bytes(b"data")
    assert file_sha256(tmp_path / "file") == file_sha256(tmp_path / "file")


def test_a_file_that_is_written_to_while_it_is_hashed(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"data")
    original = digests.hash_stream

    def meddle(file, name):
        digest = original(file, name)
        path.write_bytes(b"data and more")
        return digest

    monkeypatch.setattr(digests, "hash_stream", meddle)
    with pytest.raises(UnsafeCheckpointError, match="written to while"):
        file_sha256(path)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (CARD, "apache-2.0"),
        (CARD.replace(b"\n", b"\r\n"), "apache-2.0"),
        (b"# no front matter\n---\nlicense: mit\n---\n", None),
        (b"---\nlicense: [mit, gpl]\n---\n", None),
        (b"---\nlicense: !!python/object/apply:os.abort []\n---\n", None),
        (b"---\n{[\n---\n", None),
        (b"---\n- a list\n---\n", None),
        (b"---\nlicense: " + b"x" * 300 + b"\n---\n", None),
        (b"---\na: 2001-99-99\nlicense: mit\n---\n", None),
        (b"---\n" + b"[" * 5000 + b"\n---\n", None),
        (b"\xff\xfe\n", None),
        (b"", None),
    ],
    ids=lambda value: value and repr(value)[:30],
)
def test_license(tmp_path, card, expected):
    source = write(tmp_path / "tiny", whole() | {"README.md": card})
    assert fetch(resolve(source)).license == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "no folder in .* and no name that the hub can have"),
        ("two words", "no name that the hub can have"),
        ("org/name/more", "no name that the hub can have"),
        ("gs://bucket/x", "unknown scheme 'gs'"),
        ("file://folder", r"file://\./folder"),
        ("file://", "absolute"),
        ("hf://", "org/name"),
        ("hf://a/b/c", "org/name"),
        ("hf://a/../b", "org/name"),
        ("hf://a/b@", "revision"),
        ("hf://a/b@../../x", "revision"),
        ("s3://", "bucket"),
        ("s3://b", "bucket"),
        ("s3://bucket/a//b", "prefix"),
        ("s3://bucket/../b", "prefix"),
    ],
)
def test_sources_that_are_none(source, message):
    with pytest.raises(RequestError, match=message):
        normalise_source(source)


def test_normalise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = {
        "file:///a/b/": "file:///a/b",
        "file:////a/./c/../b": "file:///a/b",
        "file://./rel/": f"file://{tmp_path}/rel",
        "file://.": f"file://{tmp_path}",
        "/some/folder": "file:///some/folder",
        "./modls/bert": f"file://{tmp_path}/modls/bert",
        "org/name": "hf://org/name",
        "hf://name": "hf://name",
        "hf://org/name": "hf://org/name",
        "hf://org/name@refs/pr/1": "hf://org/name@refs/pr/1",
        "s3://bucket/prefix/": "s3://bucket/prefix",
        "s3://bucket": "s3://bucket",
    }
    assert {source: normalise_source(source) for source in plain} == plain
    assert {normalise_source(source) for source in plain.values()} == set(plain.values())


def test_a_missing_folder_a_file_and_a_revision(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match="got nothing"):
        resolve(f"file://{tmp_path}/none")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=f"file://{tmp_path}/modls/bert: expected a folder"):
        resolve("./modls/bert")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RequestError, match="got a file"):
        resolve(f"file://{tmp_path}/file")
    with pytest.raises(RequestError, match="no revision"):
        resolve(write(tmp_path / "tiny", whole()), revision="main")


def test_a_folder_is_one_source_however_it_is_written(tmp_path, monkeypatch):
    source = write(tmp_path / "models" / "tiny", whole())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ["./models/tiny", "models/tiny", "~/models//tiny/", tmp_path / "models" / "tiny"]
    assert {resolve(name) for name in names} == {resolve(source)}


def test_fetch_imports_no_heavy_library():
    code = (
        "import sys, tasks.fetch.checkpoint\n"
        "heavy = ('torch', 'transformers', 'huggingface_hub', 's3fs', 'boto3', 'botocore')\n"
        "assert not [name for name in heavy if name in sys.modules]\n"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
