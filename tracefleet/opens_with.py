"""Which torch a bundle needs: its manifest says so, and whoever opens it compares.

An archive of a later torch may load in an earlier one and give other numbers; nothing in it says
so. What was measured, by ``benchmarks/torch_versions.py``, is in docs/serving.md.
"""

from __future__ import annotations

import re

from tracefleet.errors import ManifestError

#: Written into manifests, and taken for those without it: the oldest torch that was tried and gave
#: eager's numbers in every dtype.
OPENS_WITH = "torch>=2.6"
_REQUIREMENT = re.compile(r"torch>=([0-9]{1,3})\.([0-9]{1,3})")
_VERSION = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})")


def check_form(requirement: str | None) -> None:
    """Refuse what no manifest says: the form is ``torch>=X.Y``.

    Raises:
        ManifestError: it has another form.
    """
    if requirement is not None and not _REQUIREMENT.fullmatch(requirement):
        raise ManifestError(f"manifest: opens_with expected torch>=X.Y, got {requirement!r}")


def allows(requirement: str | None, installed: str) -> bool:
    """Return whether an installed torch, such as ``2.13.0+cpu``, is new enough.

    Args:
        requirement: of a manifest; None: an earlier version wrote it.
        installed: version of torch.
    """
    needed = _REQUIREMENT.fullmatch(requirement or OPENS_WITH)
    found = _VERSION.match(installed)
    # A build without a number is somebody's own: nothing is known against it.
    return found is None or needed is None or _order(found) >= _order(needed)


def _order(version: re.Match[str]) -> tuple[int, ...]:
    return tuple(int(number) for number in version.groups())
