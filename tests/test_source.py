"""A model's name means one thing, whoever reads it, and in whatever way it is written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tracefleet.channel import source_slug
from tracefleet.names import slugs_of
from tracefleet.source import normalise, spellings


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and home with the folders ``x``, ``org/name`` and ``my model``."""
    for name in ("x", "org/name", "my model", "50%20", "a\\b"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("./x", "x"),
        ("x", "x"),
        ("x/", "x"),
        (".//x//", "x"),
        ("../{here.name}/x", "x"),
        ("./y/../x/.", "x"),
        ("{here}/x", "x"),
        ("//{here}//x/", "x"),
        ("~/x", "x"),
        ("~", ""),
        (".", ""),
        ("file://./x", "x"),
        ("file://./x/", "x"),
        ("file://~/x", "x"),
        ("file://{here}/x", "x"),
        ("file://{here}//y/..//x/", "x"),
        ("file:///{here}/x", "x"),
        ("org/name", "org/name"),
        ("org//name/", "org/name"),
        ("./absent", "absent"),
        (".absent", ".absent"),
        ("./my model", "my model"),
        ("my model", "my model"),
        ("file://{here}/my model", "my model"),
        ("file://{here}/my%20model", "my model"),
        ("file://./my%20model/", "my model"),
        ("./my%20model", "my model"),
        ("file://{here}/50%20", "50%20"),
        ("file://{here}/ab%20sent", "ab%20sent"),
        ("a\\b", "a\\b"),
        ("no\\where", "no\\where"),
    ],
)
def test_a_folder_has_one_name(here: Path, name: str, path: str):
    expected = f"file://{here}/{path}".rstrip("/")
    normal = normalise(name.format(here=here))
    assert normal == expected
    assert normalise(normal) == normal


@pytest.mark.parametrize("path", ["x", "./x/", "org/../x", "~/x"])
def test_a_path_object_is_a_path(here: Path, path: str):
    assert normalise(Path(path)) == f"file://{here}/x"
    assert normalise(Path("other/name")) == f"file://{here}/other/name", "never the hub"
    assert normalise(here / "x") == f"file://{here}/x"


def test_the_root_and_another_user(here: Path):
    assert normalise("/") == normalise("file:///") == "file:///"
    assert normalise("~root/x") == f"file://{Path('~root').expanduser()}/x"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf://other/name", "hf://other/name"),
        ("hf://other//name/", "hf://other/name"),
        ("hf://bert-base", "hf://bert-base"),
        ("hf://org/name", "hf://org/name"),
        ("hf://Other/Name_v1.5", "hf://Other/Name_v1.5"),
        ("other/name", "hf://other/name"),
        ("other/name/", "hf://other/name"),
        ("bert-base", "hf://bert-base"),
        ("other/name@refs/pr/1", "hf://other/name@refs/pr/1"),
        ("hf://bert-base@v1.0", "hf://bert-base@v1.0"),
        ("s3://bucket/prefix/deep//", "s3://bucket/prefix/deep"),
        ("s3://bucket/", "s3://bucket"),
    ],
)
def test_names_of_the_hub_and_of_buckets(here: Path, name: str, expected: str):
    assert normalise(name) == expected == normalise(expected)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "got '', which is no folder in .* and no name that the hub can have"),
        (" ", "no name that the hub"),
        ("two words", "no name that the hub"),
        (" other/name", "no name that the hub"),
        ("other/name\n", "no name that the hub"),
        ("other/name/more", "no name that the hub"),
        ("-other/name", "no name that the hub"),
        ("other/..", "no name that the hub"),
        ("gs://bucket/x", "unknown scheme 'gs'"),
        ("HF://other/name", "unknown scheme 'HF'"),
        ("file://folder", r"file://\./folder"),
        ("file://localhost/x", r"file://\./localhost/x"),
        ("file://", "file:///absolute"),
        ("~nobody-here/x", r"which is no user's here. Write \./~nobody-here/x"),
        ("hf://", "org/name"),
        ("hf:///other/name", "org/name"),
        ("hf://a/b/c", "org/name"),
        ("hf://a/../b", "org/name"),
        ("other/name@", "revision"),
        ("hf://a/b@../../x", "revision"),
        ("s3://", "bucket"),
        ("s3://bucket//x", "prefix"),
        ("s3://bucket/./x", "prefix"),
    ],
)
def test_what_is_no_name_is_refused(here: Path, name: str, says: str):
    with pytest.raises(ValueError, match=says):
        normalise(name)


