"""Both reports are made from templates; HTML and markdown are each escaped as what they are.

Only what a template itself wrote is markup: a checkpoint named ``<script>`` or ``*`` is a name.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import re
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
_MARKUP = re.compile(r"([\\`*_{}\[\]|#~])")


def render(template: str, **values: object) -> str:
    """Return a filled-in template.

    Args:
        template: name of a file in ``templates``; one that ends in ``.md`` is markdown.
        values: names that the template may use; any other is an error.
    """
    return environment(markdown=template.endswith(".md")).get_template(template).render(values)


@functools.cache
def environment(*, markdown: bool) -> Environment:
    """Return the templates and what is common to them."""
    # Late: a repeat of a published request writes no report, and should not pay for the import.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # For markdown too: what `finalize` has escaped is Markup, and is left as it is.
        autoescape=True,
        finalize=_text if markdown else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=markdown,
    )
    made.filters |= {"sha256": _sha256, "code": _code, "verbatim": _verbatim}
    made.globals["source"] = _source
    return made


def escape_markdown(text: str) -> str:
    """Escape what markdown or HTML would take for markup; the result is one line."""
    return _MARKUP.sub(r"\\\1", html.escape(_line(text), quote=False))


def _text(value: object) -> object:
    """Escape what a markdown template prints."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return Markup(escape_markdown(value))  # noqa: S704 (it was escaped)
    return value


def _code(text: str) -> str:
    """Return inline code of markdown; a backtick would end it."""
    return f"`{_line(text).replace('`', chr(39))}`"


def _verbatim(line: str) -> str:
    """Return a line of a code block of markdown, where only backticks are markup."""
    return line.replace("`", "'")


def _line(text: str) -> str:
    return " ".join(text.split())


def _source(name: str) -> str:
    """Return a stylesheet or script."""
    return (TEMPLATES / name).read_text("utf-8")


def _sha256(text: str) -> str:
    """Return the digest as a content-security policy writes it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
