"""Fetch from a hub: a real HTTP server on loopback, with its faults."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import threading

import pytest

from tasks.errors import RequestError, UnsafeCheckpointError, UnsupportedCheckpointError
from tasks.fetch import hub as hub_module
from tasks.fetch.checkpoint import fetch, fetch_description, resolve
from tests.support.fetch_support import NEEDED_OF_WHOLE, POINTER, safetensors, sharded, whole

SOURCE = "hf://acme/tiny"
WEIGHTS = "model.safetensors"
MIB = 1 << 20


@pytest.fixture
def at_once(monkeypatch):
    """Let the library wait between its retries for no time."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


def test_only_needed_files_are_fetched_and_verified(hub):
    commit = hub.push(whole())
    resolved = resolve(SOURCE)
    assert (resolved.commit, resolved.revision) == (commit, None)
    assert tuple(file.path for file in resolved.files) == NEEDED_OF_WHOLE
    assert hub.fetched() == {"modules.json"}  # which names more files that may be needed
    checkpoint = fetch(resolved)
    assert hub.fetched() == set(NEEDED_OF_WHOLE)
    assert checkpoint.license == "apache-2.0"
    for file in checkpoint.files:
        data = (checkpoint.folder / file.path).read_bytes()
        assert data == whole()[file.path]
        assert file.sha256 == hashlib.sha256(data).hexdigest()


def test_the_description_comes_before_the_weights(hub):
    hub.push(whole())
    folder = fetch_description(resolve(SOURCE))
    assert (folder / "config.json").is_file()
    assert hub.fetched() == set(NEEDED_OF_WHOLE) - {WEIGHTS}


def test_a_second_fetch_downloads_nothing(hub):
    hub.push(whole())
    first = fetch(resolve(SOURCE))
    hub.log.clear()
    assert fetch(resolve(SOURCE)) == first
    assert len(hub.log) == 1  # what the branch is now; no file


def test_shards_are_those_that_the_index_names(hub):
    hub.push(sharded())
    checkpoint = fetch(resolve(SOURCE))
    assert "model-3.safetensors" not in {file.path for file in checkpoint.files}
    assert "model-2.safetensors" in hub.fetched()


def test_shards_are_fetched_at_once(hub):
    hub.push(sharded())
    both = threading.Barrier(2)
    hub.together = {"model-1.safetensors": both, "model-2.safetensors": both}
    checkpoint = fetch(resolve(SOURCE))
    for path in hub.together:
        assert (checkpoint.folder / path).read_bytes() == sharded()[path]


def test_a_name_that_looks_like_a_pattern_is_a_name(hub):
    index = json.dumps({"weight_map": {"a": "model-[1].safetensors"}}).encode()
    files = sharded() | {"model.safetensors.index.json": index}
    files["model-[1].safetensors"] = safetensors({"a": b"named"})
    hub.push(files)
    checkpoint = fetch(resolve(SOURCE))
    assert b"named" in (checkpoint.folder / "model-[1].safetensors").read_bytes()
    assert "model-1.safetensors" not in hub.fetched()


def test_one_file_that_fails_keeps_its_error_and_the_others(hub, at_once):
    hub.push(sharded())
    resolved = resolve(SOURCE)
    hub.status["model-2.safetensors"] = 401
    with pytest.raises(RequestError, match="HF_TOKEN"):
        fetch(resolved)
    hub.status.clear()
    fetch(resolved)
    assert len(hub.got("model-1.safetensors")) == 1


def test_threads_that_lose_the_librarys_client_are_followed_by_one_file_at_a_time(hub, monkeypatch):
    hub.push(sharded())
    resolved, original = resolve(SOURCE), hub_module._local_path
    lost: list[str] = []

    def lose(source, commit, path):
        if path == "model-2.safetensors" and not lost:
            lost.append(path)
            raise AttributeError("'NoneType' object has no attribute 'request'")
        return original(source, commit, path)

    monkeypatch.setattr(hub_module, "_local_path", lose)
    assert fetch(resolved).files
    assert lost


