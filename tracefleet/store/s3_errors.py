"""Errors of S3 with bucket, key, operation, what was got and the next step.

``translating_errors`` wraps every request of ``tracefleet.store.s3``; sources and fleet files on S3
use the same table through ``refusal_of``. Error codes are those of the S3 API reference, "Error
responses". Transient errors become `StoreUnavailableError`, which Prefect retries (the client
library's own retries are used up by then); others become `StoreError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from tracefleet.errors import (
    ArtifactError,
    DigestMismatchError,
    StoreError,
    StoreUnavailableError,
)

_NOT_FOUND = {"NoSuchKey", "404", "NotFound"}
#: Codes of a refused conditional write: the key exists (412), or another write is running (409).
LOST = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}

_ADVICE = {
    "NoSuchBucket": "Create the bucket, or check its name, AWS_ENDPOINT_URL and "
    "AWS_DEFAULT_REGION.",
    "AccessDenied": "Allow s3:{action} on it to these credentials (infra/bucket.yaml has the "
    "policies), or use others (AWS_PROFILE).",
    "ExpiredToken": "The credentials have expired: renew them (aws sso login, or a new session "
    "token) and run again.",
    "SignatureDoesNotMatch": "The server does not know these credentials: check "
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_PROFILE.",
    "RequestTimeTooSkewed": "This machine's clock and the server's differ by more than 15 "
    "minutes: set the clock.",
    "PermanentRedirect": "The bucket is in another region: set AWS_DEFAULT_REGION to it.",
    "NotImplemented": "This server lacks the operation; use one with the whole S3 API.",
    "400": "S3 gives no reason; most often the credentials have expired: renew them.",
    "EntityTooLarge": "The server accepts no object of this size.",
}
_SYNONYMS = {
    "403": "AccessDenied",
    "Forbidden": "AccessDenied",
    "AllAccessDisabled": "AccessDenied",
    "AccountProblem": "AccessDenied",
    "ExpiredTokenException": "ExpiredToken",
    "RequestExpired": "ExpiredToken",
    "TokenRefreshRequired": "ExpiredToken",
    "InvalidAccessKeyId": "SignatureDoesNotMatch",
    "InvalidToken": "SignatureDoesNotMatch",
    "UnrecognizedClientException": "SignatureDoesNotMatch",
    "301": "PermanentRedirect",
    "AuthorizationHeaderMalformed": "PermanentRedirect",
    "IllegalLocationConstraintException": "PermanentRedirect",
    "501": "NotImplemented",
}
_TRANSIENT = {
    "SlowDown": "The server asks for fewer requests.",
    "ServiceUnavailable": "",
    "InternalError": "",
    "RequestTimeout": "",
    "RequestTimeoutException": "",
    "OperationAborted": "",
    "ConditionalRequestConflict": "Another writer was at the same key.",
    "500": "",
    "502": "",
    "503": "",
    "504": "",
    "BadDigest": "The bytes were changed in transit; the server kept nothing.",
    "XAmzContentSHA256Mismatch": "The bytes were changed in transit; the server kept nothing.",
    "IncompleteBody": "The connection broke; the server kept nothing.",
    "PreconditionFailed": "The object was overwritten while it was read.",
    "412": "The object was overwritten while it was read.",
    "NoSuchUpload": "The upload was aborted by another process.",
}
_CHECK_NAME = "Check bucket and name, and AWS_ENDPOINT_URL if the bucket is not on AWS."
_CHECK_NETWORK = (
    "Check the network and AWS_ENDPOINT_URL, then run again; conversions that were opened before "
    "can be opened from the cache with TRACEFLEET_OFFLINE=1."
)
_ACTION = {
    "HeadObject": "GetObject",
    "ListObjectsV2": "ListBucket",
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "DeleteObjects": "DeleteObject",
}


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a request failed.

    Attributes:
        kind: ``absent`` (no such key), ``damaged`` (bytes with another checksum), ``transient``, or
            ``refused`` (anything else).
        verb: S3 operation.
        got: error code and message; the error's type if the server gave no code.
        advice: next step.
    """

    kind: Literal["absent", "damaged", "transient", "refused"]
    verb: str
    got: str
    advice: str

    def as_error(self, where: str) -> Exception:
        """Return the store's error for this refusal of a request for the URL ``where``."""
        if self.kind == "absent":
            return FileNotFoundError(2, "no such key in the store", where)
        if self.kind == "damaged":
            return DigestMismatchError(where, expected="its checksum", got=self.got)
        error = StoreUnavailableError if self.kind == "transient" else StoreError
        return error(f"{where}: {self.verb} expected success, got {self.got}. {self.advice}")


@contextmanager
def translating_errors(where: str, verb: str) -> Iterator[None]:
    """Translate the client libraries' errors into ours.

    Args:
        where: URL that the request is for.
        verb: S3 operation, unless the error itself names one.

    Raises:
        FileNotFoundError: there is no such key.
        DigestMismatchError: the bytes don't have the checksum that was stored with them.
        StoreUnavailableError: the error is transient.
        StoreError: anything else.
    """
    try:
        yield
    except ArtifactError:
        raise
    except client_errors() as error:
        raise refusal_of(error, verb).as_error(where) from error


