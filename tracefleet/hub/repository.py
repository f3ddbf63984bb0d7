"""A repository of the hub: what lies in it, and whether a conversion may be added to it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracefleet.errors import StoreError, StoreUnavailableError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
SCHEME = "hf://"
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}")
#: What the hub writes by itself.
_HUBS_OWN = (".gitattributes",)
_OURS = ("channels/", "conversions/")
_CONFLICT, _FAILED_PRECONDITION = 409, 412


def check_repository(text: str) -> str:
    """Return ``hf://org/name`` if it is that.

    Raises:
        ValueError: it is something else.
    """
    if not text.startswith(SCHEME) or not _REPOSITORY.fullmatch(text.removeprefix(SCHEME)):
        raise ValueError(f"expected hf://org/name, got {text!r}")
    return text


def make_api() -> HfApi:
    """Return the hub's client, with the token that huggingface_hub itself finds.

    Raises:
        ImportError: ``huggingface_hub`` is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError(
            "push expected the package huggingface_hub, which is not installed. Install it: pip "
            "install 'tracefleet[hub]'"
        ) from error
    # The library reads the variable once, at its import.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What lies in a repository at one commit.

    Attributes:
        commit: the commit of its branch ``main``.
        private: whether only its owners see it.
        digests: for each path sha256 of a large file, or git's own sha1 of another one.
    """

    commit: str
    private: bool
    digests: dict[str, str]

    def holds(self, path: str, size: int, blocks: Iterable[bytes]) -> bool:
        """Tell whether a file is there with these bytes."""
        sha256, sha1 = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
        # What git calls a file begins with its size.
        sha1.update(f"blob {size}\0".encode())
        for block in blocks:
            sha256.update(block)
            sha1.update(block)
        return self.digests.get(path) in (sha256.hexdigest(), sha1.hexdigest())

    @property
    def foreign(self) -> list[str]:
        """Paths that no push wrote."""
        ours = (*_OURS, *_HUBS_OWN)
        paths = [path for path in self.digests if not path.startswith(ours)]
        # A card that is alone comes with a repository that was made on the hub's page.
        if paths == [CARD]:
            return []
        written = any(path.startswith(_OURS) for path in self.digests)
        return [path for path in paths if not (written and path == CARD)]


def read_contents(api: HfApi, repository: str) -> Contents | None:
    """Return what lies in a repository; None: there is none, or one that the token may not see.

    Raises:
        StoreError: the hub refuses to tell.
        StoreUnavailableError: the hub does not answer.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    with explaining(repository):
        try:
            info = api.model_info(repository, files_metadata=True)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
    digests = {}
    for one in info.siblings or ():
        digests[one.rfilename] = one.lfs.sha256 if one.lfs is not None else str(one.blob_id)
    return Contents(commit=str(info.sha), private=bool(info.private), digests=digests)


@contextmanager
def explaining(repository: str) -> Iterator[None]:
    """Raise the hub's refusals in our words.

    Raises:
        StoreError: it refuses; another try will not help.
        StoreUnavailableError: it does not answer, or another commit came first.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except Exception as error:
        # The library hides what went wrong with one file behind a RuntimeError.
        cause = error.__cause__ if type(error) is RuntimeError else error
        if isinstance(cause, HfHubHTTPError):
            raise _explain(repository, cause) from error
        if isinstance(cause, _find_lost(HfHubHTTPError)):
            raise StoreUnavailableError(
                f"hf://{repository}: expected an answer of the hub, got: {cause}. Check the "
                "network and HF_ENDPOINT, and push again: what was uploaded is not uploaded twice."
            ) from error
        raise


def _find_lost(refusal: type[Exception]) -> tuple[type[BaseException], ...]:
    """Return the errors of a connection; the hub's refusal is one of its HTTP library's errors."""
    # It was requests, then httpx, then httpx2.
    names = ("HTTPError", "RequestException")
    return (ConnectionError, *(base for base in refusal.__mro__ if base.__name__ in names))


def _explain(repository: str, error: Any) -> StoreError:
    status = error.response.status_code
    if status in (_CONFLICT, _FAILED_PRECONDITION):
        return StoreUnavailableError(
            f"hf://{repository}: expected its newest commit to be the one that was looked at, got "
            f"another one meanwhile (HTTP {status}). Push again."
        )
    if status in (401, 403, 404):
        return StoreError(
            f"hf://{repository}: expected a token that may write there, got HTTP {status}. Set "
            "HF_TOKEN to one, or log in: hf auth login; `hf auth whoami` tells whose it is."
        )
    kind = StoreUnavailableError if status >= 500 else StoreError
    return kind(f"hf://{repository}: expected an answer, got HTTP {status}: {error}")
