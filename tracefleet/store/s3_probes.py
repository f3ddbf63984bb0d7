"""What a server does with the conditions and checksums of S3, asked by tiny objects.

``tracefleet.store.s3_bucket`` asks once a process, before it relies on the answer.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from tracefleet.store.s3_errors import LOST, client_errors, code_of

CONDITION = "probe/conditional-write"
COMPLETION = "probe/conditional-completion"
WRONG = "probe/wrong-checksum"

_BODY = b"tracefleet checks here that this server honours If-None-Match: *\n"
#: Error codes of servers for bytes that don't have the checksum sent with them.
_CHECKSUM_REFUSALS = {"BadDigest", "InvalidDigest", "InvalidRequest", "XAmzContentChecksumMismatch"}


def honours_conditions(client: Any, arguments: dict[str, Any]) -> bool:
    """Return whether a second conditional write of one key is refused.

    Args:
        client: client whose writes have the condition.
        arguments: arguments of the request, without a body.

    Raises:
        ClientError: the server refuses for another reason (botocore's error).
    """
    for _ in range(2):
        try:
            client.put_object(Body=_BODY, **arguments)
        except Exception as error:
            if code_of(error) not in LOST:
                raise
            return True
    return False


def honours_completions(client: Any, arguments: dict[str, Any]) -> bool:
    """Return whether a second conditional completion of one key's multipart upload is refused.

    Ceph's radosgw 16 honours the condition of PutObject and ignores this one.

    Args:
        client: client whose writes have the condition.
        arguments: arguments of the request, without a body.

    Raises:
        ClientError: the server refuses for another reason (botocore's error).
    """
    return not all(_completes(client, arguments) for _ in range(2))


def _completes(client: Any, arguments: dict[str, Any]) -> bool:
    upload = client.create_multipart_upload(**arguments)["UploadId"]
    address = {"Bucket": arguments["Bucket"], "Key": arguments["Key"], "UploadId": upload}
    try:
        part = client.upload_part(Body=_BODY, PartNumber=1, **address)
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        client.complete_multipart_upload(MultipartUpload=parts, **address)
    except Exception as error:
        # A publisher may lack the right to abort; gc and the lifecycle rule do it too.
        with suppress(*client_errors()):
            client.abort_multipart_upload(**address)
        if code_of(error) not in LOST:
            raise
        return False
    return True


def checks_checksums(client: Any, arguments: dict[str, Any]) -> bool:
    """Return whether bytes that don't have the checksum sent with them are refused.

    Args:
        client: client.
        arguments: arguments of the request, without a body.

    Raises:
        ClientError: the server refuses for another reason (botocore's error).
    """
    try:
        client.put_object(Body=b"tracefleet", ChecksumCRC32="AAAAAA==", **arguments)
    except Exception as error:
        if code_of(error) not in _CHECKSUM_REFUSALS:
            raise
        return True
    return False
