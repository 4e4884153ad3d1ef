"""A Hub for tests: enough of its protocol, on this machine and in memory, to push models and data sets and load them.

`HF_ENDPOINT` is read when `huggingface_hub` is imported, so whoever talks to it is a process of its own that starts with
`server.environment(home)`.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.references.hub_state import Fault, NotFoundError, Repo, Request

LFS_SUFFIXES = (".parquet", ".safetensors", ".png")
ID = r"(?P<repo_id>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>model|dataset|space)s/{ID}"
FILES = rf"/(?P<kind>datasets/|spaces/|){ID}"
REVISION = "(?P<revision>[^/]+)"


class HubServer(ThreadingHTTPServer):
    """The server with all it knows; `requests` and `log` list what it was asked, and `faults` is the trouble it makes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []  # method and path
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = Lock()

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self, home: Path) -> dict[str, str]:
        """The environment for a process that takes this for the Hub and `home` for its cache."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "hf_dummy",
            "HF_HOME": str(home),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def repo(self, kind: str, repo_id: str) -> Repo:
        """A repository."""
        try:
            return self.repos[kind, repo_id]
        except KeyError:
            raise NotFoundError("RepoNotFound") from None


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A server that runs as long as the block."""
    server = HubServer()
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """One request; the table at the end says which method answers which."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """Find the route, and answer with what its method returns as JSON, or with what it sent itself."""
        url = urlsplit(self.path)
        fault = self.next_fault(f"{self.command} {url.path}")
        if fault is not None and fault.action == "drop":
            return self.drop()
        self.body = self.read_body()
        self.query = parse_qs(url.query)
        self.server.requests.append(f"{self.command} {url.path}")
        self.server.log.append(Request(self.command, self.path, dict(self.headers), self.body))
        if fault is not None and fault.action == "hang":
            fault.release.wait(60)
        elif fault is not None:
            return self.send_json({"error": "trouble by order"}, int(fault.action))
        try:
            function, parts = self.route(url.path)
            with self.server.lock:
                value = function(self, **parts)
        except NotFoundError as error:
            return self.send_json({"error": error.code}, 404, {"X-Error-Code": error.code})
        return None if value is None else self.send_json(value)

    def next_fault(self, request: str) -> Fault | None:
        """The trouble that is due for this request."""
        with self.server.lock:
            for fault in self.server.faults:
                if fault.times > 0 and re.search(fault.match, request):
                    fault.times -= 1
                    fault.reached.set()
                    return fault
        return None

    def drop(self) -> None:
        """Read half of what comes, and hang up."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
        self.close_connection = True
        self.connection.shutdown(SHUT_RDWR)

    def route(self, path: str) -> tuple[Callable[..., Any], dict[str, str]]:
        """The method that answers, and the parts of the path that it takes."""
        for methods, pattern, function in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods.split():
                parts = {name: unquote(part or "") for name, part in found.groupdict().items()}
                if "kind" in parts:
                    parts["kind"] = parts["kind"].removesuffix("/").removesuffix("s") or "model"
                return function, parts
        raise NotFoundError("NotFound")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 (the names that http.server calls)

    def read_body(self) -> bytes:
        """The request's body, whole or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send_json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON."""
        self.send_bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def send_bytes(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        """Answer with bytes."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def whoami(self) -> dict[str, Any]:
        return {"name": "tester", "type": "user", "auth": {"accessToken": {"role": "write"}}, "orgs": []}

    def validate_yaml(self) -> dict[str, Any] | None:
        """Refuse metadata that is no YAML, or results that lack what the Hub's pages show."""
        try:
            content = json.loads(self.body)["content"]
            data = yaml.safe_load(content.split("---")[1]) if content.startswith("---") else {}
            results = [result for model in data.get("model-index", []) for result in model["results"]]
            stated = [
                (result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]) for result in results
            ]
            scores = [metric["value"] + 0 for result in results for metric in result["metrics"] if metric["type"]]
        except (yaml.YAMLError, KeyError, TypeError, IndexError) as error:
            self.send_json({"errors": [{"message": repr(error)}], "warnings": []}, 400)
            return None
        return {"errors": [], "warnings": [], "read": [stated, scores]}

    def create_repo(self) -> dict[str, Any] | None:
        asked = json.loads(self.body)
        kind, repo_id = asked.get("type") or "model", f"{asked.get('organization') or 'tester'}/{asked['name']}"
        url = f"{self.server.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if (kind, repo_id) in self.server.repos:
            self.send_json({"error": "You already created this repo", "url": url}, 409)
            return None
        self.server.repos[kind, repo_id] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        return {"url": url, "name": repo_id, "id": repo_id}

    def delete_repo(self) -> dict[str, Any]:
        asked = json.loads(self.body)
        key = (asked.get("type") or "model", f"{asked.get('organization') or 'tester'}/{asked['name']}")
        self.server.repo(*key)
        del self.server.repos[key]
        return {}

    def repo_info(self, kind: str, repo_id: str, revision: str = "main") -> dict[str, Any]:
        repo = self.server.repo(kind, repo_id)
        commit = repo.find(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        moment = "2024-01-01T00:00:00.000Z"
        about = {"id": repo_id, "sha": commit.sha, "private": repo.private, "siblings": siblings, "tags": []}
        return about | {"lastModified": moment, "createdAt": moment, "gated": False, "disabled": False, "downloads": 0}

    def refs(self, kind: str, repo_id: str) -> dict[str, Any]:
        repo = self.server.repo(kind, repo_id)
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in repo.branches.items()]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": sha} for n, sha in repo.tags.items()]
        return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}

    def create_branch(self, kind: str, repo_id: str, name: str) -> dict[str, Any] | None:
        repo = self.server.repo(kind, repo_id)
        if name in repo.branches:
            self.send_json({"error": "Reference already exists"}, 409)
            return None
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repo.branches[name] = repo.find(start).sha
        return {}

    def create_tag(self, kind: str, repo_id: str, revision: str) -> dict[str, Any]:
        repo = self.server.repo(kind, repo_id)
        repo.tags[json.loads(self.body)["tag"]] = repo.find(revision).sha
        return {}

    def tree(self, kind: str, repo_id: str, revision: str, path: str = "") -> list[dict[str, Any]]:
        files = self.server.repo(kind, repo_id).find(revision).files
        prefix = f"{path}/" if path else ""
        inside = [name for name in sorted(files) if name.startswith(prefix)]
        if path and not inside:
            raise NotFoundError("EntryNotFound")
        if self.query.get("recursive", ["false"])[0].lower() in ("true", "1"):
            return [file_entry(name, files[name]) for name in inside]
        tops = dict.fromkeys(prefix + name.removeprefix(prefix).partition("/")[0] for name in inside)
        return [file_entry(top, files[top]) if top in files else folder_entry(top) for top in tops]

    def paths_info(self, kind: str, repo_id: str, revision: str) -> list[dict[str, Any]]:
        files = self.server.repo(kind, repo_id).find(revision).files
        is_json = "json" in self.headers.get("Content-Type", "")
        asked = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode()).get("paths", [])
        entries = [file_entry(path, files[path]) for path in asked if path in files]
        folders = [path for path in asked if any(name.startswith(f"{path}/") for name in files)]
        return entries + [folder_entry(path) for path in folders]

    def preupload(self, kind: str, repo_id: str, revision: str) -> dict[str, Any]:
        files = self.server.repo(kind, repo_id).find(revision).files
        answers = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            oid = content_oid(path, files[path]) if path in files else None
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def lfs_batch(self, kind: str, repo_id: str) -> dict[str, Any]:
        self.server.repo(kind, repo_id)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.server.endpoint}/lfs/{asked['oid']}"}}
            actions = {} if asked["oid"] in self.server.blobs else {"actions": upload}
            objects.append({"oid": asked["oid"], "size": asked["size"], **actions})
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str) -> dict[str, Any] | None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.send_json({"error": "the content is not what its name says"}, 400)
            return None
        self.server.blobs[oid] = self.body
        return {}

    def commit(self, kind: str, repo_id: str, revision: str) -> dict[str, Any]:
        repo = self.server.repo(kind, repo_id)
        files, message = dict(repo.find(revision).files), ""
        for line in self.body.splitlines():
            change = json.loads(line)
            value = change["value"]
            if change["key"] == "header":
                message = value["summary"]
            elif change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            else:
                gone = value["path"].rstrip("/")
                files = {p: c for p, c in files.items() if p != gone and not p.startswith(f"{gone}/")}
        made = repo.add(revision, files, message)
        url = f"{self.server.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}/commit/{made.sha}"
        return {"commitUrl": url, "commitOid": made.sha, "commitMessage": message, "hookOutput": "", "success": True}

    def resolve(self, kind: str, repo_id: str, revision: str, path: str) -> None:
        commit = self.server.repo(kind, repo_id).find(revision)
        if path not in commit.files:
            raise NotFoundError("EntryNotFound")
        content = commit.files[path]
        etag = content_oid(path, content)
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if path.endswith(LFS_SUFFIXES):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.send_bytes(content, 200, headers)
        begin, end = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
        return self.send_bytes(content[begin : end + 1], 206, headers)


