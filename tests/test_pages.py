"""README and docs, typed block by block by somebody who believes every word."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.classifier import save_classifier
from tests.support.hub_commits import TOKEN, Platform, start
from tests.support.pages import Reader, read_blocks
from tests.support.s3_servers import S3Server

ROOT = Path(__file__).parent.parent
#: README comes first: what it converts is there for the others.
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
#: Blocks that need what cannot be had here; each says so on its page.
NOT_RUN = {
    "README.md": 2,
    "cpp.md": 2,
    "fleets.md": 5,
    "generation.md": 1,
    "neuron.md": 3,
    "production.md": 5,
    "sagemaker.md": 1,
    "serving.md": 3,
    "store.md": 2,
    "triton.md": 2,
}
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def classifier(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(sample, tmp_path_factory.mktemp("trained") / "my-classifier")


@pytest.fixture(scope="module")
def reader(
    classifier: Path, swift_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reader]:
    """One folder for all pages, with a checkpoint in it; a hub and an S3 server on loopback."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "my-classifier").symlink_to(classifier)
    hub = Platform()
    hub.add("org/name", **{path.name: path.read_bytes() for path in classifier.iterdir()})
    server = start(hub)
    env = {
        **os.environ,
        **swift_server.env(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
        "HOME": str(folder / "home"),
        "PREFECT_HOME": str(folder / "prefect"),
    }
    yield Reader(folder, env, {"s3://tracefleet/": f"s3://{swift_server.bucket}/pages/"})
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_block_of_a_page_runs_as_it_is_written(page: Path, reader: Reader):
    programs = [block for block in read_blocks(page) if block.runs]
    assert reader.follow(page) == len(programs)


def test_what_is_not_run_says_why_and_is_counted():
    left_out: dict[str, int] = {}
    for page in PAGES:
        for block in read_blocks(page):
            if block.mark == "not run here":
                assert block.detail, f"{page.name}:{block.line} gives no reason"
                left_out[page.name] = left_out.get(page.name, 0) + 1
    assert left_out == {page: count for page, count in NOT_RUN.items() if count}


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ("```sh\nfalse\n```", "ended with 1"),
        ("```sh\ntracefleet lsit ./store\n```", "did you mean 'list'"),
        ("```sh\ntracefleet list ./none | tail -1\n```", "error"),
        ("```python\nassert 1 + 1 == 3, 'sum'\n```", "sum"),
    ],
)
def test_a_block_that_fails_is_told(block: str, told: str, tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{block}\n")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with pytest.raises(AssertionError, match=re.escape(told)):
        Reader(tmp_path, env).follow(page)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```\nls\n```\n", "expected sh"),
        ("```bash\nls\n```\n", "expected sh"),
        ("```sh\nls\n", "closing"),
    ],
)
def test_a_block_that_can_not_be_read_is_refused(text: str, told: str, tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=told):
        read_blocks(page)


def test_links_lead_somewhere():
    for page in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "infra" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_error_has_a_line_in_troubleshooting():
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    for module in ("tasks/errors.py", "tracefleet/errors.py"):
        for name in re.findall(r"^class (\w+)", (ROOT / module).read_text("utf-8"), re.MULTILINE):
            assert f"| `{name}` |" in text, name
