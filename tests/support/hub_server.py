"""A small Hugging Face hub on loopback, with faults to order.

It speaks the three requests that a download makes: the model's listing at a revision, HEAD and GET
of a file at a commit, with ETag, X-Repo-Commit, X-Linked-Size, X-Linked-Etag and Range. And the
one that a pattern makes: an author's models.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(r"/api/models/(?P<repo>(?:[^/]+/)?[^/]+)(?:/revision/(?P<revision>.+))?")
_MODELS = "/api/models"
_FILE = re.compile(r"/(?P<repo>(?:[^/]+/)?[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Hub:
    """What the server holds, and what it shall do wrong."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    repo: str = "acme/tiny"
    #: Former names of the repository, which are answered with a redirect.
    former: tuple[str, ...] = ()
    token: str | None = None
    private: bool = False
    extra_names: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    # Faults: by the file's path, "api" for the listing, or "models" for an author's.
    status: dict[str, int] = field(default_factory=dict)
    #: The code that goes with a status, such as GatedRepo.
    codes: dict[str, str] = field(default_factory=dict)
    drop_after: dict[str, int] = field(default_factory=dict)
    flipped: set[str] = field(default_factory=set)
    raw_api: bytes | None = None
    #: A GET of one of these files is answered once all of them are being fetched.
    together: dict[str, threading.Barrier] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    url: str = ""

    def push(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Commit these files and let the branch point to them."""
        text = json.dumps({p: hashlib.sha256(d).hexdigest() for p, d in files.items()})
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.refs[branch] = commit
        return commit

    def got(self, path: str) -> list[Request]:
        """The GETs of one file."""
        return [r for r in self.log if r.method == "GET" and r.path.endswith(f"/{path}")]

    def fetched(self) -> set[str]:
        """Every file that was asked for."""
        found = (_FILE.fullmatch(request.path) for request in self.log)
        return {match["path"] for match in found if match}


def start(hub: Hub) -> ThreadingHTTPServer:
    """Serve ``hub`` on a free port of 127.0.0.1."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".h5", ".pt"))


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        header = self.headers.get("Authorization")
        token = header.removeprefix("Bearer ") if header else None
        self.hub.log.append(Request(self.command, path, self.headers.get("Range"), token))
        if path == _MODELS:
            return self._models()
        api, file = _API.fullmatch(path), _FILE.fullmatch(path)
        match = api or file
        if match is not None and match["repo"] in self.hub.former:
            moved = self.path.replace(match["repo"], self.hub.repo, 1)
            return self._send(307, b"", {"Location": moved})
        if match is None or match["repo"] != self.hub.repo:
            return self._refuse(404, "RepoNotFound")
        if self.hub.token is not None and token != self.hub.token:
            return self._refuse(401, "RepoNotFound")
        where = "api" if api else match["path"]
        if status := self.hub.status.get(where):
            return self._refuse(status, self.hub.codes.get(where, ""))
        commit = self.hub.refs.get(match["revision"] or "main", match["revision"] or "")
        if commit not in self.hub.commits:
            return self._refuse(404, "RevisionNotFound")
        if api:
            return self._listing(commit)
        return self._file(commit, match["path"])

    def _refuse(self, status: int, code: str = "") -> None:
        self._send(status, b"", {"X-Error-Code": code} if code else {})

    def _models(self) -> None:
        if status := self.hub.status.get("models"):
            return self._refuse(status)
        (author,) = parse_qs(urlsplit(self.path).query)["author"]
        found = [{"id": name} for name in self.hub.models if name.startswith(f"{author}/")]
        return self._send(200, self.hub.raw_api or json.dumps(found).encode(), {})

    def _listing(self, commit: str) -> None:
        siblings: list[dict[str, Any]] = [{"rfilename": name} for name in self.hub.extra_names]
        for path, data in self.hub.commits[commit].items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(data)}
            blob = f"blob {len(data)}\0".encode() + data
            entry["blobId"] = hashlib.sha1(blob).hexdigest()
            if is_lfs(path):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        body: dict[str, Any] = {"id": self.hub.repo, "sha": commit, "private": self.hub.private}
        body["siblings"] = siblings
        self._send(200, self.hub.raw_api or json.dumps(body).encode(), {})

    def _file(self, commit: str, path: str) -> None:
        data = self.hub.commits[commit].get(path)
        if data is None:
            return self._refuse(404, "EntryNotFound")
        etag = hashlib.sha256(data).hexdigest() if is_lfs(path) else hashlib.md5(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if is_lfs(path):
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{etag}"'}
        if path in self.hub.flipped:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        status = 200
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, total = int(wanted[1]), len(data)
            status, data = 206, data[start:]
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        if self.command == "GET" and path in self.hub.together:
            self.hub.together[path].wait(timeout=20)
        drop = self.hub.drop_after.pop(path, None) if self.command == "GET" else None
        return self._send(status, data, headers, drop)

    def _send(
        self, status: int, data: bytes, headers: Mapping[str, str], drop: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:drop])
            self.close_connection = drop is not None