def test_links_keep_their_names(here: Path):
    (here / "link").symlink_to(here / "x")
    assert normalise("link") == normalise("./link") == f"file://{here}/link"
    assert f"file://{here}/x" in spellings("link"), "a writer may have been behind the link"
    assert f"file://{here}/link" not in spellings("x")


def test_a_working_directory_behind_a_link_is_still_found(here: Path):
    (here / "real").mkdir()
    (here / "link").symlink_to(here / "real")
    os.chdir(here / "link")
    published = normalise("./model")  # the system knows the working directory without links
    assert published in spellings(here / "link" / "model")


@pytest.mark.parametrize(
    ("name", "before"),
    [
        # What each was called before there was one function, as `--source` and as a slug.
        ("hf://org/name", "hf.org.name-83430846"),
        ("hf://org/name/", "hf.org.name-83430846"),
        ("file:///models/bert", "file.bert-ea1d1155"),
        ("file:////models/./x/../bert/", "file.bert-ea1d1155"),
        ("file:///my models/b", "file.b-804e1b42"),
        ("file:///my%20models/b", "file.b-47c69274"),
        ("s3://bucket/prefix/", "s3.prefix-9737a7d8"),
        ("s3://bucket", "s3.bucket-f6404b9c"),
    ],
)
def test_slugs_are_those_of_before(name: str, before: str):
    assert source_slug(normalise(name)) == before


def test_a_name_is_looked_for_as_it_is_read_first_and_as_it_is_written_then(here: Path):
    url = f"file://{here}"
    assert spellings("hf://org/name") == ["hf://org/name"]
    bare = [f"{url}/other/name", "file://./other/name", f"{url}/other/name/"]
    assert spellings("other/name") == ["hf://other/name", *bare]
    assert spellings("x")[:2] == ["hf://x", f"{url}/x"], "whether or not there is a folder"
    assert spellings("hf://org/name/") == ["hf://org/name", "hf://org/name/"]
    assert spellings("./x") == [f"{url}/x", "file://./x", f"{url}/x/"]
    assert spellings(f"{url}//x/")[:2] == [f"{url}/x", f"{url}//x/"]
    assert spellings(f"{url}/my%20model")[:2] == [f"{url}/my model", f"{url}/my%20model"]
    assert f"{url}/ab sent" in spellings(f"{url}/ab%20sent")
    assert f"{url}/my%20model" not in spellings("./my model"), "that is another folder"
    assert spellings("gs://bucket/x") == ["gs://bucket/x"]
    assert spellings("two words")[0] == f"{url}/two words", "no hub has it"


def test_a_slug_is_itself_first(here: Path):
    slug = source_slug("hf://org/name")
    assert slugs_of(slug)[:2] == [slug, source_slug(f"hf://{slug}")]
    (here / "bert-20240101").mkdir()
    assert slugs_of("bert-20240101")[0] == "bert-20240101"
    assert source_slug(f"file://{here}/bert-20240101") in slugs_of("bert-20240101")
    assert slugs_of("org/name")[0] == source_slug("hf://org/name")
    assert slugs_of("support-classifier")[0] == "support-classifier", "a name comes first"
    assert all(re.fullmatch(r"[a-z0-9._-]+-[0-9a-f]{8}", one) for one in slugs_of("../.."))
