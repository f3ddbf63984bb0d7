"""Fleet files: what they expand to, and every mistake at once with its entry and field."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import yaml

from tasks.errors import RequestError
from tasks.fetch import hub_errors
from tasks.fleet.patterns import Patterns
from tasks.fleet.schema import fleet_schema
from tasks.fleet.spec import FleetSpec, read_fleet
from tasks.request.conversion import ConversionRequest, make_request

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "fleet.yaml"
GOOD = {"source": "hf://org/name", "task": "fill-mask", "lengths": [8]}


def fleet(**entries: Any) -> FleetSpec:
    return FleetSpec(defaults={"task": "fill-mask", "lengths": [8]}, entries=entries)


def mistakes_of(spec: FleetSpec) -> list[str]:
    """The mistakes of a fleet, a line each."""
    with pytest.raises(RequestError) as caught:
        spec.requests()
    head, *lines = str(caught.value).splitlines()
    assert head == f"fleet file: expected no mistakes, got {len(lines)}:"
    return lines


# What a file expands to.


def test_an_entry_without_lists_keeps_its_name_and_overrides_the_defaults():
    requests = fleet(a={"source": "hf://org/a"}, b={"source": "hf://org/b", "lengths": [16]})
    assert requests.requests() == {
        "a": make_request({**GOOD, "source": "hf://org/a"}),
        "b": make_request({**GOOD, "source": "hf://org/b", "lengths": [16]}),
    }


def test_lists_multiply_and_are_named_by_what_varies():
    spec = fleet(a={"source": ["hf://x/bert", "hf://y/gpt"], "dtype": ["float32", "int8"]})
    requests = spec.requests()
    assert list(requests) == ["a/bert float32", "a/bert int8", "a/gpt float32", "a/gpt int8"]
    assert requests["a/gpt int8"] == make_request({**GOOD, "source": "hf://y/gpt", "dtype": "int8"})
    assert list(fleet(a={"source": "hf://x/bert", "batch": [4]}).requests()) == ["a/b4"]


def test_a_list_in_the_defaults_multiplies_entries_that_do_not_override_it():
    spec = FleetSpec(
        defaults={"task": "fill-mask", "lengths": [8], "dtype": ["float32", "float16"]},
        entries={"a": {"source": "hf://o/a"}, "b": {"source": "hf://o/b", "dtype": "int8"}},
    )
    assert list(spec.requests()) == ["a/float32", "a/float16", "b"]


def test_a_list_of_lengths_is_one_set_and_a_list_of_lists_several():
    spec = fleet(
        one={"source": "hf://o/a", "lengths": [16, 8]},
        sets={"source": "hf://o/b", "lengths": [[16, 8], [32]], "channel": "n-{lengths}"},
    )
    requests = spec.requests()
    assert {name: (r.lengths, r.channel) for name, r in requests.items()} == {
        "one": ((8, 16), "latest"),
        "sets/16-8": ((8, 16), "n-16-8"),
        "sets/32": ((32,), "n-32"),
    }


def test_revisions_have_channels_of_their_own():
    entry = {"source": "hf://o/a", "revision": [None, "v1.0"], "channel": "at-{revision}"}
    assert {name: r.channel for name, r in fleet(a=entry).requests().items()} == {
        "a/(default)": "at-default",
        "a/v1.0": "at-v1-0",
    }


def test_names_take_more_of_a_source_where_its_last_part_is_not_enough():
    sources = [
        "hf://x/bert", "hf://y/bert", "s3://bk/y/bert", "file:///m/y/bert", "hf://y/gpt",
        "hf://y/gpt@v1/x", "hf://y/gpt@v2",
    ]  # fmt: skip
    requests = fleet(a={"source": sources[:5]}).requests()
    assert list(requests) == [
        "a/x/bert", "a/hf://y/bert", "a/bk/y/bert", "a/m/y/bert", "a/gpt",
    ]  # fmt: skip
    assert list(fleet(a={"source": sources[5:6] + sources[:1]}).requests()) == [
        "a/gpt@v1/x", "a/bert",
    ]  # fmt: skip


def _count_calls(number: int) -> int:
    """Return how many Python functions the expansion of so many entries calls."""
    entries = {f"e{n}": {"source": f"hf://org/n{n}", "batch": [1, 8]} for n in range(number)}
    spec, calls = fleet(**entries), 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        requests = spec.requests()
    finally:
        sys.setprofile(None)
    assert len(requests) == 2 * number
    return calls


def test_a_fleets_expansion_costs_as_much_as_it_has_entries():
    few, many = _count_calls(100), _count_calls(1000)
    assert many < 11 * few
    assert many < 150_000


def test_a_fleet_survives_the_way_through_prefect():
    spec = fleet(a={"source": ["hf://x/a", "hf://x/b"]})
    again = FleetSpec.model_validate(json.loads(spec.model_dump_json()))
    assert again.requests() == spec.requests()


def test_another_store_for_all():
    spec = fleet(a={"source": "hf://o/a", "store": "s3://bucket/x"}, b={"source": "hf://o/b"})
    stores = {r.store for r in spec.with_store("file:///srv").requests().values()}
    assert stores == {"file:///srv"}
    assert spec.with_store(None) is spec
    assert mistakes_of(spec.with_store("gopher://x"))[0].startswith("defaults.store: ")


def test_fields_of_one_request_need_nothing_of_the_other_entries():
    spec = fleet(
        a={"source": "hf://o/a", "dtype": ["float32", "int8"]},
        plain={"source": "hf://o/b"},
        wrong={"source": "file:///nowhere/*"},
        half={"task": "fill-mask", "dtype": []},
    )
    assert spec.request_fields("a/int8")["dtype"] == "int8"
    assert spec.request_fields("plain")["source"] == "hf://o/b"
    with pytest.raises(RequestError, match="expected one of a/float32, a/int8, got 'a'"):
        spec.request_fields("a")
    with pytest.raises(RequestError, match="expected one of a, plain, wrong, half, got 'none'"):
        spec.request_fields("none")
    with pytest.raises(RequestError, match=r"half\.dtype: expected at least one value"):
        spec.request_fields("half")


def test_the_command_line_takes_an_expanded_name_and_overrides_it(tmp_path):
    from flows.__main__ import make_program
    from flows.commands.convert import _request

    path = tmp_path / "fleet.yaml"
    path.write_text("entries: {a: {source: hf://o/a, lengths: [8], batch: [1, 2]}}")

    def request(name: str) -> ConversionRequest:
        words = ["convert", "--fleet", f"file://{path}", "--entry", name, "--lengths", "16"]
        return _request(make_program().parse_args(words))

    assert request("a/b2") == make_request({"source": "hf://o/a", "lengths": [16], "batch": 2})
    with pytest.raises(RequestError, match="--entry: expected one of a/b1, a/b2, got 'a'"):
        request("a")


# Mistakes.


def test_all_mistakes_are_reported_together():
    spec = FleetSpec(
        defaults={"task": "fill-mask", "lengths": [8], "dtyp": "x", "batch": 0},
        entries={
            "typo": {"source": "hf://a/b", "tsk": "x", "rtol": 0.5, "dtype": ["int9", "float32"]},
            "listed": [1],
            "empty": None,
            "mixed": {"source": "hf://a/c", "lengths": [8, [9]], "revision": 1.0},
            "lists": {"source": [], "dtype": [], "channel": "A B"},
            "again": {"source": ["hf://a/d", "hf://a/d/"], "lengths": [0]},
            "several": {"source": ["ftp://x", "file:///nowhere/*", 7]},
            "good": {"source": "hf://a/e", "batch": 2},
        },
    )
    lines = mistakes_of(spec)
    assert [line.partition(": expected ")[0] for line in lines] == [
        "defaults.dtyp", "defaults.batch",
        "typo.tsk", "typo.dtype", "typo.rtol", "listed", "empty", "mixed.lengths",
        "mixed.revision", "lists.source", "lists.dtype", "lists.channel", "again.source",
        "again.lengths", "several.source", "several.source", "several.source",
    ]  # fmt: skip
    assert all(" got " in line for line in lines)
    text = "\n".join(lines)
    assert "got 'dtyp'; did you mean 'dtype'?" in text
    assert "got 'tsk'; did you mean 'task'?" in text
    assert (
        "empty: expected a mapping of fields such as `source: hf://org/name`, got nothing" in text
    )
    assert "mixed.revision: expected text, got 1.0; write it in quotes" in text


def test_a_default_that_is_wrong_in_some_entries_alone_is_reported_there():
    spec = FleetSpec(
        defaults={"task": "fill-mask", "lengths": [8], "rtol": 0.001},
        entries={
            "half": {"source": "hf://o/a", "dtype": "float16"},
            "full": {"source": "hf://o/a"},
        },
    )
    assert [line.split(":")[0] for line in mistakes_of(spec)] == ["full.rtol"]


def test_one_conversion_requested_twice_names_both_entries():
    entry = {"source": "hf://o/a", "store": "file:///s"}
    spec = fleet(a=entry, b={**entry, "store": "file:///x/../s", "threads": 2, "batch": [1, 2]})
    (line,) = mistakes_of(spec.with_store("file:///s"))
    assert line.startswith("b.source: expected each conversion once, got 'b/b1', which requests ")
    assert "'a'" in line
    (line,) = mistakes_of(spec)
    assert line.startswith("b.channel: "), "another way to write one store is one store"
    assert len(fleet(a=entry, b={**entry, "batch": 2}).requests()) == 2


@pytest.mark.parametrize(
    "change",
    [{"lengths": [16]}, {"rtol": 2e-5}, {"revision": "v1"}, {"source": "hf://o/a@v1"}],
)
def test_two_conversions_that_would_move_one_channel_name_both_entries(change):
    entry = {"source": "hf://o/a"}
    (line,) = mistakes_of(fleet(first=entry, second={**entry, **change}))
    assert line.startswith("second.channel: expected a channel that no other request moves, got ")
    assert "'first' moves too" in line
    assert f"but other {next(iter(change))}); give" in line
    assert "another channel, such as latest-2" in line
    assert len(fleet(first=entry, second={**entry, **change, "channel": "b"}).requests()) == 2


def test_sets_of_lengths_in_one_channel_are_refused():
    (line,) = mistakes_of(fleet(a={"source": "hf://o/a", "lengths": [[8], [16]]}))
    assert line.startswith("a.channel: ")
    assert "'a/8' moves too" in line
    assert "{lengths}" in line


def test_two_requests_of_one_name_are_refused():
    spec = {"a": {"source": "hf://o/a", "batch": [1]}, "a/b1": {"source": "hf://o/b"}}
    (line,) = mistakes_of(fleet(**spec))
    assert line.startswith("a/b1: expected names that no other entry gives, got 'a/b1'")


# Patterns.


def folder(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")


def sources(spec: FleetSpec) -> dict[str, str]:
    return {name: request.source for name, request in spec.requests().items()}


def test_a_pattern_over_folders(tmp_path):
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    for name in ("bert-b", "bert-a", "gpt", ".bert-hidden", "bert-in/side"):
        folder(models / name)
    folder(elsewhere / "bert-x")
    (models / "bert-file").write_text("no folder")
    (models / "bert-out").symlink_to(elsewhere / "bert-x")
    (models / "bert-link").symlink_to(models / "gpt")
    assert sources(fleet(a={"source": f"file://{models}/bert-*"})) == {
        f"a/{name}": f"file://{models}/{name}" for name in ("bert-a", "bert-b", "bert-link")
    }
    assert list(sources(fleet(a={"source": f"file://{models}/bert-[ab]"}))) == [
        "a/bert-a", "a/bert-b",
    ]  # fmt: skip
    both = [f"file://{models}/gpt", f"file://{models}/*p?", f"file://{models}/bert-a"]
    assert list(sources(fleet(a={"source": both}))) == ["a/gpt", "a/bert-a"]
    for pattern, says in {
        f"file://{models}/none-*": "expected folders with a config.json that match the pattern",
        f"file://{models}/*/side": "expected *, ? and [] in the last part alone, got",
        f"file://{models}/none/*": "expected a folder that can be listed, got",
    }.items():
        (line,) = mistakes_of(fleet(a={"source": pattern}))
        assert line.startswith(f"a.source: {says}")


def test_a_folder_whose_name_looks_like_a_pattern_is_itself(tmp_path):
    folder(tmp_path / "bert[12]")
    folder(tmp_path / "bert1")
    name = f"file://{tmp_path}/bert[12]"
    assert sources(fleet(a={"source": name})) == {"a": name}
    assert list(sources(fleet(a={"source": f"file://{tmp_path}/bert[13]"}))) == ["a/bert1"]


def test_a_pattern_over_folders_is_read_as_a_name_is(tmp_path, monkeypatch, hub):
    for name in ("models/bert-a", "models/bert-b", "models/gpt", "bert-c", "my models/bert-d"):
        folder(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    hub.models = ["models/bert-hub", "other/bert-hub"]
    both = {f"a/bert-{letter}": f"file://{tmp_path}/models/bert-{letter}" for letter in "ab"}
    for pattern in (
        "./models/bert-*", "models/bert-*", "~/models/bert-?", f"{tmp_path}//models/bert-*/",
        "file://./models/bert-*", "file://~/models/bert-*",
    ):  # fmt: skip
        assert sources(fleet(a={"source": pattern})) == both
    assert sources(fleet(a={"source": "./bert-*"})) == {"a/bert-c": f"file://{tmp_path}/bert-c"}
    beside = {"a/bert-d": f"file://{tmp_path}/my models/bert-d"}
    assert sources(fleet(a={"source": "file://./my%20models/*"})) == beside
    assert sources(fleet(a={"source": "other/bert-*"})) == {"a/bert-hub": "hf://other/bert-hub"}
    assert sources(fleet(a={"source": "hf://models/*"})) == {"a/bert-hub": "hf://models/bert-hub"}
    for pattern, says in {
        "./modls/bert-*": "expected a folder that can be listed, got",
        "bert-*": "expected a pattern such as hf://org/name-*, got",
        "gs://models/*": "expected hf://org/name, org/name, a folder or s3://bucket/prefix; got",
    }.items():
        (line,) = mistakes_of(fleet(a={"source": pattern}))
        assert line.startswith(f"a.source: {says}")


def test_one_folder_in_two_spellings_is_one_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = mistakes_of(fleet(a={"source": ["./x", f"{tmp_path}/x/"]}))
    assert line.startswith("a.source: expected each value once, got ")
    (line,) = mistakes_of(fleet(a={"source": "./x"}, b={"source": f"file://{tmp_path}//x"}))
    assert line.startswith("b.source: expected each conversion once, got 'b'")
    assert sources(fleet(a={"source": [Path("x"), "org/name"]})) == {
        "a/x": f"file://{tmp_path}/x",
        "a/name": "hf://org/name",
    }


@pytest.fixture
def bucket(moto_server, aws_env, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    aws_env(moto_server)
    bucket = boto3.session.Session().resource("s3").Bucket("fleet-models")
    bucket.create()
    yield bucket
    bucket.objects.all().delete()


def test_a_pattern_over_prefixes(bucket, monkeypatch):
    names = ("bert-b", "bert-a", "bert-a/deeper", "gpt", "bert[12]", "bert1")
    for key in [*(f"m/{name}/config.json" for name in names), "m/bert-none/x", "m/bert-file"]:
        bucket.put_object(Key=key, Body=b"{}")
    url = "s3://fleet-models/m"
    assert sources(fleet(a={"source": f"{url}/bert-*"})) == {
        f"a/{name}": f"{url}/{name}" for name in ("bert-a", "bert-b")
    }
    assert sources(fleet(a={"source": f"{url}/bert[12]"})) == {"a": f"{url}/bert[12]"}
    (line,) = mistakes_of(fleet(a={"source": f"{url}/none-*"}))
    assert line.startswith("a.source: expected prefixes with a config.json that match")
    (line,) = mistakes_of(fleet(a={"source": "s3://no-such-bucket-here/m/*"}))
    assert line.startswith("a.source: expected prefixes like 's3://no-such-bucket-here/m/*', got")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (line,) = mistakes_of(fleet(a={"source": f"{url}/bert-*"}))
    assert "AWS_PROFILE" in line


def asked_of(spec: FleetSpec) -> dict[str, str]:
    """What stands for each request: its source, or the type and text of an error."""
    told: dict[str, str] = {}
    for name, one in spec.expand(Patterns()).items():
        error = f"{type(one).__name__}: {one}"
        told[name] = one.source if isinstance(one, ConversionRequest) else error
    return told


def test_what_is_wrong_with_one_value_source_or_entry_costs_that_alone(tmp_path):
    folder(tmp_path / "bert-a")
    spec = fleet(
        typo={"source": "hf://o/typo", "tsk": "x", "dtype": ["float32", "int8"]},
        good={"source": "hf://o/good"},
        listed=[1],
        mixed={"source": "hf://o/mixed", "lengths": [8, [9]]},
        dtypes={"source": "hf://o/dtypes", "dtype": ["float32", "float65"]},
        sources={"source": [f"{tmp_path}/none-*", f"{tmp_path}/bert-*", "ftp://x"]},
        empty={"source": f"{tmp_path}/none-*"},
    )
    asked = asked_of(spec)
    assert list(asked) == [
        "typo", "good", "listed", "mixed", "dtypes/float32", "dtypes/float65",
        "sources/bert-a", f"sources/{tmp_path}/none-*", "sources/ftp://x", "empty",
    ]  # fmt: skip
    assert asked["typo"].startswith("RequestError: tsk: expected a field that exists, got 'tsk'")
    assert asked["good"] == "hf://o/good"
    assert asked["listed"].startswith("RequestError: listed: expected a mapping of fields")
    assert asked["mixed"].startswith("RequestError: lengths: expected whole numbers, or lists")
    assert asked["dtypes/float32"] == "hf://o/dtypes"
    assert asked["dtypes/float65"].startswith("RequestError: dtype: expected ")
    assert asked["sources/bert-a"] == f"file://{tmp_path}/bert-a"
    for name in (f"sources/{tmp_path}/none-*", "empty"):
        assert "expected folders with a config.json that match the pattern" in asked[name]


@pytest.mark.parametrize(
    "change",
    [
        {"two": {"source": "hf://o/one"}},
        {"two": {"source": "hf://o/one", "lengths": [16]}},
        {"two": {"source": "hf://o/two", "batch": [2, 2]}},
        {"one/float32": {"source": "hf://o/two"}},
    ],
)
def test_something_twice_is_a_mistake_of_the_file_and_all_of_them_are_named(change):
    entries = {"one": {"source": "hf://o/one", "dtype": ["float32"]}, "typo": {"tsk": "x"}}
    with pytest.raises(RequestError, match=r"got \d:\n") as caught:
        fleet(**entries, **change).expand(Patterns())
    named = [line.split(":")[0] for line in str(caught.value).splitlines()[1:]]
    assert {"typo.tsk", "typo.source"} < set(named)
    assert len(named) == 3


def test_wrong_defaults_are_a_mistake_of_the_file():
    spec = FleetSpec(defaults={"lengths": [8], "dtype": "no"}, entries={"a": {"source": "o/a"}})
    with pytest.raises(RequestError, match=r"\ndefaults\.dtype: expected"):
        spec.expand(Patterns())


def test_a_hub_that_is_away_is_asked_once_for_all_patterns(hub, monkeypatch):
    from huggingface_hub import HfApi

    asked: list[str] = []

    def lose(_self: object, author: str) -> list[Any]:
        asked.append(author)
        raise hub_errors.connection_errors()("[Errno -2] Name or service not known")

    monkeypatch.setattr(HfApi, "list_models", lose)
    spec = fleet(a={"source": "hf://o/a-*"}, b={"source": "hf://p/b-*"}, c={"source": "hf://o/c"})
    patterns = Patterns()
    found = spec.expand(patterns)
    assert asked == ["o"]
    assert "hf://o/a-*: expected an answer of http" in str(found["b"])
    assert isinstance(found["c"], ConversionRequest)
    patterns.ask_again()
    spec.expand(patterns)
    assert asked == ["o", "o"]


def test_what_the_network_does_is_no_mistake_of_the_file(bucket, monkeypatch):
    from botocore.exceptions import EndpointConnectionError

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(EndpointConnectionError):
        fleet(a={"source": "s3://fleet-models/m/*"}).requests()
    (told,) = asked_of(fleet(a={"source": "s3://fleet-models/m/*"})).values()
    assert told.startswith("EndpointConnectionError: ")
    with pytest.raises(EndpointConnectionError):
        read_fleet("s3://fleet-models/fleet.yaml")


def test_a_pattern_over_repositories(hub, monkeypatch):
    hub.models = ["acme/bert-b", "acme/bert-a", "acme/Bert-c", "acme/gpt", "other/bert-d"]
    assert sources(fleet(a={"source": "hf://acme/bert-*"})) == {
        "a/bert-a": "hf://acme/bert-a",
        "a/bert-b": "hf://acme/bert-b",
    }
    before = len(hub.log)
    fleet(a={"source": "hf://acme/*"}, b={"source": "hf://acme/*", "batch": 2}).requests()
    assert len(hub.log) == before + 1, "one pattern is looked up once"
    for pattern, says in {
        "hf://acme/none-*": "expected repositories that match the pattern, got none for",
        "hf://*/bert": "expected *, ? and [] in the last part alone, got",
        "hf://acme/bert-*@v1": "expected a pattern such as hf://org/name-*, got",
    }.items():
        (line,) = mistakes_of(fleet(a={"source": pattern}))
        assert line.startswith(f"a.source: {says}")


def test_a_hub_that_refuses_or_fails(hub, monkeypatch):
    from huggingface_hub.errors import HfHubHTTPError

    spec = fleet(a={"source": "hf://acme/*"})
    hub.status["models"] = 401
    assert "HF_TOKEN" in mistakes_of(spec)[0]
    hub.status["models"] = 400  # 5xx takes the library's half minute of retries
    with pytest.raises(HfHubHTTPError):
        spec.requests()
    hub.status.clear()
    hub.raw_api = b"<html>log in</html>"
    assert "HF_ENDPOINT" in mistakes_of(spec)[0]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in mistakes_of(spec)[0]


# The file.

TEXT = "defaults: {task: fill-mask, lengths: [8]}\nentries: {a: {source: hf://o/a}}\n"


def test_a_file_is_read_by_path_and_by_url(bucket, tmp_path, monkeypatch):
    path = tmp_path / "fleet.yaml"
    path.write_text("\ufeff" + TEXT, encoding="utf-8")
    bucket.put_object(Key="f/fleet.yaml", Body=TEXT.encode())
    monkeypatch.chdir(tmp_path)
    wheres = [path, str(path), f"file://{path}", "file://./fleet.yaml", "fleet.yaml"]
    for where in [*wheres, "s3://fleet-models/f/fleet.yaml"]:
        assert read_fleet(where) == fleet(a={"source": "hf://o/a"})
    as_json = tmp_path / "fleet.json"
    as_json.write_text(json.dumps(yaml.safe_load(TEXT), indent=2))
    assert read_fleet(as_json) == read_fleet(path)
    bucket.put_object(Key="f/fleet.yaml", Body=b"entries: {a: {source: hf://o/b}}")
    assert read_fleet("s3://fleet-models/f/fleet.yaml") != read_fleet(path), "no cached bytes"
    with pytest.raises(RequestError, match=r"s3://fleet-models/none: expected an object, got"):
        read_fleet("s3://fleet-models/none")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("entries: [", "expected YAML, got"),
        ("a: b\n---\na: b", "expected YAML, got"),
        ("entries: {? [x] : y}", "expected YAML, got|expected text as a name"),
        ("entries: {a: {revision: 2024-99-99}}", "expected YAML, got"),
        ("entries: " + "[" * 1000, "expected YAML, got"),
        ("entries: !!python/object:os.system {}", "expected YAML, got"),
        ("", "expected defaults and entries, got an empty file"),
        ("- 1", r"expected defaults and entries, got \[1\]"),
        ("{}", "entries: expected .*, got"),
        ("defaults: {}", "entries: expected a value, got none"),
        ("entries: {}", "entries: expected at least one, got {}"),
        ("entries:", "entries: expected a mapping, got nothing"),
        ("entries: [a]", r"entries: expected a mapping, got \['a'\]"),
        ("entries: {a: {}}\ndefault: {}", "default: expected .*did you mean 'defaults'"),
        ("entries: {a: {}}\ndefaults:", "defaults: expected a mapping, got nothing"),
        ("entries: {1: {}}", "\n1: expected text as a name, got 1 in line 1; quote it"),
        ("entries:\n  a: {no: x}", r"a\.no: expected text as a name, got no in line 2"),
        ("entries: {~: {}}", "expected text as a name, got ~ in line 1"),
    ],
)
def test_a_file_that_is_no_fleet_is_refused(text, says, tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=says) as caught:
        read_fleet(path)
    assert str(caught.value).startswith(f"fleet file {path}: expected ")


def test_names_that_stand_twice_are_all_reported_with_both_lines(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text(
        "entries:\n  a:\n    batch: 1\n    batch: 2\n  b: {}\n  'b': {}\n"
        "defaults: {task: x, task: y}\ndefaults: {}\n"
    )
    with pytest.raises(RequestError) as caught:
        read_fleet(path)
    lines = "lines 3 and 4", "lines 5 and 6", "lines 7 and 7", "lines 7 and 8"
    found = re.findall(
        r"^(\S+): expected once, got in line (\d) and again in line (\d); remove one$",
        str(caught.value),
        re.MULTILINE,
    )
    assert {f"lines {first} and {again}" for _, first, again in found} == set(lines)
    assert {name for name, _, _ in found} == {"a.batch", "b", "defaults.task", "defaults"}


def test_anchors_and_merges_are_no_repetition(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text(
        "entries:\n  a: &a {source: hf://o/a, lengths: [8]}\n"
        "  b: &b {<<: *a, lengths: [16], batch: 2}\n  c: {<<: *b, batch: 3}\n"
    )
    assert [request.lengths for request in read_fleet(path).requests().values()] == [
        (8,), (16,), (16,),
    ]  # fmt: skip


def test_aliases_that_explode_or_lead_back_end_in_a_short_message(tmp_path):
    path = tmp_path / "fleet.yaml"
    bomb = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 20))
    path.write_text(f"x0: &x0 [1]\n{bomb}entries: {{a: *x19, b: &b {{source: *b}}}}\n")
    with pytest.raises(RequestError, match="x3: expected") as caught:
        read_fleet(path)
    assert len(str(caught.value)) < 10_000
    path.write_text("entries: {a: &a [*a], b: &b {source: *b, lengths: [8]}}\n")
    assert [line.split(":")[0] for line in mistakes_of(read_fleet(path))] == ["a", "b.source"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "expected a readable file, got No such file"),
        (lambda path: path.mkdir(), "expected a readable file, got Is a directory"),
        (lambda path: path.write_bytes(b"entries: \xff"), "expected UTF-8 text, got"),
    ],
)
def test_a_file_that_can_not_be_read_is_refused(make, says, tmp_path):
    make(tmp_path / "fleet.yaml")
    with pytest.raises(RequestError, match=says):
        read_fleet(tmp_path / "fleet.yaml")
    with pytest.raises(RequestError, match="expected a path, file:// or s3:// URL, got scheme"):
        read_fleet("https://host/fleet.yaml")


# The example and the schema.


def test_the_example_is_valid_and_its_entries_are_what_it_says(hub):
    hub.models = [f"intfloat/e5-{size}" for size in ("small-v2", "large-v2", "base", "base-v2")]
    requests = read_fleet(EXAMPLE).requests()
    assert list(requests) == [
        "minilm", "bert-fill-mask", "sentiment/float32 b1", "sentiment/float32 b8",
        "sentiment/bfloat16 b1", "sentiment/bfloat16 b8", "short-queries/16-32",
        "short-queries/64-128", "e5/e5-base-v2", "e5/e5-large-v2", "e5/e5-small-v2",
    ]  # fmt: skip
    assert requests["minilm"].lengths == (32, 64, 128, 256)
    assert requests["short-queries/16-32"].channel == "queries-16-32"
    assert requests["e5/e5-base-v2"].timeout_seconds == 7200


def test_the_schema_beside_the_example_is_the_generated_one():
    kept = json.loads((ROOT / "examples" / "fleet.schema.json").read_text("utf-8"))
    assert kept == fleet_schema(), (
        "a field changed: tracefleet schema fleet > examples/fleet.schema.json"
    )
    assert EXAMPLE.read_text("utf-8").startswith(
        "# yaml-language-server: $schema=fleet.schema.json\n"
    )


GENERATED = fleet_schema()
SCHEMA = jsonschema.Draft202012Validator(GENERATED)


def test_the_schema_is_one_and_takes_the_example():
    SCHEMA.check_schema(GENERATED)
    SCHEMA.validate(yaml.safe_load(EXAMPLE.read_text("utf-8")))
    fields = GENERATED["$defs"]["request"]["properties"]
    assert set(fields) == set(type(make_request(GOOD)).model_fields)
    assert all(field["description"] for field in fields.values())


@pytest.mark.parametrize(
    ("entry", "sound"),
    [
        ({}, True),
        ({"lengths": [8, 16]}, True),
        ({"lengths": [[8], [16]]}, True),
        ({"lengths": [8, [16]]}, False),
        ({"lengths": 8}, False),
        ({"lengths": [0]}, False),
        ({"lengths": []}, False),
        ({"source": ["hf://o/a", "s3://b/*"]}, True),
        ({"source": ["o/a", "bert", "./models/bert", "~/bert", "./with:colon"]}, True),
        ({"source": "gs://o/a"}, False),
        ({"source": ""}, False),
        ({"task": None}, True),
        ({"task": ["fill-mask"]}, True),
        ({"task": "fil-mask"}, False),
        ({"dtype": ["float32", "int8"]}, True),
        ({"dtype": "float64"}, False),
        ({"batch": [1, 8]}, True),
        ({"batch": 0}, False),
        ({"channel": "n-{lengths}"}, True),
        ({"channel": ["a", "b"]}, False),
        ({"store": ["a", "b"]}, False),
        ({"tsk": "fill-mask"}, False),
        (None, False),
        ([], False),
    ],
)
def test_the_schema_takes_and_refuses_what_the_pipeline_does(entry, sound):
    assert SCHEMA.is_valid({"entries": {"a": entry}}) is sound
    assert SCHEMA.is_valid({"defaults": entry, "entries": {"a": {}}}) is sound
    if entry:
        file = FleetSpec(entries={"a": {**GOOD, "channel": "n-{lengths}", **entry}})
        patterns = {k: v for k, v in entry.items() if "*" not in str(v)}
        if sound and patterns:
            assert file.requests()
        elif not sound:
            assert mistakes_of(file)


@pytest.mark.parametrize("file", [{}, {"entries": {}}, {"entries": {"a": {}}, "extra": 1}])
def test_the_schema_refuses_other_outlines(file):
    assert not SCHEMA.is_valid(file)
    with pytest.raises(ValueError, match="validation error"):
        FleetSpec.model_validate(file)


def test_a_plain_fleet_imports_nothing_heavy():
    probe = (
        "import sys; from tasks.fleet.spec import FleetSpec; "
        "entry = {'source': 'hf://o/a', 'lengths': [8], 'dtype': ['float32', 'int8']}; "
        "assert len(FleetSpec(entries={'a': entry}).requests()) == 2; "
        "sys.exit(str({'torch', 'transformers', 'huggingface_hub', 'prefect', 's3fs', 'botocore'}"
        " & set(sys.modules) or ''))"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True
    )
    assert outcome.stderr.strip() == ""
