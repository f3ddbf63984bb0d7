"""A model's name: one way to read it, for those who publish and those who open alike.

    hf://org/name  hf://name  hf://org/name@revision   or org/name, name: a repository of the hub
    file:///absolute/folder                            or any path to it
    s3://bucket/prefix                                 a prefix in a bucket

What begins with ``.``, ``/`` or ``~``, has a backslash or is a ``Path`` is a path, and never the
hub: a mistyped path must not open somebody else's model. To one who converts, any other name
without a scheme is the folder of that name where there is one, because who has it at hand means it;
``hf://`` says otherwise. Readers look into the store alone (``spellings``).
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from urllib.parse import unquote

_FORMS = "hf://org/name, org/name, a folder or s3://bucket/prefix"
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_NAME}(?:/{_NAME})?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]+")


def normalise(name: str | Path) -> str:
    """Return the one way to write a source; what it returns it returns again.

    Folders become absolute by name alone: following links would give a source a new name whenever
    a link moves. ``%20`` is a space if a folder has that name and none has the three characters,
    under which folders were published before escapes were read. A path is read as its URL is.

    Args:
        name: of a checkpoint, with or without a scheme, or a path.

    Raises:
        ValueError: it is no name; says which forms there are.
    """
    scheme, rest = split(name)
    if scheme == "file":
        return f"file://{_folder(name, rest)}"
    if scheme == "s3":
        return f"s3://{_prefix(name, rest)}"
    return f"hf://{_repository(name, rest)}"


def spellings(name: str | Path) -> list[str]:
    """Return the sources that a reader's name may stand for, the likeliest first.

    No folder decides here: what a bare name means must not depend on where a program is started, so
    that it is the hub's before it is a path's. The others are the name as it is written, which
    programs of one's own may have published, and for a folder its other readings: with escapes and
    without, with a slash at its end, and behind its links, since a writer knows its working
    directory without them.
    """
    found: list[str] = []
    for scheme, rest in _split_both(name):
        # A name that can't be the hub's may still be a path's.
        with contextlib.suppress(ValueError):
            found += _spell(name, scheme, rest)
    return list(dict.fromkeys(found)) or [os.fspath(name)]


def _split_both(name: str | Path) -> list[tuple[str, str]]:
    text = os.fspath(name)
    if isinstance(name, str) and "://" not in text and not _is_path(text):
        return [("hf", text), ("file", f"./{text}")]
    with contextlib.suppress(ValueError):
        return [split(name)]
    return []


def _spell(name: str | Path, scheme: str, rest: str) -> list[str]:
    if scheme == "hf":
        return [f"hf://{_repository(name, rest)}", f"hf://{rest}"]
    if scheme == "s3":
        return [f"s3://{_prefix(name, rest)}", f"s3://{rest}"]
    path = _folder(name, rest)
    others = (path, rest, f"{path}/", *_readings(name, rest), os.path.realpath(path))
    return [f"file://{other}" for other in others]


def split(name: str | Path) -> tuple[str, str]:
    """Return the scheme of a name, and what follows it or would follow it.

    Raises:
        ValueError: the scheme is unknown.
    """
    text = os.fspath(name)
    scheme, separator, rest = text.partition("://")
    if isinstance(name, str) and separator:
        if scheme not in ("hf", "file", "s3"):
            raise ValueError(f"source: expected {_FORMS}; got the unknown scheme {scheme!r}")
        return scheme, rest
    if _is_path(text) or os.path.isdir(text) or not isinstance(name, str):  # noqa: PTH112
        return "file", text if _is_anchored(text) else f"./{text}"
    return "hf", text


def check_revision(name: object, revision: str) -> str:
    """Return a branch, tag or commit, if it can be one.

    Raises:
        ValueError: it can't; the message begins with ``name``.
    """
    # It becomes part of a path in the cache: no `..`, nothing absolute.
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ValueError(
            f"{name}: expected a branch, tag or commit as the revision, got {revision!r}. "
            "Leave it out for the default branch."
        )
    return revision


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or "\\" in text


def _is_anchored(path: str) -> bool:
    return path.startswith(("/", "./", "../", "~")) or path in (".", "..")


def _folder(name: str | Path, rest: str) -> str:
    if not _is_anchored(rest):
        raise ValueError(
            f"{name}: expected file:///absolute/folder or file://./relative/folder, got "
            f"{rest!r} after the scheme. Write file://./{rest} for a folder below this one."
        )
    readings = _readings(name, rest)
    return next(filter(os.path.isdir, readings), readings[0])


def _readings(name: str | Path, rest: str) -> list[str]:
    """Return the absolute path as it is written, and as its percent escapes say."""
    home = os.path.expanduser(rest)  # noqa: PTH111 - Path drops what `name` may end with
    if home.startswith("~"):
        raise ValueError(
            f"{name}: expected a home folder, got {rest.partition('/')[0]!r}, which is no user's "
            f"here. Write ./{rest} for a folder of that name."
        )
    written = _absolute(home)
    return [written, _absolute(unquote(written))] if "%" in written else [written]


def _absolute(path: str) -> str:
    # POSIX keeps two leading slashes, which mean nothing on the systems that this runs on.
    return "/" + os.path.abspath(path).lstrip("/")  # noqa: PTH100 - resolve() would follow links


def _repository(name: str | Path, rest: str) -> str:
    repo, at, revision = rest.rstrip("/").partition("@")
    repo = re.sub("/+", "/", repo)
    if _REPO.fullmatch(repo):
        return repo + (at + check_revision(name, revision) if at else "")
    if rest == name:  # it has no scheme, so it may have been meant for a folder
        raise ValueError(
            f"source: expected {_FORMS}; got {name!r}, which is no folder in {Path.cwd()} and no "
            "name that the hub can have"
        )
    raise ValueError(
        f"{name}: expected hf://org/name or hf://org/name@revision, got {repo!r} as the name. Copy "
        "organisation and name from the model's page."
    )


def _prefix(name: str | Path, rest: str) -> str:
    plain = rest.rstrip("/")
    bucket, *segments = plain.split("/")
    if bucket and not _BUCKET.fullmatch(bucket):
        raise ValueError(
            f"{name}: expected s3://bucket/prefix, got {bucket!r} as the bucket's name, which no "
            "bucket can have: S3's are 3 to 63 letters, digits, dots and hyphens."
        )
    # In a bucket `a//b` and `a/../b` are other keys than `a/b`: they can't be made one.
    if not bucket or {"", ".", ".."} & set(segments):
        raise ValueError(
            f"{name}: expected s3://bucket/prefix, got bucket {bucket!r} and prefix "
            f"{'/'.join(segments)!r}. Name the prefix under which config.json lies."
        )
    return plain
