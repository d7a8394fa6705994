"""A hub on loopback: the part of the Hugging Face hub's protocol that huggingface_hub and datasets use to read.

    GET       /api/{models|datasets}/ORG/NAME[/revision/REV]     id, sha, siblings
    GET       /api/{models|datasets}/ORG/NAME/tree/REV[/FOLDER]  files and folders, ?recursive=
    POST      /api/{models|datasets}/ORG/NAME/paths-info/REV     the same of single paths
    HEAD GET  [/datasets]/ORG/NAME/resolve/REV/FILE              ETag, X-Repo-Commit, X-Linked-Size, ranges
    404                                                          X-Error-Code: RepoNotFound, RevisionNotFound, ...

Every request is kept in `Hub.requests`, to see what was asked for. Left out: writing, accounts, pages of long
listings, redirects to a store of large files, Xet.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin")  # what the real hub keeps in its store of large files
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
RESOLVE = re.compile(r"(/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")

Files = Mapping[str, bytes]


class NotFoundError(Exception):
    """Answered as a 404 with the hub's own error code."""


@dataclass
class Hub:
    """Repositories by (kind, "org/name"), and the requests so far."""

    url: str = ""
    repositories: dict[tuple[str, str], Files] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)

    def add(self, kind: str, name: str, files: Files) -> str:
        """Put a repository there with one commit, known as `main` and `v1`; its sha."""
        self.repositories[kind, name] = files
        return self.sha(kind, name)

    def sha(self, kind: str, name: str) -> str:
        return hashlib.sha1(f"{kind}/{name}".encode()).hexdigest()

    def files(self, kind: str, name: str, revision: str | None) -> Files:
        """The files of a revision, or what the hub says about its absence."""
        if (kind, name) not in self.repositories:
            raise NotFoundError("RepoNotFound")
        if revision not in (None, "main", "v1", self.sha(kind, name)):
            raise NotFoundError("RevisionNotFound")
        return self.repositories[kind, name]

    def asked_for(self, name: str) -> bool:
        return any(name in request for request in self.requests)


def etag(path: str, data: bytes) -> str:
    """As git and its store of large files name contents."""
    if path.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(path: str, files: Files) -> dict[str, Any]:
    if path not in files:
        return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
    data = files[path]
    found: dict[str, Any] = {"type": "file", "path": path, "oid": etag(path, data), "size": len(data)}
    if path.endswith(LARGE):
        found["lfs"] = {"oid": etag(path, data), "size": len(data), "pointerSize": 134}
    return found


def listing(files: Files, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders under a folder ("" is the root)."""
    prefix = f"{folder}/" if folder else ""
    below = [path.removeprefix(prefix) for path in files if path.startswith(prefix)]
    if folder and not below:
        raise NotFoundError("EntryNotFound")
    folders = {"/".join(path.split("/")[:depth]) for path in below for depth in range(1, path.count("/") + 1)}
    names = sorted(folders | set(below))
    return [entry(prefix + name, files) for name in names if recursive or "/" not in name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""

    def answer(self, body: str = "") -> None:
        url = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {unquote(url.path)}")
        try:
            if found := API.fullmatch(url.path):
                kind, name, what, revision, path = (None if one is None else unquote(one) for one in found.groups())
                self.send_json(self.api(kind or "", name or "", what, revision, path or "", url.query, body))
            elif found := RESOLVE.fullmatch(url.path):
                dataset, name, revision, path = found.groups()
                self.send_file("datasets" if dataset else "models", name, unquote(revision), unquote(path))
            else:
                raise NotFoundError("EntryNotFound")
        except NotFoundError as error:
            self.reply(404, {"X-Error-Code": str(error)}, b"{}")

    def api(
        self, kind: str, name: str, what: str | None, revision: str | None, path: str, query: str, body: str
    ) -> object:
        files = self.hub.files(kind, name, revision)
        if what == "tree":
            return listing(files, path, parse_qs(query).get("recursive", [""])[0].lower() == "true")
        if what == "paths-info":
            folders = {path.rsplit("/", 1)[0] for path in files if "/" in path}
            return [entry(one, files) for one in parse_qs(body).get("paths", []) if one in files or one in folders]
        siblings = [{"rfilename": one} for one in files]
        common = {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
        return {"id": name, "sha": self.hub.sha(kind, name), "siblings": siblings, **common}

    def send_file(self, kind: str, name: str, revision: str, path: str) -> None:
        files = self.hub.files(kind, name, revision)
        if name in self.hub.gated:
            self.reply(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask for access"}, b"{}")
            return
        if path not in files:
            raise NotFoundError("EntryNotFound")
        data = files[path]
        headers = {
            "ETag": f'"{etag(path, data)}"',
            "X-Repo-Commit": self.hub.sha(kind, name),
            "X-Linked-Size": str(len(data)),
            "X-Linked-Etag": f'"{etag(path, data)}"',
            "Accept-Ranges": "bytes",
        }
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
            if first >= len(data):
                self.reply(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
                return
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self.reply(206, headers, data[first : last + 1])
        else:
            self.reply(200, headers, data)

    def send_json(self, value: object) -> None:
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def reply(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def serve() -> Iterator[Hub]:
    """A running hub on a free port of loopback."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
