"""A local server with the part of the HTTP interface of the Hugging Face Hub that sharing uses."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

TOKEN = "hf_stand_in"


class Hub(ThreadingHTTPServer):
    """Repositories by id: the content of their files by name. Large files come through the LFS interface, as on the Hub."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.reported_sizes: dict[str, int] = {}
        """Sizes that the server reports, where they are not true."""
        self.downloads: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the server for the duration of a ``with`` statement."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def commit_of(files: dict[str, bytes]) -> str:
    digest = hashlib.sha1()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + hashlib.sha1(content).digest())
    return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def _send(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _may_read(self, repo_id: str) -> bool:
        if repo_id in self.server.repos and (repo_id not in self.server.private or self._is_owner()):
            return True
        self._send({"error": "Repository not found"}, 401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        return False

    def _is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(/revision/[^/]+)?", path):
            repo_id = match[1]
            if self._may_read(repo_id):
                files = self.server.repos[repo_id]
                siblings = [
                    {"rfilename": name, "size": self.server.reported_sizes.get(name, len(content)), "blobId": "0" * 40}
                    for name, content in files.items()
                ]
                self._send({"id": repo_id, "sha": commit_of(files), "siblings": siblings})
        elif match := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            repo_id, revision, name = match.groups()
            if self._may_read(repo_id):
                files = self.server.repos[repo_id]
                assert revision == commit_of(files), "files are of one commit"
                if self.command == "GET":
                    self.server.downloads.append(name)
                etag = hashlib.sha1(files[name]).hexdigest()
                self._send(files[name], ETag=f'"{etag}"', X_Repo_Commit=revision)
        else:
            self._send({"error": f"no {path}"}, 404)

    def do_PUT(self) -> None:
        self.server.objects[self.path.rsplit("/", 1)[-1]] = self._body()
        self._send({})

    def do_POST(self) -> None:
        path, body = unquote(urlparse(self.path).path), self._body()
        if not self._is_owner():
            self._send({"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            self._send({"files": modes})
        elif path.endswith(".git/info/lfs/objects/batch"):
            found = [
                {**wanted, "actions": {"upload": {"href": f"{self.server.url}/objects/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
            ]
            self._send({"transfer": "basic", "objects": found})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._send({"error": f"no {path}"}, 404)

    def _create(self, request: dict[str, Any]) -> None:
        repo_id = f"{request['organization']}/{request['name']}" if request.get("organization") else request["name"]
        url = f"{self.server.url}/{repo_id}"
        if repo_id in self.server.repos:
            self._send({"error": "exists", "url": url}, 409)
            return
        self.server.repos[repo_id] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        if request.get("private") or request.get("visibility") == "private":
            self.server.private.add(repo_id)
        self._send({"url": url, "name": repo_id})

    def _commit(self, repo_id: str, operations: list[dict[str, Any]]) -> None:
        files = self.server.repos[repo_id]
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        sha = commit_of(files)
        url = f"{self.server.url}/{repo_id}/commit/{sha}"
        self._send({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


@contextmanager
def logged_in(monkeypatch):
    """The stand-in, with the client of huggingface_hub logged in to it."""
    from huggingface_hub import constants

    with serve() as stand_in:
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{stand_in.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose protocol the stand-in does not speak
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield stand_in
