"""A Hub on loopback that speaks what `huggingface_hub` speaks: repositories, commits, large files, who may see what.

Files that a server keeps beside git (LFS) are asked for by their size, as the real one does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER, TOKEN, READER = "org", "hf_writes", "hf_reads"
LARGE = 1000  # bytes from which on a file is a large one


@dataclass
class Repo:
    """A repository: its commits, newest last, each a name and all files of it."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=lambda: [("0" * 40, {})])
    large: set[bytes] = field(default_factory=set)  # contents that came as LFS objects

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a branch `main` or a commit."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)

    @property
    def newest(self) -> dict[str, bytes]:
        return self.commits[-1][1]


@dataclass
class Hub:
    """What the server holds, and what it was asked."""

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)  # "models/org/name"
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS, by digest
    asked: list[str] = field(default_factory=list)  # method and path

    @property
    def changes(self) -> list[str]:
        """Requests that change something."""
        return [one for one in self.asked if re.search(r"create|/commit/|preupload|lfs|^PUT", one)]


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve an empty Hub until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        held = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    held: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.held.asked.append(f"{method} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for verb, pattern, answer in (
            ("GET", r"/api/whoami-v2", self._whoami),
            ("POST", r"/api/validate-yaml", self._yaml),
            ("POST", r"/api/repos/create", self._create),
            ("GET", r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/revision/(.+))?", self._info),
            ("POST", r"/api/(models|datasets)/([\w.-]+/[\w.-]+)/preupload/(.+)", self._preupload),
            ("POST", r"/api/(models|datasets)/([\w.-]+/[\w.-]+)/commit/(.+)", self._commit),
            ("POST", r"/(datasets/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", self._batch),
            ("PUT", r"/upload/(\w+)", self._upload),
            ("HEAD", r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", self._resolve),
            ("GET", r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", self._resolve),
        ):
            match = re.fullmatch(pattern, path)
            if match and verb == method:
                answer(body, *match.groups())
                return
        self._refuse(404, "", f"nothing at {path}")

    # Who asks.

    @property
    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _repo(self, kind: str, name: str, writes: bool = False) -> Repo | None:
        """A repository that the asker may see; answers where it may not."""
        repo = self.held.repos.get(f"{kind}/{name}")
        if repo is None or (repo.private and self._token not in (TOKEN, READER)):
            self._refuse(404 if self._token else 401, "RepoNotFound", "Repository not found")
            return None
        if writes and self._token != TOKEN:
            self._refuse(403, "", "you may not write here")
            return None
        return repo

    # What is answered.

    def _whoami(self, body: bytes) -> None:
        if self._token in (TOKEN, READER):
            self._json({"type": "user", "name": OWNER, "orgs": [], "auth": {"type": "access_token"}})
        else:
            self._refuse(401, "", "Invalid credentials in Authorization header")

    def _yaml(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def _create(self, body: bytes) -> None:
        given = json.loads(body)
        kind, name = f"{given.get('type') or 'model'}s", f"{given['organization'] or OWNER}/{given['name']}"
        if self._token != TOKEN or given["organization"] not in (None, OWNER):
            self._refuse(403, "", f"you may not create in {given['organization']}")
        elif f"{kind}/{name}" in self.held.repos:
            self._refuse(409, "", "You already created this repo")
        else:
            private = given.get("private") or given.get("visibility") == "private"
            self.held.repos[f"{kind}/{name}"] = Repo(bool(private))
            self._json({"url": f"{self.held.address}/{'datasets/' if kind == 'datasets' else ''}{name}", "name": name})

    def _info(self, body: bytes, kind: str, name: str, revision: str | None) -> None:
        if repo := self._repo(kind, name):
            commit = repo.files(revision or "main")
            if commit is None:
                self._refuse(404, "RevisionNotFound", "no such revision")
                return
            files = [{"rfilename": file} for file in sorted(commit[1])]
            self._json({"id": name, "sha": commit[0], "private": repo.private, "siblings": files, "tags": []})

    def _preupload(self, body: bytes, kind: str, name: str, revision: str) -> None:
        if self._repo(kind, name, writes=True):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})

    def _batch(self, body: bytes, kind: str | None, name: str) -> None:
        if self._repo("datasets" if kind else "models", name, writes=True):
            given = json.loads(body)
            assert "basic" in given["transfers"]
            objects = []
            for entry in given["objects"]:
                upload = {"upload": {"href": f"{self.held.address}/upload/{entry['oid']}"}}
                objects.append({**entry, **({} if entry["oid"] in self.held.objects else {"actions": upload})})
            self._json({"transfer": "basic", "objects": objects}, "application/vnd.git-lfs+json")

    def _upload(self, body: bytes, digest: str) -> None:
        assert hashlib.sha256(body).hexdigest() == digest
        self.held.objects[digest] = body
        self._send(200, b"")

    def _commit(self, body: bytes, kind: str, name: str, revision: str) -> None:
        repo = self._repo(kind, name, writes=True)
        if repo is None:
            return
        files = dict(repo.newest)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content = self.held.objects[value["oid"]]
                assert len(content) == value["size"]
                repo.large.add(content)
                files[value["path"]] = content
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        oid = hashlib.sha1(body + str(len(repo.commits)).encode()).hexdigest()
        repo.commits.append((oid, files))
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.held.address}/{name}/commit/{oid}"})

    def _resolve(self, body: bytes, kind: str | None, name: str, revision: str, file: str) -> None:
        repo = self._repo("datasets" if kind else "models", name)
        if repo is None:
            return
        commit = repo.files(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", "no such revision")
        elif file not in commit[1]:
            self._refuse(404, "EntryNotFound", "no such file", {"X-Repo-Commit": commit[0]})
        else:
            content = commit[1][file]
            tag = hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))} if content in repo.large else {}
            self._send(200, content, {"X-Repo-Commit": commit[0], "ETag": f'"{tag}"', **linked})

    def _json(self, content: Any, kind: str = "application/json") -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": kind})

    def _refuse(self, status: int, code: str, message: str, more: dict[str, str] | None = None) -> None:
        headers = {"X-Error-Code": code} if code else {}
        self._send(
            status, json.dumps({"error": message}).encode(), {**headers, "X-Error-Message": message, **(more or {})}
        )

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
