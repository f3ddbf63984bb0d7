"""Clients for S3, configured by nothing but the standard AWS environment and files.

boto3's classic transfer client transfers every artifact and makes the conditional writes; s3fs
lists folders and reads small files. Endpoint, region, profile, role, retries, checksums and
addressing come from the ``AWS_*`` variables and ``~/.aws``. Encryption is the bucket's default. For
another KMS key, set ``s3_additional_kwargs`` in fsspec's own configuration, which s3fs reads and
which every write here honours. No ACL is sent: new buckets refuse ACLs.
"""

from __future__ import annotations

import functools
import os
import ssl
import time
from typing import TYPE_CHECKING, Any

from tracefleet.errors import StoreError

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config
    from botocore.session import Session

#: Size of an uploaded part: large enough that a request's overhead does not matter, and above S3's
#: minimum of 5 MiB.
PART_BYTES = 16 << 20
#: Size of a downloaded range. Measured: larger ones take a third longer on loopback.
RANGE_BYTES = 8 << 20
#: S3 accepts at most 10,000 parts (S3 User Guide, "Amazon S3 multipart upload limits").
_MOST_PARTS = 10_000
#: Most bytes of parts in memory at once, whatever the size of the transfer.
_IN_FLIGHT_BYTES = 160 << 20
_THREADS = 8
#: Measured: transfers survived every transport fault of the tests in mode 'standard' with 6.
_ATTEMPTS = 6
_RETRIES = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
#: Settings that botocore reads as whole numbers; its own error for others names no setting.
_NUMBERS = {
    "max_attempts": "AWS_MAX_ATTEMPTS",
    "metadata_service_timeout": "AWS_METADATA_SERVICE_TIMEOUT",
    "metadata_service_num_attempts": "AWS_METADATA_SERVICE_NUM_ATTEMPTS",
}
_SETTINGS = ("AWS_", "FSSPEC_")
_KEEP_SECONDS = 300
_ENCRYPTION = ("ServerSideEncryption", "SSEKMSKeyId", "SSEKMSEncryptionContext")


class Connection:
    """The clients of one process, each created at its first use because creation is slow."""

    def __init__(self, config: Config | None = None) -> None:
        """Read the AWS configuration; nothing is sent.

        Args:
            config: configuration of botocore that overrides ours and the environment's.

        Raises:
            StoreError: boto3 or s3fs is not installed, or a setting can't be used.
            ProfileNotFound: the AWS configuration has no such profile (botocore's error).
            ConfigParseError: the AWS configuration can't be read (botocore's error).
        """
        try:
            import boto3
        except ImportError as error:
            raise _install_refusal(error) from error
        core = _open_session()
        own = _build_config(core)
        self._config = own.merge(config) if config else own
        self._session = boto3.Session(botocore_session=core)

    @functools.cached_property
    def s3(self) -> Any:
        """Client of boto3."""
        return self._session.client("s3", config=self._config)

    @functools.cached_property
    def create_only(self) -> Any:
        """Client of boto3 whose writes only create objects and never replace one."""
        return _make_create_only(self._session.client("s3", config=self._config))

    @functools.cached_property
    def files(self) -> Any:
        """File system of s3fs."""
        try:
            import s3fs
        except ImportError as error:
            raise _install_refusal(error) from error
        settings = {
            name: getattr(self._config, name)
            for name in ("connect_timeout", "read_timeout", "max_pool_connections")
        }
        if self._config.retries is not None:
            # s3fs itself retries each request five times: two attempts of botocore each suffice.
            settings["retries"] = {**self._config.retries, "total_max_attempts": 2}
        # Cached listings hide other writers' files; cached instances keep an old endpoint. With a
        # higher concurrency each read would first request the file's size.
        return s3fs.S3FileSystem(
            use_listings_cache=False,
            skip_instance_cache=True,
            max_concurrency=1,
            config_kwargs=settings,
        )

    @functools.cached_property
    def extra(self) -> dict[str, str]:
        """The arguments for encryption that every write has."""
        given = self.files.s3_additional_kwargs
        return {name: value for name, value in given.items() if name in _ENCRYPTION}