def test_a_dropped_connection_resumes_where_it_broke(hub):
    weights = b"0123456789abcdef" * (12 * MIB // 16)
    hub.push(whole(weights))
    hub.drop_after[WEIGHTS] = 11 * MIB
    checkpoint = fetch(resolve(SOURCE))
    assert (checkpoint.folder / WEIGHTS).read_bytes() == whole(weights)[WEIGHTS]
    first, second = hub.got(WEIGHTS)
    # The library keeps what it has in pieces of 10 MiB.
    assert (first.range, second.range) == (None, f"bytes={10 * MIB}-")


def test_a_branch_that_moves_after_resolve(hub):
    old = hub.push(whole(b"old"))
    resolved = resolve(SOURCE)
    new = hub.push(whole(b"new"))
    checkpoint = fetch(resolved)
    assert checkpoint.commit == old
    assert b"old" in (checkpoint.folder / WEIGHTS).read_bytes()
    assert resolve(SOURCE).commit == new
    assert b"new" in (fetch(resolve(SOURCE)).folder / WEIGHTS).read_bytes()


def test_revisions_in_the_source_and_beside_it(hub):
    main, dev = hub.push(whole(b"main")), hub.push(whole(b"dev"), "dev")
    assert resolve(f"{SOURCE}@dev").commit == resolve(SOURCE, revision="dev").commit == dev
    assert resolve(f"{SOURCE}@{main}").commit == main
    resolved = resolve(f"{SOURCE}@dev", revision="dev")
    assert (resolved.source, resolved.revision) == (SOURCE, "dev")
    with pytest.raises(RequestError, match="one revision"):
        resolve(f"{SOURCE}@dev", revision="main")
    for revision in ("", "../main", "a b"):
        with pytest.raises(RequestError, match="branch, tag or commit"):
            resolve(SOURCE, revision=revision)


@pytest.mark.parametrize("name", ["hf://tiny", "tiny", "tiny@main", "acme/tiny", "acme/tiny/"])
def test_a_name_without_a_scheme_or_an_organisation(hub, name):
    hub.repo = "acme/tiny" if "/tiny" in name.removeprefix("hf://") else "tiny"
    commit = hub.push(whole())
    checkpoint = fetch(resolve(name))
    assert (checkpoint.source, checkpoint.commit) == (f"hf://{hub.repo}", commit)
    assert (checkpoint.folder / WEIGHTS).is_file()


def test_a_flipped_byte_is_caught_and_does_not_stay(hub):
    hub.push(whole())
    hub.flipped.add(WEIGHTS)
    expected = hashlib.sha256(whole()[WEIGHTS]).hexdigest()
    with pytest.raises(UnsafeCheckpointError, match=f"{WEIGHTS}: sha256 expected {expected}, got"):
        fetch(resolve(SOURCE))
    hub.flipped.clear()
    assert (fetch(resolve(SOURCE)).folder / WEIGHTS).read_bytes() == whole()[WEIGHTS]


def test_a_byte_that_flips_in_the_cache_is_caught(hub):
    hub.push(whole())
    blob = (fetch(resolve(SOURCE)).folder / WEIGHTS).resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(UnsafeCheckpointError, match="removed from the cache"):
        fetch(resolve(SOURCE))
    assert (fetch(resolve(SOURCE)).folder / WEIGHTS).read_bytes() == whole()[WEIGHTS]


@pytest.mark.parametrize("weights", [POINTER, safetensors({"a": b"1234"})[:-1]])
def test_a_repository_that_holds_damaged_weights(hub, weights):
    hub.push(whole() | {WEIGHTS: weights})
    with pytest.raises(UnsafeCheckpointError, match=r"pointer|truncated"):
        fetch(resolve(SOURCE))


@pytest.mark.parametrize(
    ("source", "message"),
    [("hf://acme/none", "no such repository"), (f"{SOURCE}@none", "does not have")],
)
def test_nothing_there(hub, source, message):
    hub.push(whole())
    with pytest.raises(RequestError, match=message):
        resolve(source)


def test_a_private_repository_needs_a_token(hub, monkeypatch, caplog):
    hub.push(whole())
    hub.token = "hf_secret"
    with pytest.raises(RequestError, match="HF_TOKEN"):
        resolve(SOURCE)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with caplog.at_level(logging.DEBUG):
        assert fetch(resolve(SOURCE)).files
    assert "hf_secret" not in caplog.text
    assert hub.log[-1].token == "hf_secret"


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_shows_its_listing_but_not_its_files(hub, status):
    hub.push(whole())
    hub.status["config.json"] = status
    with pytest.raises(RequestError, match="HF_TOKEN"):
        fetch(resolve(SOURCE))


@pytest.mark.parametrize("token", [None, "hf_mine"])
@pytest.mark.parametrize("where", ["api", "config.json"])
def test_each_refusal_says_what_it_is_and_what_to_do(hub, monkeypatch, token, where):
    hub.push(whole())
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    refusals = {
        (403, "GatedRepo"): "gated one, to which its account" if token else "gated one, and no",
        (404, "RepoNotFound"): "token may not see" if token else "or a private one",
        (401, ""): "token that the hub accepts" if token else "private or gated",
    }
    for (status, code), told in refusals.items():
        hub.status[where], hub.codes[where] = status, code
        with pytest.raises(RequestError, match=told) as caught:
            fetch(resolve(SOURCE))
        assert "HF_TOKEN" in str(caught.value), "the next step"
        assert "hf_mine" not in str(caught.value)
    hub.status.clear()
    assert fetch(resolve(SOURCE)).files, "the control"


@pytest.mark.parametrize("former", ["tiny", "old-acme/tiny"])
def test_a_repository_that_moved_has_its_own_name_and_the_other_as_an_alias(hub, former, caplog):
    hub.push(whole())
    hub.former = (former,)
    with caplog.at_level(logging.INFO):
        found = resolve(former)
    assert (found.source, found.alias) == (SOURCE, f"hf://{former}")
    assert f"hf://{former} is {SOURCE} on the hub" in caplog.text
    assert fetch(found).files == fetch(resolve(SOURCE)).files
    assert resolve(SOURCE).alias is None


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_keeps_the_librarys_error(hub, at_once, status):
    from huggingface_hub.errors import HfHubHTTPError

    hub.push(whole())
    hub.status["api"] = status
    with pytest.raises(HfHubHTTPError) as listing:
        resolve(SOURCE)
    del hub.status["api"]
    resolved = resolve(SOURCE)
    hub.status[WEIGHTS] = status
    with pytest.raises(HfHubHTTPError) as file:
        fetch(resolved)
    assert listing.value.response.status_code == file.value.response.status_code == status
    hub.status.clear()
    assert fetch(resolved).files  # it passes by itself


def test_no_connection_keeps_the_librarys_error(hub, at_once, monkeypatch):
    import httpx2

    hub.push(whole())
    resolved = resolve(SOURCE)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for call in (lambda: resolve(SOURCE), lambda: fetch(resolved)):
        with pytest.raises(httpx2.ConnectError) as lost:
            call()
        told = str(lost.value)
        assert told.startswith(f"{SOURCE}: expected an answer of http://127.0.0.1:9, got ")
        assert "HF_ENDPOINT" in told
        assert "HF_HUB_OFFLINE=1" in told
        assert str(pickle.loads(pickle.dumps(lost.value))) == told


def test_a_commit_that_was_removed(hub):
    hub.push(whole())
    resolved = resolve(SOURCE)
    hub.commits[resolved.commit].clear()
    with pytest.raises(RequestError, match="removed"):
        fetch(resolved)


@pytest.mark.parametrize("answer", [b"<html>log in</html>", b"[]", b"{}", b'{"id": "a/b"}'])
def test_an_endpoint_that_is_no_hub(hub, answer):
    hub.push(whole())
    hub.raw_api = answer
    with pytest.raises(RequestError, match="HF_ENDPOINT"):
        resolve(SOURCE)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a\\b"])
def test_a_listing_that_leads_out_of_the_folder(hub, name):
    hub.push(whole())
    hub.extra_names = [name]
    with pytest.raises(UnsafeCheckpointError, match="relative and normalised"):
        resolve(SOURCE)


def test_an_index_that_leads_out_of_the_folder(hub):
    index = json.dumps({"weight_map": {"a": "../../../x.safetensors"}}).encode()
    hub.push(sharded() | {"model.safetensors.index.json": index})
    with pytest.raises(UnsafeCheckpointError, match="relative and normalised"):
        resolve(SOURCE)


def test_remote_code_only_with_a_full_commit(hub):
    commit = hub.push(whole())
    for revision in (None, "main", commit[:12]):
        with pytest.raises(RequestError, match="40 hex digits"):
            resolve(SOURCE, revision=revision, trust_remote_code=True)
    resolved = resolve(SOURCE, revision=commit, trust_remote_code=True)
    assert (fetch(resolved).folder / "modeling_tiny.py").is_file()


def test_no_config_and_pickle_only(hub):
    hub.push({"flow.yaml": b"", "pytorch_model.bin": b"pickle"})
    with pytest.raises(UnsupportedCheckpointError, match=r"flow\.yaml"):
        resolve(SOURCE)
    hub.push({"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(UnsafeCheckpointError, match="allow_pickle"):
        resolve(SOURCE)
    assert fetch(resolve(SOURCE, allow_pickle=True)).files


@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_offline_takes_what_is_cached(hub, monkeypatch, revision):
    commit = hub.push(whole())
    revision = commit if revision == "commit" else revision
    online = fetch(resolve(SOURCE, revision=revision))
    hub.log.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(resolve(SOURCE, revision=revision)) == online
    assert hub.log == []


def test_offline_without_a_cache(hub, monkeypatch):
    hub.push(whole())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RequestError, match=r"offline.*network"):
        resolve(SOURCE)
    assert hub.log == []


def test_offline_with_half_a_cache(hub, monkeypatch):
    commit = hub.push(whole())
    resolved = resolve(SOURCE)
    fetch_description(resolved)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RequestError, match=r"offline.*no weights"):
        resolve(SOURCE, revision=commit)
    with pytest.raises(RequestError, match="offline"):
        fetch(resolved)
