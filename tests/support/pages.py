"""Pages of documentation as programs: read their blocks, and run them as a reader would.

A block is what stands between fences. Its language says what happens to it: ``sh`` is run by bash,
``python`` in one namespace for the whole page, ``text`` is output and not run. A comment on the
line before the fence may say more::

    <!-- not run here: REASON -->   the block is left out, and counted
    <!-- file: NAME -->             the block is that file's content
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

_MARK = re.compile(r"<!-- (not run here|file): (.+) -->")
_SECONDS = 900


@dataclass(frozen=True)
class Block:
    """One block of a page.

    Attributes:
        page: Name of the page.
        line: Line of its first fence, from 1.
        language: What follows the fence.
        text: Its content.
        mark: Kind of the comment before it; empty: there is none.
        detail: What the comment says: a reason, or a file's name.
    """

    page: str
    line: int
    language: str
    text: str
    mark: str = ""
    detail: str = ""

    @property
    def runs(self) -> bool:
        """Whether it is a program that is to be run."""
        return self.mark != "not run here" and self.language in ("sh", "python")


def read_blocks(path: Path) -> list[Block]:
    """Return the blocks of a page in their order.

    Raises:
        ValueError: a fence is not closed, names no language, or a language that is not known.
    """
    blocks = list(_read(path.name, path.read_text("utf-8").splitlines()))
    for block in blocks:
        known = block.language in ("sh", "python", "text") or block.mark in ("file", "not run here")
        if not known:
            raise ValueError(
                f"{block.page}:{block.line}: expected sh, python, text or a marked block, got "
                f"{block.language!r}"
            )
    return blocks


def _read(page: str, lines: list[str]) -> Iterator[Block]:
    start, language, mark = 0, "", None
    content: list[str] | None = None
    for number, line in enumerate(lines, 1):
        if content is None and line.startswith("```"):
            start, language, content = number, line[3:].strip(), []
            mark = _MARK.fullmatch(lines[number - 2].strip()) if number > 1 else None
        elif content is not None and line.startswith("```"):
            kind, detail = mark.groups() if mark else ("", "")
            yield Block(page, start, language, "\n".join(content) + "\n", kind, detail)
            content = None
        elif content is not None:
            content.append(line)
    if content is not None:
        raise ValueError(f"{page}:{start}: expected a closing fence, got the end of the page")


@dataclass
class Reader:
    """Somebody who types a page's blocks into one folder.

    Attributes:
        folder: Where everything is typed.
        env: Environment of the commands.
        instead: What is read in the place of a text of the page: the bucket of a test, say.
    """

    folder: Path
    env: Mapping[str, str]
    instead: Mapping[str, str] = field(default_factory=dict)
    _names: dict[str, Any] = field(default_factory=dict)

    def follow(self, page: Path) -> int:
        """Run the blocks of a page and return how many ran."""
        ran = 0
        self._names = {}
        for block in read_blocks(page):
            ran += self._take(self._adapt(block))
        return ran

    def _adapt(self, block: Block) -> Block:
        text = block.text
        for written, here in self.instead.items():
            text = text.replace(written, here)
        return replace(block, text=text)

    def _take(self, block: Block) -> int:
        if block.mark == "file":
            path = self.folder / block.detail
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        if not block.runs:
            return 0
        if block.language == "python":
            self._run_python(block)
        else:
            self._run_shell(block)
        return 1

    def _run_shell(self, block: Block) -> None:
        outcome = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=self.folder, env=self.env, capture_output=True, text=True, check=False,
            timeout=_SECONDS,
        )  # fmt: skip
        if outcome.returncode:
            raise AssertionError(
                f"{block.page}:{block.line} ended with {outcome.returncode}\n{block.text}\n"
                f"{outcome.stdout[-3000:]}\n{outcome.stderr[-3000:]}"
            )

    def _run_python(self, block: Block) -> None:
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            # The line numbers of a traceback are then the page's.
            code = compile("\n" * block.line + block.text, block.page, "exec")
            exec(code, self._names)
        finally:
            os.chdir(before)
