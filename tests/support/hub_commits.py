"""The writing side of a small Hugging Face hub on loopback: repositories, uploads, commits.

It speaks what ``HfApi.create_repo`` and ``create_commit`` ask for where Xet is off:
``repos/create``, ``validate-yaml``, ``preupload``, Git LFS's batch API with one PUT for each
object, and ``commit``, whose body is a line of JSON for each operation. Reading is `hub_server`'s.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.hub_server import Hub, Request, _Handler, is_lfs

_REPO = r"(?P<repo>[^/]+/[^/]+)"
_PREUPLOAD = re.compile(rf"/api/models/{_REPO}/preupload/main")
_COMMIT = re.compile(rf"/api/models/{_REPO}/commit/main")
_BATCH = re.compile(rf"/{_REPO}\.git/info/lfs/objects/batch")
_UPLOAD = re.compile(r"/upload/(?P<oid>[0-9a-f]{64})")
_TREE = re.compile(rf"/api/models/{_REPO}/tree/(?P<commit>[0-9a-f]{{40}})")
_READ = re.compile(rf"/(?:api/models/)?{_REPO}(?:/.*)?")
TOKEN = "hf_secret_of_this_test"


@dataclass
class Platform:
    """Repositories that can be written to with `TOKEN`, and what the server shall do wrong."""

    repos: dict[str, Hub] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)
    log: list[Request] = field(default_factory=list)
    #: Status of the answer to a commit; the commit is not made.
    commit_status: int | None = None
    #: Objects lose their last byte on the way.
    cut: bool = False
    url: str = ""

    def add(self, repo: str, **files: bytes) -> Hub:
        """Make a repository with these files."""
        hub = self.repos[repo] = Hub(repo=repo, token=TOKEN)
        hub.push({".gitattributes": b"*.pt filter=lfs\n", **files})
        return hub

    def files(self, repo: str) -> dict[str, bytes]:
        """Return what ``main`` of a repository has."""
        hub = self.repos[repo]
        return hub.commits[hub.refs["main"]]


def start(platform: Platform) -> ThreadingHTTPServer:
    """Serve ``platform`` on a free port of 127.0.0.1."""

    class Handler(_WritingHandler):
        pass

    Handler.platform = platform
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    platform.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class _WritingHandler(_Handler):
    platform: Platform

    def do_POST(self) -> None:
        self._write()

    def do_PUT(self) -> None:
        self._write()

    def _answer(self) -> None:
        """Answer a reader by the repository that the path names."""
        path = unquote(urlsplit(self.path).path)
        match = _READ.fullmatch(path)
        hub = self.platform.repos.get(match["repo"]) if match else None
        if path == "/api/models":
            hub = Hub()
        self._record(path)
        if hub is None:
            return self._refuse(404, "RepoNotFound")
        self.hub = hub
        if tree := _TREE.fullmatch(path):
            return self._send_json(_list_tree(hub.commits[tree["commit"]]))
        return super()._answer()

    def _record(self, path: str) -> str | None:
        header = self.headers.get("Authorization")
        token = header.removeprefix("Bearer ") if header else None
        self.platform.log.append(Request(self.command, path, None, token))
        return token

    def _write(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._read_body()
        token = self._record(path)
        if path == "/api/validate-yaml":
            return self._send_json({"errors": [], "warnings": []})
        if upload := _UPLOAD.fullmatch(path):
            self.platform.objects[upload["oid"]] = body[:-1] if self.platform.cut else body
            return self._send_json({})
        if token != TOKEN:
            return self._refuse(401)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        for pattern, answer in (
            (_PREUPLOAD, self._preupload),
            (_BATCH, self._batch),
            (_COMMIT, self._commit),
        ):
            match = pattern.fullmatch(path)
            if match and match["repo"] in self.platform.repos:
                return answer(match["repo"], body)
        return self._refuse(404, "RepoNotFound")

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        self.platform.add(repo).private = asked.get("visibility") == "private"
        self._send_json({"url": f"{self.platform.url}/{repo}", "name": repo, "id": repo})

    def _preupload(self, repo: str, body: bytes) -> None:
        found = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if is_lfs(file["path"]) else "regular"
            found.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        self._send_json({"files": found})

    def _batch(self, repo: str, body: bytes) -> None:
        found = []
        for one in json.loads(body)["objects"]:
            href = f"{self.platform.url}/upload/{one['oid']}"
            upload = {} if one["oid"] in self.platform.objects else {"upload": {"href": href}}
            entry = {"oid": one["oid"], "size": one["size"]}
            found.append({**entry, "actions": upload} if upload else entry)
        self._send_json({"transfer": "basic", "objects": found})

    def _commit(self, repo: str, body: bytes) -> None:
        if self.platform.commit_status is not None:
            return self._refuse(self.platform.commit_status)
        hub, files = self.platform.repos[repo], dict(self.platform.files(repo))
        operations = [json.loads(line) for line in body.splitlines()]
        header = operations[0]["value"]
        if header.get("parentCommit") not in (None, hub.refs["main"]):
            return self._refuse(412)
        for operation in operations[1:]:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.platform.objects[value["oid"]]
        self.platform.commits.append({**header, "repo": repo})
        oid = hub.push(files)
        url = f"{self.platform.url}/{repo}/commit/{oid}"
        return self._send_json({"commitUrl": url, "commitOid": oid, "pullRequestUrl": None})

    def _send_json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _list_tree(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Return what ``hf download`` asks for before it downloads."""
    found: list[dict[str, Any]] = []
    for path, data in files.items():
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
        entry["oid"] = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        if is_lfs(path):
            oid = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
        found.append(entry)
    return found
