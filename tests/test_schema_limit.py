"""A store that limits its schema is written for the readers that are out there.

``tests/data/reader-of-schema-2`` has the reader's wheel of the last commit before schema 3.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tracefleet
from flows.__main__ import main
from flows.convert import convert
from tasks.plan.fleet import plan
from tasks.publish.schema_limit import LIMIT_PATH, read_limit, write_limit
from tasks.request.conversion import ConversionRequest, make_request
from tracefleet.errors import StoreError
from tracefleet.manifest import SCHEMA
from tracefleet.store import open_store
from tracefleet.store.folder import FileStore

WHEELS = Path(__file__).parent / "data" / "reader-of-schema-2"
#: Opens a store with the reader that is found first, and prints what it computes.
OPEN = """
import json, sys, tracefleet
assert tracefleet.__file__.startswith(sys.argv[3]), tracefleet.__file__
model = tracefleet.open(sys.argv[1], sys.argv[2])
print(json.dumps(model([[5, 6, 7], [8, 9, 10]])["last_hidden_state"].tolist()))
"""


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(root=tmp_path / "store")


@pytest.fixture
def request_of(checkpoint: Callable[[str], Path], store: FileStore) -> ConversionRequest:
    fields = {"source": str(checkpoint("bert")), "task": "feature-extraction", "lengths": [8, 16]}
    return make_request({**fields, "store": store.url})


@pytest.fixture(scope="module")
def old_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    [wheel] = WHEELS.glob("*.whl")
    folder = tmp_path_factory.mktemp("old-reader")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def _open_with(reader: Path, wanted: ConversionRequest) -> subprocess.CompletedProcess[str]:
    # Only the first of several entries for one package is imported.
    return subprocess.run(
        [sys.executable, "-c", OPEN, wanted.store, wanted.source, str(reader)],
        env={**os.environ, "PYTHONPATH": str(reader)},
        cwd=reader,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_reader_of_the_schema_before_reads_a_limited_store(store, request_of, old_reader):
    write_limit(store, "2")
    made = convert(request_of)
    assert (made.manifest.schema, made.manifest.general, made.manifest.routed) == (2, None, None)
    assert made.manifest.options == {"schema": "2"}
    read = _open_with(old_reader, request_of)
    assert read.returncode == 0, read.stderr
    now = tracefleet.open(store.url, request_of.source)([[5, 6, 7], [8, 9, 10]])
    assert json.loads(read.stdout) == now["last_hidden_state"].tolist()


def test_without_the_limit_it_refuses_the_manifest(store, request_of, old_reader):
    assert convert(request_of).manifest.schema == SCHEMA
    read = _open_with(old_reader, request_of)
    assert read.returncode != 0
    assert "or written by another version of tracefleet" in read.stderr


def test_a_limited_store_is_fresh_until_the_limit_is_lifted(store, request_of):
    write_limit(store, "2")
    first = convert(request_of)
    assert convert(request_of).fresh
    assert _plan(request_of) == ("fresh", ())
    write_limit(store, "newest")
    assert _plan(request_of) == ("stale", ("new options: schema 2 -> none",))
    second = convert(request_of)
    assert (second.fresh, second.manifest.schema, second.publication.number) == (False, SCHEMA, 2)
    assert second.manifest.general is not None
    assert second.manifest.key != first.manifest.key


def _plan(wanted: ConversionRequest) -> tuple[str, tuple[str, ...]]:
    [row] = plan({"entry": wanted})
    return row.state, row.why


def test_the_command_sets_and_lifts_it(tmp_path, capsys):
    store = str(tmp_path / "store")
    assert _limit(capsys, store, "2") == {"schema": 2}
    assert read_limit(open_store(store)) == 2
    assert _limit(capsys, store, "newest") == {"schema": SCHEMA}
    assert read_limit(open_store(store)) == SCHEMA
    assert main(["limit-schema", "--store", store, "--schema", "2"]) == 0
    assert capsys.readouterr().out == "schema  at most 2 from now on\n"


def _limit(capsys: pytest.CaptureFixture[str], store: str, schema: str) -> Any:
    assert main(["limit-schema", "--store", store, "--schema", schema, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("schema", ["1", "4", "two", ""])
def test_a_schema_that_this_version_cannot_write_is_refused(store, schema):
    with pytest.raises(StoreError, match=f"expected one of 2, 3, or newest, got '{schema}'"):
        write_limit(store, schema)
    assert read_limit(store) == SCHEMA


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"schema": 4}', b'{"schema": "2"}', b"2"])
def test_a_damaged_limit_stops_the_writer(store, request_of, data):
    store.put_over(LIMIT_PATH, data)
    with pytest.raises(StoreError, match=r"schema.json: expected one of the schemas 2, 3, got"):
        convert(request_of)
    (row,) = plan({"entry": request_of})
    assert (row.state, row.error) == ("invalid", "StoreError")
    assert "schema.json: expected one of the schemas 2, 3, got" in row.message
    assert list(store.walk("conversions")) == []
