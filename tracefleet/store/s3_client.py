"""Clients for S3, configured by the standard AWS environment and files and by nothing else.

boto3's classic transfer client moves every artifact and does what needs S3 itself; s3fs is the
file view: listing a folder, reading something small. Endpoint, region, profile, role, retries,
checksums and addressing come from the ``AWS_*`` variables and ``~/.aws``. Encryption is the
bucket's default; another KMS key is named once in fsspec's own configuration
(``s3_additional_kwargs``), which s3fs reads and which is honoured for every write here. No ACL is
ever sent: buckets of today refuse them.
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

#: Upload and download in pieces of this size: large enough that a request's overhead vanishes,
#: and above S3's minimum of 5 MiB for a part.
PART_BYTES = 16 << 20
#: Download in ranges of this size: measured, larger ones take a third longer on loopback.
RANGE_BYTES = 8 << 20
#: S3 takes 10,000 parts at most (S3 User Guide, "Amazon S3 multipart upload limits").
_MOST_PARTS = 10_000
#: Pieces in memory at once, in bytes: what bounds a transfer of any size.
_IN_FLIGHT_BYTES = 160 << 20
_THREADS = 8
#: Measured: with 'standard' and 6 attempts every transport fault tried was survived.
_ATTEMPTS = 6
_RETRIES = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
#: What botocore reads as a whole number; where it can't, its error names no setting.
_NUMBERS = {
    "max_attempts": "AWS_MAX_ATTEMPTS",
    "metadata_service_timeout": "AWS_METADATA_SERVICE_TIMEOUT",
    "metadata_service_num_attempts": "AWS_METADATA_SERVICE_NUM_ATTEMPTS",
}
_SETTINGS = ("AWS_", "FSSPEC_")
_KEEP_SECONDS = 300
_ENCRYPTION = ("ServerSideEncryption", "SSEKMSKeyId", "SSEKMSEncryptionContext")


class Connection:
    """The clients of one process, each made when it is first used: that takes its time."""

    def __init__(self, config: Config | None = None) -> None:
        """Read the AWS configuration; nothing is sent.

        Args:
            config: of botocore; goes over ours and the environment's.

        Raises:
            StoreError: boto3 or s3fs is not installed, or a setting can't be used.
            ProfileNotFound, ConfigParseError: the AWS configuration is wrong (botocore).
        """
        try:
            import boto3
        except ImportError as error:
            raise _not_installed(error) from error
        core = _checked_session()
        own = _own_config(core)
        self._config = own.merge(config) if config else own
        self._session = boto3.Session(botocore_session=core)

    @functools.cached_property
    def s3(self) -> Any:
        """boto3's client."""
        return self._session.client("s3", config=self._config)

    @functools.cached_property
    def once(self) -> Any:
        """Another one, whose PutObject and CompleteMultipartUpload only ever create."""
        return _creating(self._session.client("s3", config=self._config))

    @functools.cached_property
    def files(self) -> Any:
        """s3fs' file view."""
        try:
            import s3fs
        except ImportError as error:
            raise _not_installed(error) from error
        settings = {
            name: getattr(self._config, name)
            for name in ("connect_timeout", "read_timeout", "max_pool_connections")
        }
        if self._config.retries is not None:
            # s3fs retries five times by itself what is below it: two attempts each are enough.
            settings["retries"] = {**self._config.retries, "total_max_attempts": 2}
        # Cached listings hide what others write; cached instances keep an old endpoint. With more
        # than one stream a file each read would ask for the file's size first.
        return s3fs.S3FileSystem(
            use_listings_cache=False,
            skip_instance_cache=True,
            max_concurrency=1,
            config_kwargs=settings,
        )

    @functools.cached_property
    def extra(self) -> dict[str, str]:
        """What goes with every write: encryption."""
        given = self.files.s3_additional_kwargs
        return {name: value for name, value in given.items() if name in _ENCRYPTION}


