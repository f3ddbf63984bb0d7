"""OpenStack Swift with its S3 interface, assembled to run in one process on loopback.

Swift is designed for many machines. Here its account, container and object servers listen on free
ports of 127.0.0.1 and share one folder, and the proxy with the S3 interface gets a cache in its
process instead of memcached.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import eventlet
from eventlet import wsgi
from swift.common import constraints, storage_policy, utils
from swift.common.http_protocol import SwiftHttpProtocol
from swift.common.ring import RingBuilder
from swift.common.swob import Request
from swift.common.wsgi import ConfigString, loadapp

from infra import HOST
from infra.swift_filters import App, add_cache, serialise_writes

_STORAGE = ("account", "container", "object")
_DEVICE = "disk"
_CONNECTIONS = 1024

# The prefix and suffix determine an object's path: with other values, existing objects are lost.
# Swift's own limit is 5 GiB + 2; S3's is 5 GiB for one PUT (S3 user guide, "Amazon S3 limits").
_SWIFT_CONF = """
[swift-hash]
swift_hash_path_prefix = tracefleet
swift_hash_path_suffix = tracefleet
[swift-constraints]
max_file_size = 5368709120
[storage-policy:0]
name = one
default = true
"""

# By default Swift gives up on a peer after 0.5 to 10 s and avoids it for a minute. Here there is no
# other peer, and a busy laptop responds late. Nothing retries a container update either: a short
# container_update_timeout would leave an object out of the listings for good.
_TIMEOUTS = """
conn_timeout = 30
node_timeout = 60
"""

_STORAGE_CONF = """
[DEFAULT]
swift_dir = {etc}
devices = {devices}
mount_check = false
disable_fallocate = true
log_level = ERROR
log_address = {etc}/no-syslog
log_custom_handlers = infra.swift_app.log_to_stderr
{timeouts}
container_update_timeout = 60
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

# S3's limits (S3 user guide, "Amazon S3 multipart upload limits"): parts of 5 MiB and more, 10,000
# of them, 1,000 keys a page. Swift's own limits are 1,000 parts and a manifest of 8 MiB.
_PROXY_CONF = """
[DEFAULT]
swift_dir = {etc}
log_level = ERROR
log_address = {etc}/no-syslog
log_custom_handlers = infra.swift_app.log_to_stderr
[pipeline:main]
pipeline = catch_errors gatekeeper listing_formats bulk s3api tempauth copy slo dlo
    versioned_writes symlink proxy-server
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = {region}
min_segment_size = 5242880
max_upload_part_num = 10000
max_bucket_listing = 1000
max_parts_listing = 1000
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {secret} .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000
max_manifest_size = 33554432
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
error_suppression_limit = 1000000000
{timeouts}
"""


def build(folder: Path, access_key: str, secret: str, region: str) -> tuple[App, App]:
    """Start the storage servers over ``folder`` and assemble the proxy.

    Args:
        folder: folder of the objects, on a file system with extended attributes.
        access_key: ``account:user``, as Swift's tempauth expects it.
        secret: letters, digits and ``./+=~_-``.
        region: region that signatures must be for.

    Returns:
        The app with the S3 interface, and the proxy below it, which requires no signature.
    """
    _patch()
    etc = folder / "etc"
    etc.mkdir(exist_ok=True)
    (folder / "node" / _DEVICE).mkdir(parents=True, exist_ok=True)
    _configure(etc)
    names = {"etc": etc, "devices": folder / "node", "timeouts": _TIMEOUTS}
    sockets = {name: _listen_with_ring(etc, name) for name in _STORAGE}
    for name, sock in sockets.items():
        conf = ConfigString(_STORAGE_CONF.format(name=name, **names))
        start(sock, loadapp(conf, global_conf={"log_name": name}))
    account, _, user = access_key.partition(":")
    conf = ConfigString(
        _PROXY_CONF.format(account=account, user=user, secret=secret, region=region, **names)
    )
    proxy = loadapp(conf, global_conf={"log_name": "proxy"})
    return serialise_writes(add_cache(proxy)), proxy._pipeline_final_app


def _patch() -> None:
    """Make sockets and locks cooperative, as Swift's own servers do."""
    # eventlet searches every object in memory for locks, and logs a traceback for each that it
    # can't inspect, such as a `super`.
    logging.disable()
    utils.monkey_patch()
    logging.disable(logging.NOTSET)


def _configure(etc: Path) -> None:
    """Make Swift read our swift.conf, not the machine's."""
    path = etc / "swift.conf"
    path.write_text(_SWIFT_CONF, "utf-8")
    utils.SWIFT_CONF_FILE = str(path)
    utils.validate_configuration()
    constraints.reload_constraints()
    storage_policy.reload_storage_policies()


def _listen_with_ring(etc: Path, name: str) -> Any:
    """Listen on a free port, and write the ring by which the proxy finds it."""
    sock = listen(0)
    # 2**4 partitions, one replica, one hour between moves: there is one device.
    builder = RingBuilder(4, 1, 1)
    device = {"id": 0, "region": 1, "zone": 1, "weight": 1.0, "device": _DEVICE}
    builder.add_dev(device | {"ip": HOST, "port": sock.getsockname()[1]})
    builder.rebalance()
    builder.get_ring().save(str(etc / f"{name}.ring.gz"))
    return sock


def create_bucket(proxy: App, access_key: str, bucket: str) -> None:
    """Create ``bucket`` unless it exists, without a signature.

    Raises:
        RuntimeError: Swift refused; its status is in the message.
    """
    account = access_key.partition(":")[0]
    request = Request.blank(f"/v1/AUTH_{account}/{bucket}", method="PUT")
    request.environ["swift_owner"] = True
    response = request.get_response(add_cache(proxy))
    if response.status_int not in (201, 202):  # created, or existing
        raise RuntimeError(f"bucket {bucket}: expected status 201 or 202, got {response.status}")


def listen(port: int) -> Any:
    """Listen on a port of loopback; 0 picks a free one.

    Raises:
        OSError: the port is not available.
    """
    # eventlet's default would let two servers share a port, and each get half of the requests.
    return eventlet.listen((HOST, port), backlog=128, reuse_port=False)


def sleep(seconds: float) -> None:
    """Wait while the servers work."""
    eventlet.sleep(seconds)


def start(sock: Any, app: App) -> None:
    """Serve ``app`` until the process ends."""
    # Header names stay as they are: eventlet would write `X-Amz-Meta-Sha256`, and a client would
    # not find `sha256` in the metadata.
    eventlet.spawn(
        wsgi.server,
        sock,
        app,
        log=logging.getLogger("eventlet"),
        protocol=SwiftHttpProtocol,
        custom_pool=eventlet.GreenPool(_CONNECTIONS),
        log_output=False,
        debug=False,
        capitalize_response_headers=False,
    )


def log_to_stderr(conf: Any, name: Any, console: Any, route: Any, form: Any, *loggers: Any) -> None:
    """Send Swift's errors to stderr (Swift's ``log_custom_handlers`` calls it)."""
    logger = loggers[0]
    if not any(type(handler) is logging.StreamHandler for handler in logger.handlers):
        logger.addHandler(logging.StreamHandler(sys.stderr))