def git_oid(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def content_oid(path: str, content: bytes) -> str:
    """The id by which clients tell whether a file has changed."""
    return file_entry(path, content).get("lfs", {}).get("oid") or git_oid(content)


def file_entry(path: str, content: bytes) -> dict[str, Any]:
    """A file in a listing."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if not path.endswith(LFS_SUFFIXES):
        return entry
    return entry | {
        "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134},
    }


def folder_entry(path: str) -> dict[str, Any]:
    """A folder in a listing."""
    return {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", "/api/repos/create", Handler.create_repo),
    ("DELETE", "/api/repos/delete", Handler.delete_repo),
    ("GET", rf"{API}(/revision/{REVISION})?", Handler.repo_info),
    ("GET", rf"{API}/refs", Handler.refs),
    ("POST", rf"{API}/branch/(?P<name>[^/]+)", Handler.create_branch),
    ("POST", rf"{API}/tag/{REVISION}", Handler.create_tag),
    ("GET", rf"{API}/tree/{REVISION}(/(?P<path>.+))?", Handler.tree),
    ("POST", rf"{API}/paths-info/{REVISION}", Handler.paths_info),
    ("POST", rf"{API}/preupload/{REVISION}", Handler.preupload),
    ("POST", rf"{API}/commit/{REVISION}", Handler.commit),
    ("POST", rf"{FILES}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("GET HEAD", rf"{FILES}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]
