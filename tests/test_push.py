"""Copies on the hub: what is committed, what is refused, and what opens again."""

from __future__ import annotations

import builtins
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import tracefleet
from flows.convert import convert
from tasks.request.conversion import make_request
from tests.support import tiny
from tests.support.hub_commits import TOKEN, Platform, start
from tracefleet.cli import main
from tracefleet.errors import NoFormError
from tracefleet.hub.card import MARK, write_card
from tracefleet.hub.push import plan_push
from tracefleet.published import load_manifest, select
from tracefleet.store import open_store

REPO = "org/support"
#: huggingface_hub's own upload of a large file, by a name that its HTTP library has for the past.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier in two dtypes, published under a name."""
    folder = tmp_path_factory.mktemp("push")
    source = f"file://{tiny.save('bert-cls', folder)}"
    for dtype in ("float32", "bfloat16"):
        asked: dict[str, Any] = {"source": source, "store": f"file://{folder / 'store'}"}
        asked |= {"task": "text-classification", "lengths": [8], "publish_as": "support"}
        convert(make_request({**asked, "dtype": dtype, "threads": 1}))
    return folder / "store"


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    platform = Platform()
    server = start(platform)
    monkeypatch.setenv("HF_ENDPOINT", platform.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # Xet's protocol is the hub's own; without it the library takes Git LFS.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    yield platform
    server.shutdown()
    server.server_close()


def _push(store: Path, *more: str, dtype: str = "float32", repo: str = REPO) -> int:
    return main(["push", str(store), "support", f"hf://{repo}", "--dtype", dtype, *more])


def _write(files: dict[str, bytes], folder: Path) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def test_one_commit_makes_a_repository_that_opens_again(store, platform, tmp_path, capsys):
    assert _push(store, "--private") == 0
    told = capsys.readouterr()
    assert f"hf://{REPO}: 7 files in commit" in told.out
    assert "declares no license" in told.err
    assert TOKEN not in told.out + told.err
    [commit] = platform.commits
    assert commit["summary"].startswith("text-classification.jit.float32.b1 of file://")
    assert platform.repos[REPO].private
    copy = _write(platform.files(REPO), tmp_path / "copy")
    model, original = tracefleet.open(copy), tracefleet.open(store, "support", dtype="float32")
    rows = [[2, 5, 6, 3]]
    assert (model(rows).logits == original(rows).logits).all()
    assert main(["verify", str(copy)]) == 0


def test_a_repeat_commits_nothing_and_reads_no_bundle(store, platform, capsys, monkeypatch):
    assert _push(store) == 0
    uploads = [one for one in platform.log if one.method == "PUT"]
    assert len(uploads) == 1
    monkeypatch.setattr("tracefleet.hub.push._copy", None)
    assert _push(store) == 0
    assert f"hf://{REPO}: all of it is there, at commit" in capsys.readouterr().out
    assert len(platform.commits) == 1


def test_another_conversion_is_added_beside_the_first(store, platform, tmp_path):
    assert _push(store) == 0
    first = platform.files(REPO)
    assert _push(store, dtype="bfloat16") == 0
    second = platform.files(REPO)
    changed = {path for path in first if second[path] != first[path]}
    assert changed == {"README.md"}
    copy = _write(second, tmp_path / "copy")
    assert tracefleet.open(copy, dtype="bfloat16").manifest.variant.dtype == "bfloat16"
    assert tracefleet.open(copy, dtype="float32").manifest.variant.dtype == "float32"


def test_the_card_says_what_it_is(store, platform):
    assert _push(store) == 0
    text = platform.files(REPO)["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "tracefleet",
        "pipeline_tag": "text-classification",
        "tags": ["tracefleet", "torchscript", "jit", "float32"],
    }
    assert body.startswith(MARK)
    assert f"hf download {REPO} --local-dir ./support" in body


def test_the_card_names_the_checkpoint_of_the_hub_and_its_license(store):
    opened = open_store(store)
    one = select(opened, "support", dtype="float32")
    manifest = load_manifest(opened, one)
    variant = dataclasses.replace(manifest.variant, dtype="int8")
    changed = dataclasses.replace(
        manifest, source="hf://acme/tiny", license="apache-2.0", variant=variant
    )
    text = write_card(one, changed, REPO).decode()
    head = yaml.safe_load(text.split("---\n", 2)[1])
    assert head["base_model"] == "acme/tiny"
    assert head["base_model_relation"] == "quantized"
    assert head["license"] == "apache-2.0"
    assert f"https://huggingface.co/acme/tiny/tree/{manifest.commit}" in text


def test_somebodys_own_card_stays(store, platform):
    platform.add(REPO, **{"README.md": b"mine"})
    assert _push(store) == 0
    assert platform.files(REPO)["README.md"] == b"mine"
    assert _push(store) == 0
    assert len(platform.commits) == 1


def test_a_dry_run_tells_and_writes_nothing(store, platform, capsys):
    assert _push(store, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "would be made; 7 files would be committed" in told
    assert "pipeline_tag: text-classification" in told
    assert not platform.repos
    assert {one.method for one in platform.log} == {"GET"}
    assert _push(store, "--dry-run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["created"], found["commit"], len(found["added"])) == (True, None, 7)


def test_a_repository_of_others_is_refused_unless_told(store, platform, capsys):
    platform.add(REPO, **{"config.json": b"{}", "README.md": b"theirs"})
    assert _push(store) == 1
    assert "2 other files (config.json, README.md)" in capsys.readouterr().err
    assert not platform.commits
    assert _push(store, "--into-others") == 0
    files = platform.files(REPO)
    assert (files["config.json"], files["README.md"]) == (b"{}", b"theirs")
    assert _push(store) == 1  # still not ours alone


def test_another_stores_conversion_is_never_written_over(store, platform, capsys):
    assert _push(store) == 0
    files = dict(platform.files(REPO))
    for end in ("0000000001.json", "model.pt", "config.pbtxt"):
        [path] = [path for path in files if path.endswith(end)]
        platform.repos[REPO].push({**files, path: b"other"})
        assert _push(store) == 1
        assert f"{path}: expected none, or this store's bytes" in capsys.readouterr().err
    assert len(platform.commits) == 1


def test_a_damaged_file_is_found_before_anything_is_uploaded(store, platform, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(store, damaged)
    for bundle in damaged.rglob("model.pt"):
        bundle.write_bytes(bundle.read_bytes()[:-1] + b"x")
    assert _push(damaged) == 1
    assert "DigestMismatchError" in capsys.readouterr().err
    assert {one.method for one in platform.log} == {"GET"}


def test_what_arrives_is_compared_with_the_manifest(store, platform, capsys):
    platform.cut = True
    assert _push(store) == 1
    assert "expected the bytes that were uploaded, got others" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (412, "StoreUnavailableError"),
        (403, "a token that may write"),
        (503, "StoreUnavailableError"),
        (400, "got HTTP 400"),
    ],
)
def test_the_hubs_refusals_say_what_to_do(store, platform, capsys, status: int, told: str):
    platform.commit_status = status
    assert _push(store) == 1
    error = capsys.readouterr().err
    assert told in error
    assert TOKEN not in error


def test_a_wrong_token_and_a_hub_that_is_away(store, platform, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert _push(store) == 1
    assert "expected a token that may write there, got HTTP 401" in capsys.readouterr().err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert _push(store) == 1
    assert "expected an answer of the hub" in capsys.readouterr().err


def test_a_public_repository_is_not_private(store, platform, capsys):
    platform.add(REPO)
    assert _push(store, "--private") == 1
    assert "expected a private repository, got a public one" in capsys.readouterr().err


def test_what_no_device_has_validated_is_refused(store, platform, monkeypatch):
    opened = open_store(store)
    one = select(opened, "support", dtype="float32")
    manifest = load_manifest(opened, one)
    verdict = dataclasses.replace(manifest.validation, verdict="unvalidated-on-device")
    candidate = dataclasses.replace(manifest, validation=verdict)
    monkeypatch.setattr("tracefleet.single.load_manifest", lambda *_: candidate)
    with pytest.raises(NoFormError, match="unvalidated-on-device"):
        plan_push(opened, one, REPO)


def test_without_the_package_it_is_named(store, monkeypatch, capsys):
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert _push(store) == 1
    assert "pip install 'tracefleet[hub]'" in capsys.readouterr().err


@pytest.mark.parametrize("repository", ["org/support", "hf://support", "hf://a/b/c", "s3://a/b"])
def test_what_is_no_repository_is_wrong_usage(store, capsys, repository: str):
    with pytest.raises(SystemExit):
        main(["push", str(store), "support", repository])
    assert "expected hf://org/name" in capsys.readouterr().err