def shared_connection() -> Connection:
    """Return clients to read from any bucket; a fleet has a thousand, and each would cost 0.2 s.

    They are others in another process, with other settings, and once in a while: credentials in
    files change.

    Raises:
        StoreError: boto3 is not installed, or a setting can't be used.
    """
    settings = frozenset(item for item in os.environ.items() if item[0].startswith(_SETTINGS))
    return _connection(os.getpid(), settings, int(time.monotonic() // _KEEP_SECONDS))


@functools.lru_cache(maxsize=1)
def _connection(_pid: int, _settings: frozenset[tuple[str, str]], _period: int) -> Connection:
    return Connection()


def _not_installed(error: ImportError) -> StoreError:
    return StoreError(
        f"s3:// stores need boto3 and s3fs, got: {error}. Install them: "
        "pip install 'tracefleet[s3]'"
    )


def _checked_session() -> Session:
    """Return a session, after a look at the settings whose errors would not name them later.

    Raises:
        StoreError: a number that is none, or certificates that can't be read.
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
    if bundle := core.get_config_variable("ca_bundle"):
        try:
            ssl.create_default_context(cafile=bundle)
        except OSError as error:
            raise StoreError(
                f"AWS_CA_BUNDLE: expected a file of PEM certificates, got {bundle!r} ({error}). "
                "Correct or unset it, or ca_bundle in the AWS configuration file."
            ) from error
    return core


def _own_config(core: Session) -> Config:
    from botocore.config import Config

    return Config(
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=2 * _THREADS,
        tcp_keepalive=True,
        retries=_retries(core),
    )


def presigning_client(config: Config | None = None) -> Any:
    """Return a client that signs URLs by SigV4: by itself boto3 may still choose SigV2 here."""
    import boto3
    from botocore.config import Config

    signing = Config(signature_version="s3v4")
    # A session of its own: boto3's default one keeps the first credentials that it met.
    session = boto3.session.Session(botocore_session=_checked_session())
    return session.client("s3", config=config.merge(signing) if config else signing)


def transfer_config(size: int) -> TransferConfig:
    """Return how to send ``size`` bytes: pieces sized to it, a bounded number of them at once."""
    from boto3.s3.transfer import TransferConfig

    part = max(PART_BYTES, -(-size // (_MOST_PARTS << 20)) << 20)  # whole MiB
    config = TransferConfig(
        multipart_threshold=part,
        multipart_chunksize=part,
        max_concurrency=_THREADS,
        io_chunksize=1 << 20,
        max_io_queue=32,
        # Never 'auto': where awscrt is installed, on the very hosts that have Neuron devices, it
        # sends everything to AWS whatever endpoint is configured (boto3 issue 4839).
        preferred_transfer_client="classic",
    )
    config.max_in_memory_upload_chunks = max(1, _IN_FLIGHT_BYTES // part)
    config.max_in_memory_download_chunks = max(1, _IN_FLIGHT_BYTES // part)
    return config


def download_config() -> TransferConfig:
    """Return how to fetch a file of any size in parallel ranges."""
    config = transfer_config(0)
    config.multipart_threshold = config.multipart_chunksize = RANGE_BYTES
    return config


def _retries(session: Session) -> dict[str, Any] | None:
    """Return our retries, None where the environment or the AWS files say how to retry."""
    named = {"AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"} & os.environ.keys()
    scoped = {"retry_mode", "max_attempts"} & session.get_scoped_config().keys()
    return None if named or scoped else dict(_RETRIES)


def _creating(client: Any) -> Any:
    """Make a client's writes conditional: its transfers take no IfNoneMatch by themselves."""

    def only_create(params: dict[str, Any], **_: object) -> None:
        params["IfNoneMatch"] = "*"

    for operation in ("PutObject", "CompleteMultipartUpload"):
        client.meta.events.register(f"provide-client-params.s3.{operation}", only_create)
    client.meta.events.register("needs-retry.s3", _again_after_conflict)
    return client


def _again_after_conflict(response: Any, attempts: int, **_: object) -> float | None:
    """Retry a conditional write that met another one under way, as the S3 API asks for.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html, "If-None-Match": 409
    ConditionalRequestConflict is to be retried. botocore does not do it by itself.
    """
    code = response[1].get("Error", {}).get("Code") if response else None
    if code == "ConditionalRequestConflict" and attempts < _ATTEMPTS:
        return float(0.1 * 2**attempts)
    return None
