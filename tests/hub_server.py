"""Stand-in for the hub over loopback HTTP, which answers huggingface_hub and datasets from folders.

`root/models/ORG/NAME/` and `root/datasets/ORG/NAME/` are repositories; `main` and the tag `v1` lead
to the same commit. A repository with a file `.gated` can be listed, but its files cannot be read.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)


class HubServer:
    """Server of `root` until the block ends; `requests` lists the requests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []

    def __enter__(self) -> "HubServer":
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server_hub.requests.append(f"{self.command} /{path}")
        parts = path.split("/")
        if parts[0] == "api" and len(parts) >= 4:
            self._api(parts[1], "/".join(parts[2:4]), parts[4:])
        elif "resolve" in parts:
            at = parts.index("resolve")
            kind = "datasets" if parts[0] == "datasets" else "models"
            repository = "/".join(parts[at - 2 : at])
            self._file(kind, repository, parts[at + 1], "/".join(parts[at + 2 :]))
        else:
            self._fail(404, "", "not here")

    def _api(self, kind: str, repository: str, rest: list[str]) -> None:
        folder = self._repository(kind, repository)
        if folder is None:
            return
        what, revision = rest[0] if rest else "revision", rest[1] if len(rest) > 1 else "main"
        if revision not in REVISIONS:
            self._fail(404, "RevisionNotFound", "Revision Not Found")
        elif what == "revision":
            siblings = [{"rfilename": name} for name in _names(folder)]
            self._json({"id": repository, "sha": COMMIT, "siblings": siblings, "private": False})
        elif what == "tree":
            under = "/".join(rest[2:])
            self._json([e for e in _entries(folder) if e["path"].startswith(under)])
        elif what == "paths-info":
            asked = self._asked()
            self._json([e for e in _entries(folder) if e["path"] in asked])
        else:
            self._fail(404, "", "not here")

    def _asked(self) -> list[str]:
        body = self._body.decode()
        if self.headers.get("Content-Type", "").startswith("application/json"):
            return list(json.loads(body)["paths"])
        return [unquote(pair.partition("=")[2]) for pair in body.split("&")]

    def _file(self, kind: str, repository: str, revision: str, name: str) -> None:
        folder = self._repository(kind, repository)
        if folder is None:
            return
        if revision not in REVISIONS:
            self._fail(404, "RevisionNotFound", "Revision Not Found")
        elif (folder / ".gated").exists():
            self._fail(403, "GatedRepo", "Access to this repository is restricted.")
        elif not (folder / name).is_file():
            self._fail(404, "EntryNotFound", "Entry not found")
        else:
            self._send_file((folder / name).read_bytes())

    def _send_file(self, content: bytes) -> None:
        total, first, last = len(content), 0, len(content) - 1
        asked = self.headers.get("Range")
        if asked:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        headers = {
            "ETag": f'"{_hash(content)}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if asked:
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        self._send(206 if asked else 200, headers, content[first : last + 1])

    def _repository(self, kind: str, repository: str) -> Path | None:
        folder = self.server_hub.root / kind / repository
        if folder.is_dir():
            return folder
        self._fail(401, "RepoNotFound", "Repository not found")
        return None

    def _json(self, value: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _fail(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self._send(status, headers, message.encode())

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _hash(content: bytes) -> str:
    """Return the hash that the hub has: Git's for small files, sha256 for files of Git LFS."""
    if len(content) > 10_000:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _names(folder: Path) -> list[str]:
    found = (str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file())
    return [name for name in found if name != ".gated"]


def _entries(folder: Path) -> list[dict[str, object]]:
    files = [
        {
            "type": "file",
            "path": name,
            "size": (folder / name).stat().st_size,
            "oid": _hash((folder / name).read_bytes()),
        }
        for name in _names(folder)
    ]
    folders = {str(Path(name).parent) for name in _names(folder)} - {"."}
    return [*files, *({"type": "directory", "path": f, "oid": "0", "size": 0} for f in folders)]
