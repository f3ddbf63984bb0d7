"""How the wheel ``tracefleet-pipeline`` is built: flows/ and tasks/ inside, versions from the root.

hatchling calls both hooks; nothing else imports this.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

if sys.version_info >= (3, 11):  # noqa: UP036 - Inf1 hosts build it on 3.10
    import tomllib
else:
    import tomli as tomllib

_INSIDE = ("flows", "tasks")


class Metadata(MetadataHookInterface):
    """The version of ``tracefleet``, and what its extra ``pipeline`` needs."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in what is dynamic."""
        file = Path(self.root).parent / "pyproject.toml"
        project = tomllib.loads(file.read_text("utf-8"))["project"]
        metadata["version"] = project["version"]
        metadata["requires-python"] = project["requires-python"]
        metadata["dependencies"] = [f"tracefleet[pipeline]=={project['version']}"]


class Inside(BuildHookInterface[Any]):
    """flows/ and tasks/ lie in a folder of their own, which alone is put on a path."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Include them in a wheel; an editable installation finds them in the repository."""
        if version == "standard":
            for name in _INSIDE:
                folder = Path(self.root).parent / name
                build_data["force_include"][str(folder)] = f"house/{name}"