def share_connection() -> Connection:
    """Return clients that read from any bucket, shared within this process.

    Raises:
        StoreError: boto3 is not installed, or a setting can't be used.
    """
    # Shared because a fleet has a thousand sources and creating clients takes 0.2 s. Renewed with
    # the settings, and from time to time because credentials in files change.
    settings = frozenset(item for item in os.environ.items() if item[0].startswith(_SETTINGS))
    return _connect(os.getpid(), settings, int(time.monotonic() // _KEEP_SECONDS))


@functools.lru_cache(maxsize=1)
def _connect(_pid: int, _settings: frozenset[tuple[str, str]], _period: int) -> Connection:
    return Connection()


def _install_refusal(error: ImportError) -> StoreError:
    return StoreError(
        f"s3:// stores need boto3 and s3fs, got: {error}. Install them: "
        "pip install 'tracefleet[s3]'"
    )


def _open_session() -> Session:
    """Return a session after checking the settings that botocore's own errors would not name.

    Raises:
        StoreError: a number can't be parsed, or certificates can't be read.
    """
    import botocore.session

    core = botocore.session.Session()
    for name, variable in _NUMBERS.items():
        try:
            core.get_config_variable(name)
        except ValueError as error:
            got = os.environ.get(variable, core.get_scoped_config().get(name))
            raise StoreError(
                f"{variable}: expected a whole number, got {got!r}. Correct or unset it, or "
                f"{name} in the AWS configuration file."
            ) from error
    bundle = core.get_config_variable("ca_bundle")
    if bundle:
        try:
            ssl.create_default_context(cafile=bundle)
        except OSError as error:
            raise StoreError(
                f"AWS_CA_BUNDLE: expected a file of PEM certificates, got {bundle!r} ({error}). "
                "Correct or unset it, or ca_bundle in the AWS configuration file."
            ) from error
    return core


def _build_config(core: Session) -> Config:
    from botocore.config import Config

    return Config(
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=2 * _THREADS,
        tcp_keepalive=True,
        retries=_choose_retries(core),
    )


def make_presigning_client(config: Config | None = None) -> Any:
    """Return a client that signs URLs by SigV4."""
    import boto3
    from botocore.config import Config

    # By default boto3 may still choose SigV2 for URLs.
    signing = Config(signature_version="s3v4")
    # A new session: boto3's default one keeps the first credentials that it found.
    session = boto3.session.Session(botocore_session=_open_session())
    return session.client("s3", config=config.merge(signing) if config else signing)


def transfer_config(size: int) -> TransferConfig:
    """Return the configuration for uploading ``size`` bytes in bounded memory."""
    from boto3.s3.transfer import TransferConfig

    part = max(PART_BYTES, -(-size // (_MOST_PARTS << 20)) << 20)  # whole MiB
    config = TransferConfig(
        multipart_threshold=part,
        multipart_chunksize=part,
        max_concurrency=_THREADS,
        io_chunksize=1 << 20,
        max_io_queue=32,
        # Never 'auto': with awscrt, which hosts with Neuron devices have, everything goes to AWS,
        # whatever endpoint is configured (boto3 issue 4839).
        preferred_transfer_client="classic",
    )
    config.max_in_memory_upload_chunks = max(1, _IN_FLIGHT_BYTES // part)
    config.max_in_memory_download_chunks = max(1, _IN_FLIGHT_BYTES // part)
    return config


def download_config(*, in_order: bool = False) -> TransferConfig:
    """Return the configuration for downloading a file of any size in parallel ranges.

    Args:
        in_order: whether the target can't seek.
    """
    config = transfer_config(0)
    config.multipart_threshold = config.multipart_chunksize = RANGE_BYTES
    if in_order:
        # s3transfer 0.19.3 writes an unranged answer that broke off again from its start, after
        # what came of it before (ImmediatelyWriteIOGetObjectTask); ranges are put in order.
        config.multipart_threshold = 1
    return config


def _choose_retries(session: Session) -> dict[str, Any] | None:
    """Return our retries; None: the environment or the AWS files configure retries."""
    named = {"AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"} & os.environ.keys()
    scoped = {"retry_mode", "max_attempts"} & session.get_scoped_config().keys()
    return None if named or scoped else dict(_RETRIES)


def _make_create_only(client: Any) -> Any:
    """Make a client's writes conditional."""
    # By events, because boto3's transfers take no argument IfNoneMatch.

    def add_condition(params: dict[str, Any], **_: object) -> None:
        params["IfNoneMatch"] = "*"

    for operation in ("PutObject", "CompleteMultipartUpload"):
        client.meta.events.register(f"provide-client-params.s3.{operation}", add_condition)
    client.meta.events.register("needs-retry.s3", _retry_conflict)
    return client


def _retry_conflict(response: Any, attempts: int, **_: object) -> float | None:
    """Return the delay after which to retry a conditional write that conflicted with another."""
    # https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html, "If-None-Match": 409
    # ConditionalRequestConflict is to be retried. botocore doesn't.
    code = response[1].get("Error", {}).get("Code") if response else None
    if code == "ConditionalRequestConflict" and attempts < _ATTEMPTS:
        return float(0.1 * 2**attempts)
    return None
