"""The hub's refusals in our words: what was refused, and what to do about it.

What may pass by itself (a lost connection, a busy hub) keeps its library's type, to be retried.
"""

from __future__ import annotations

from tasks.errors import RequestError, first_line
from tasks.fetch import hub_cache

_HUB = "https://huggingface.co"


def explain(source: str, revision: str | None, error: BaseException) -> BaseException:
    """Return our error for one of the library's, or the same if it may pass by itself."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        if hub_cache.offline() or error.__cause__ is None:
            return hub_cache.make_cache_error(source, revision)
        # The library hides a refusal or a lost connection behind "not in the cache".
        return explain(source, revision, error.__cause__)
    if isinstance(error, errors.FileMetadataError):
        return no_hub(source, str(error))
    if isinstance(error, errors.RevisionNotFoundError):
        return RequestError(
            f"{source}: expected a branch, tag or commit of it, got {revision!r}, which it does "
            "not have. See its list of files and versions."
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return RequestError(
            f"{source}: expected a file that its listing named, got not found: {error}. "
            "The commit was removed; resolve the revision again."
        )
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403, 404):
        return _explain_access(source, error)
    if is_connection_lost(error):
        tell_host(source, error)
    return error


def is_connection_lost(error: BaseException) -> bool:
    """Whether the hub did not answer at all."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, connection_errors()) and not isinstance(error, HfHubHTTPError)


def connection_errors() -> type[Exception]:
    """Return the base of the errors of the library that the hub's own talks HTTP with."""
    from huggingface_hub.errors import HfHubHTTPError

    # It was requests, then httpx, then httpx2; the hub's own error is always one of its errors.
    names = ("HTTPError", "RequestException")
    found = [base for base in HfHubHTTPError.__mro__ if base.__name__ in names]
    return found[-1]


def tell_host(source: str, error: BaseException) -> None:
    """Say in the error itself which host it was and what to do: retries go by its type."""
    host = hub_cache.endpoint() or _HUB
    error.args = (
        f"{source}: expected an answer of {host}, got {first_line(error)}. Check the network, "
        "HTTPS_PROXY and HF_ENDPOINT (a mirror); HF_HUB_OFFLINE=1 takes what was downloaded "
        "before, and a local folder needs no hub.",
    )


def no_hub(source: str, got: str) -> RequestError:
    """Return the error for an answer that no hub gives."""
    return RequestError(
        f"{source}: expected the answer of a Hugging Face hub, got {got}. If HF_ENDPOINT is set, "
        "check that it names one; a proxy's login page is another common cause."
    )


def _explain_access(source: str, error: BaseException) -> RequestError:
    """Return the error of a repository that can't be read: gated, missing, or a bad token."""
    from huggingface_hub import errors, get_token

    assert isinstance(error, errors.HfHubHTTPError)
    status, sent = error.response.status_code, get_token() is not None
    page = f"{hub_cache.endpoint() or _HUB}/{hub_cache.repo(source)}"
    if isinstance(error, errors.GatedRepoError):
        return RequestError(_explain_gate(source, page, sent=sent))
    if isinstance(error, errors.RepositoryNotFoundError):
        return RequestError(_explain_missing(source, page, sent=sent))
    if status == 401 and sent:
        return RequestError(
            f"{source}: expected a token that the hub accepts, got HTTP 401: the one that was sent "
            "is wrong, expired or revoked. Make a new one on the hub's settings page and set "
            "HF_TOKEN to it (or `hf auth login`); a public repository needs none."
        )
    return RequestError(
        f"{source}: expected a repository that can be read, got HTTP {status}: no permission. If "
        f"it is private or gated, ask for access on {page} and set HF_TOKEN to a token that may "
        "read it."
    )


def _explain_gate(source: str, page: str, *, sent: bool) -> str:
    if sent:
        return (
            f"{source}: expected a repository that the token may read, got a gated one, to which "
            f"its account has no access. Ask for it on {page}; a fine-grained token in HF_TOKEN "
            "needs the permission to read gated repositories as well."
        )
    return (
        f"{source}: expected a repository that anybody may read, got a gated one, and no token was "
        f"sent. Accept its conditions on {page}, then set HF_TOKEN to a token of that account (or "
        "`hf auth login`)."
    )


def _explain_missing(source: str, page: str, *, sent: bool) -> str:
    if sent:
        return (
            f"{source}: expected a repository of the hub, got no such repository, or one that the "
            f"token may not see. Check the name on {page}, and whose token HF_TOKEN is "
            "(`hf auth whoami`)."
        )
    return (
        f"{source}: expected a repository of the hub, got no such repository, or a private one. "
        f"Check the name on {page}; if it is private, set HF_TOKEN to a token that may read it."
    )
