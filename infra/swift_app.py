"""OpenStack Swift with its S3 interface, assembled to run in one process on loopback.

Swift is made for many machines. Here its account, container and object servers listen on free
ports of 127.0.0.1 and share one folder, and the proxy that speaks S3 gets an in-process cache
instead of memcached.
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
from infra.swift_filters import App, one_writer_per_key, with_cache

_STORAGE = ("account", "container", "object")
_DEVICE = "disk"
_CONNECTIONS = 1024

# The prefix and suffix decide where an object lies: another value would lose a folder's objects.
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

# Swift gives up on a peer after 0.5 to 10 s and shuns it for a minute. There is no other peer
# here, and a busy laptop isn't a broken one. Nothing retries a container update either, so that
# a short container_update_timeout would leave an object out of the listings for good.
_PATIENCE = """
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
{patience}
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
{patience}
"""


def build(folder: Path, access_key: str, secret: str, region: str) -> tuple[App, App]:
    """Start the storage servers over ``folder`` and assemble the proxy.

    Args:
        folder: where the objects are kept; on a file system with extended attributes.
        access_key: ``account:user``, Swift's tempauth's form.
        secret: letters, digits and ``./+=~_-``.
        region: the region that signatures have to name.

    Returns:
        The app that speaks S3, and the proxy beneath it, which asks for no signature.
    """
    _patch()
    etc = folder / "etc"
    etc.mkdir(exist_ok=True)
    (folder / "node" / _DEVICE).mkdir(parents=True, exist_ok=True)
    _configure(etc)
    names = {"etc": etc, "devices": folder / "node", "patience": _PATIENCE}
    sockets = {name: _listen_with_ring(etc, name) for name in _STORAGE}
    for name, sock in sockets.items():
        conf = ConfigString(_STORAGE_CONF.format(name=name, **names))
        start(sock, loadapp(conf, global_conf={"log_name": name}))
    account, _, user = access_key.partition(":")
    conf = ConfigString(
        _PROXY_CONF.format(account=account, user=user, secret=secret, region=region, **names)
    )
    proxy = loadapp(conf, global_conf={"log_name": "proxy"})
    return one_writer_per_key(with_cache(proxy)), proxy._pipeline_final_app


def _patch() -> None:
    """Let sockets and locks give way to each other, as Swift's own servers do."""
    # eventlet looks for locks in every object there is, and logs a traceback for each that is
    # too odd to look into, such as a `super`.
    logging.disable()
    utils.monkey_patch()
    logging.disable(logging.NOTSET)


def _configure(etc: Path) -> None:
    """Let Swift read our swift.conf, not the machine's."""
    path = etc / "swift.conf"
    path.write_text(_SWIFT_CONF, "utf-8")
    utils.SWIFT_CONF_FILE = str(path)
    utils.validate_configuration()
    constraints.reload_constraints()
    storage_policy.reload_storage_policies()


def _listen_with_ring(etc: Path, name: str) -> Any:
    """Listen on a free port, and write the ring that leads the proxy to it."""
    sock = listen(0)
    # 2**4 partitions, one replica, no minimum of hours between moves: there is one device.
    builder = RingBuilder(4, 1, 1)
    device = {"id": 0, "region": 1, "zone": 1, "weight": 1.0, "device": _DEVICE}
    builder.add_dev(device | {"ip": HOST, "port": sock.getsockname()[1]})
    builder.rebalance()
    builder.get_ring().save(str(etc / f"{name}.ring.gz"))
    return sock


def create_bucket(proxy: App, access_key: str, bucket: str) -> None:
    """Create ``bucket`` unless it is there, past the signatures.

    Raises:
        RuntimeError: Swift refused; its status is in the message.
    """
    account = access_key.partition(":")[0]
    request = Request.blank(f"/v1/AUTH_{account}/{bucket}", method="PUT")
    request.environ["swift_owner"] = True
    response = request.get_response(with_cache(proxy))
    if response.status_int not in (201, 202):  # created, or there already
        raise RuntimeError(f"bucket {bucket}: Swift answered {response.status}")


def listen(port: int) -> Any:
    """Listen on a port of loopback; 0 picks a free one.

    eventlet's default would let two servers share a port, and each get half of the requests.

    Raises:
        OSError: the port can't be had.
    """
    return eventlet.listen((HOST, port), backlog=128, reuse_port=False)


def sleep(seconds: float) -> None:
    """Let the servers work meanwhile."""
    eventlet.sleep(seconds)


def start(sock: Any, app: App) -> None:
    """Serve ``app`` until the process ends.

    eventlet would write ``X-Amz-Meta-Sha256`` for ``x-amz-meta-sha256``, and a client then finds
    no ``sha256`` among the metadata: hence header names stay as they are.
    """
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
