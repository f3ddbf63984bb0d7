"""The text of a fleet file: where it lies, and YAML that says each thing once.

``tasks.fleet.spec.read_fleet`` calls this; what the fields mean is decided there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import RequestError, first_line
from tasks.fetch.s3 import explaining_errors
from tasks.request.mistakes import Mistake
from tracefleet.store.s3_client import share_connection

_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"


def read_text(where: str | Path) -> str:
    """Return the text at a path, a ``file://`` or an ``s3://`` URL.

    Raises:
        RequestError: there is no such file, it may not be read, or it is no UTF-8.
    """
    scheme, separator, rest = str(where).partition("://")
    if separator and scheme not in ("file", "s3"):
        raise RequestError(
            f"fleet file {where}: expected a path, file:// or s3:// URL, got scheme {scheme!r}"
        )
    data = _from_s3(str(where)) if scheme == "s3" and separator else _local(rest or str(where))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"fleet file {where}: expected UTF-8 text, got: {error}") from error


def parse(text: str) -> tuple[Any, list[Mistake]]:
    """Return a YAML document as plain data, and the names in it that can't be meant.

    YAML lets a later key replace an earlier one without a word, and reads ``1:`` or ``no:`` as
    names that are no text: both are mistakes here, with their lines.

    Raises:
        ValueError: it is no YAML document.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data(), loader.mistakes
    except (yaml.YAMLError, RecursionError, TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Loads YAML and notes the names that can't be meant, each mapping once."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.mistakes: list[Mistake] = []
        self._path: tuple[str, ...] = ()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        above = self._path
        if index is not None:  # a value's key, or its number in a list; a key itself has none
            self._path = (*above, str(getattr(index, "value", index)))
        try:
            return super().compose_node(parent, index)
        finally:
            self._path = above

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        position = len(self.mistakes)
        node = super().compose_mapping_node(anchor)
        self.mistakes[position:position] = _wrong_names(node, self._path)
        return node


def _local(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or first_line(error)
        raise RequestError(
            f"fleet file {path}: expected a readable file, got {got}. Check the path."
        ) from error


def _from_s3(url: str) -> bytes:
    with explaining_errors("an object", where=f"fleet file {url}: "):
        data: bytes = share_connection().files.cat_file(url)
        return data


def _wrong_names(node: yaml.MappingNode, path: tuple[str, ...]) -> Iterator[Mistake]:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag not in (_TEXT, _MERGE):
            got = str(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            problem = f"expected text as a name, got {got or 'nothing'} in line {line}; quote it"
            yield Mistake(_join_path((*path, got)), problem)
        elif key.value in lines:
            problem = f"expected once, got in line {lines[key.value]} and again in line {line}; "
            yield Mistake(_join_path((*path, key.value)), problem + "remove one")
        else:
            lines[key.value] = line


def _join_path(path: tuple[str, ...]) -> str:
    """Name an entry's field as every other mistake does: without ``entries``."""
    return ".".join(path[1:] if len(path) > 1 and path[0] == "entries" else path)
