"""What can go wrong between an S3 client and its server, and when.

`tests.support.fault_proxy` does it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What goes wrong; take one of this module's, or call one of its functions."""

    name: str
    code: int = 0
    s3_code: str = ""
    retry_after: int | None = None
    seconds: float = 0.0
    bytes: int = 0
    reset: bool = False


# The connection is reset: before the request's body is read; after half of it, which the server
# gets; after half of the answer's body; after the server did the work, before any answer.
RESET_BEFORE = Fault("reset_before")
RESET_MID_UPLOAD = Fault("reset_mid_upload")
RESET_MID_BODY = Fault("reset_mid_body")
LOST_RESPONSE = Fault("lost_response")
# Half of the answer's body, then the connection is closed properly.
TRUNCATE = Fault("truncate")
# One bit in the middle of the answer's or of the request's body.
CORRUPT = Fault("corrupt")
CORRUPT_UPLOAD = Fault("corrupt_upload")


def status(code: int, s3_code: str, *, retry_after: int | None = None) -> Fault:
    """S3's error answer; the server sees nothing of the request."""
    return Fault("status", code=code, s3_code=s3_code, retry_after=retry_after)


def stall(seconds: float) -> Fault:
    """A pause after half of the answer's body."""
    return Fault("stall", seconds=seconds)


def cut(after: int, *, reset: bool) -> Fault:
    """So many bytes of the answer's body, then the connection is reset, or closed properly."""
    return Fault("cut", bytes=after, reset=reset)


def slow_first_byte(seconds: float) -> Fault:
    """A pause before the answer, after the server did the work."""
    return Fault("slow_first_byte", seconds=seconds)


# S3 may find out late that it can't complete or copy, when 200 has been sent (S3 API reference,
# CompleteMultipartUpload); the server sees nothing of the request.
OK_WITH_ERROR = status(200, "InternalError")
# Codes and statuses as in the S3 API reference, "Error responses".
EXPIRED = status(400, "ExpiredToken")
DENIED = status(403, "AccessDenied")
SKEWED = status(403, "RequestTimeTooSkewed")
NO_BUCKET = status(404, "NoSuchBucket")


@dataclass(frozen=True)
class Rule:
    """When to fail, and how.

    Attributes:
        method: a pattern for the whole method.
        path: a pattern to be found in the path with its query.
        fault: what goes wrong.
        times: how often; None means each time.
        after: how many requests that match pass unharmed first.
    """

    method: str
    path: str
    fault: Fault
    times: int | None = None
    after: int = 0

    def matches(self, method: str, path: str) -> bool:
        return bool(re.fullmatch(self.method, method) and re.search(self.path, path))


@dataclass(frozen=True)
class Seen:
    """A request that came, and the name of the fault that it met."""

    method: str
    path: str
    fault: str | None