def refusal_of(error: BaseException, verb: str) -> Refusal:
    """Return why a request failed.

    Args:
        error: error of one of the types ``client_errors``.
        verb: S3 operation, unless the error itself names one.
    """
    cause, code = _find_innermost(error), code_of(error)
    verb, message = getattr(cause, "operation_name", verb), _read_message(cause)
    if type(cause).__name__ == "FlexibleChecksumError":
        # The client checks the checksum that was stored with the object.
        return Refusal(kind="damaged", verb=verb, got=message, advice="Upload it again.")
    if code in _NOT_FOUND or (not code and isinstance(error, FileNotFoundError)):
        return Refusal(kind="absent", verb=verb, got=f"none{message}", advice=_CHECK_NAME)
    if code:
        return refusal_for(code, verb, message)
    got, advice = f"{type(cause).__name__}{message}", _advise_on_settings(cause)
    if advice:
        return Refusal(kind="refused", verb=verb, got=got, advice=advice)
    return Refusal(kind="transient", verb=verb, got=got, advice=_CHECK_NETWORK)


def refusal_for(code: str, verb: str, message: str) -> Refusal:
    """Return why a request failed, from one of S3's error codes.

    Args:
        code: S3's error code.
        verb: S3 operation.
        message: message of the server.
    """
    got, code = f"{code}{message}", _SYNONYMS.get(code, code)
    if code in _TRANSIENT:
        advice = f"{_TRANSIENT[code]} The client's own retries are used up; run again later."
        return Refusal(kind="transient", verb=verb, got=got, advice=advice.lstrip())
    advice = "Nothing was changed."
    if code in _ADVICE:
        advice = _ADVICE[code].format(action=_ACTION.get(verb, verb))
    elif code.startswith("KMS"):
        advice = f"Check the bucket's KMS key and its policy. {advice}"
    return Refusal(kind="refused", verb=verb, got=got, advice=advice)


def code_of(error: BaseException) -> str:
    """Return S3's error code; empty: the server gave none."""
    response = getattr(_find_innermost(error), "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def client_errors() -> tuple[type[Exception], ...]:
    """Return the types of the client libraries' errors."""
    import concurrent.futures

    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from s3transfer.exceptions import (
        RetriesExceededError,
        S3DownloadFailedError,
        S3UploadFailedError,
    )

    # OSError: s3fs translates errors to it, and sockets raise it.
    return (
        ClientError,
        BotoCoreError,
        Boto3Error,
        RetriesExceededError,
        S3DownloadFailedError,
        S3UploadFailedError,
        OSError,
        ValueError,  # settings that can't be read: an endpoint without http://
        concurrent.futures.CancelledError,
        *_list_http_errors(),
    )


def _list_http_errors() -> tuple[type[Exception], ...]:
    from aiohttp import ClientError as HttpError
    from urllib3.exceptions import HTTPError

    return HttpError, HTTPError


def _find_innermost(error: BaseException) -> BaseException:
    """Return the error inside the libraries' wrappers that has the server's response."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "last_exception", None) or error.__cause__
        if type(error).__name__ == "S3DownloadFailedError":
            inner = error.__context__  # s3transfer raises it without a cause
        if inner is None or hasattr(error, "response"):
            break
        error = inner
    return error


def _read_message(cause: BaseException) -> str:
    response = getattr(cause, "response", None) or {}
    text = str(response.get("Error", {}).get("Message") or cause)
    return f" ({text.splitlines()[0][:300].rstrip('.')})" if text.strip() else ""


def _advise_on_settings(cause: BaseException) -> str:
    """Return which settings to check; empty: the request did not fail because of settings."""
    from botocore import exceptions as boto

    settings = (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.ProfileNotFound,
        boto.NoRegionError,
        boto.ParamValidationError,
        boto.InvalidConfigError,
        boto.InvalidChecksumConfigError,
        boto.UnauthorizedSSOTokenError,
        boto.SSOTokenLoadError,
        boto.EndpointProviderError,
        ValueError,
    )
    if isinstance(cause, boto.ConfigParseError):
        return (
            "Correct that file, or set AWS_CONFIG_FILE or AWS_SHARED_CREDENTIALS_FILE to another."
        )
    if isinstance(cause, boto.InvalidRetryConfigurationError):
        return "Correct or unset AWS_RETRY_MODE and AWS_MAX_ATTEMPTS."
    if not isinstance(cause, settings):
        return ""
    if str(cause).startswith(("Invalid endpoint", "Custom endpoint")):
        return (
            "Set AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3, or endpoint_url in the AWS "
            "configuration file) to a URL such as http://localhost:9000, or unset it for AWS."
        )
    return (
        "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_DEFAULT_REGION; "
        "the whole standard AWS configuration is honoured."
    )
