"""
A Hugging Face Hub on 127.0.0.1: what huggingface_hub 2.4 asks for when it pushes, lists, downloads and loads code.

    with LoopbackHub() as hub:
        sha = hub.seed("org/name", folder)
        subprocess.run(command, env={**os.environ, **hub.env()})

Unusual: a commit is an immutable snapshot {path: Blob} under 40 hexadecimal digits, so an old revision stays loadable;
the bytes lie once, named by their sha256, in a temporary folder, so a test can damage them behind the client's back.
Any bearer token may do anything. Left out: branches other than main, tags, pull requests, multipart uploads, Xet.
"""

import base64
import hashlib
import json
import re
import tempfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from pytest import MonkeyPatch


API = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/([a-z-]+))?(?:/([^/]+))?(?:/(.+))?")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
LFS_BATCH = re.compile(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")


class Refusal(Exception):
    """An answer other than success; by `code`, sent as X-Error-Code, the client picks the exception it raises."""

    def __init__(self, status: int, code: str = "", message: str = "", reply: dict | None = None, **headers: str):
        self.status, self.reply = status, reply or {"error": message}
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **headers}


@dataclass(frozen=True)
class Blob:
    sha256: str
    git_oid: str
    size: int
    lfs: bool

    def entry(self, path: str) -> dict:
        lfs = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        entry = {"type": "file", "path": path, "oid": self.git_oid, "size": self.size}
        return entry | {"lfs": lfs} if self.lfs else entry


@dataclass
class Repo:
    name: str  # "org/name", or "datasets/org/name"
    private: bool = False
    gated: bool = False
    history: list[tuple[str, str]] = field(default_factory=list)  # (sha, title), oldest first
    snapshots: dict[str, dict[str, Blob]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return self.history[-1][0]

    def commit(self, title: str, files: dict[str, Blob]) -> str:
        tree = "".join(f"{path} {blob.sha256}\n" for path, blob in sorted(files.items()))
        sha = hashlib.sha1(f"{self.name} {len(self.history)} {title}\n{tree}".encode()).hexdigest()
        self.snapshots[sha] = files
        self.history.append((sha, title))
        return sha


class LoopbackHub:
    """
    A context manager; the server lives as long as its body.

    Args:
        alias_pins: let a well-formed commit id that a repository lacks stand for its head at that moment, so that
            code which pins a revision of a large public model finds the small stand-in seeded under that name.
    """

    def __init__(self, alias_pins: bool = False):
        self.alias_pins = alias_pins
        self.repos: dict[str, Repo] = {}
        self.lock = Lock()  # the server answers in threads; a commit reads the head and then moves it

    def __enter__(self) -> Self:
        self._tmp = tempfile.TemporaryDirectory(prefix="loopback_hub_")
        (Path(self._tmp.name) / "blobs").mkdir()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._tmp.cleanup()

    def env(self) -> dict[str, str]:
        """Environment of a process that shall know no Hub but this one; its cache starts empty, beside the blobs."""
        home = tempfile.mkdtemp(prefix="hf_home_", dir=self._tmp.name)
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": "hf_dummy",
            "HF_HOME": home,
            "HF_HUB_CACHE": f"{home}/hub",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }

    def patch(self, monkeypatch: MonkeyPatch) -> None:
        """The same for huggingface_hub in this process, which read its environment when it was imported."""
        from huggingface_hub import constants  # not before: whoever sets `env()` first has no need of this

        environment = self.env()
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", environment["HF_HUB_CACHE"])

    def seed(self, repo_id: str, folder: Path | str, repo_type: str = "model") -> str:
        """Commit every file of `folder`, beside what the repository holds already. Returns the commit's id."""
        folder = Path(folder)
        files = {p.relative_to(folder).as_posix(): self.store(p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
        with self.lock:
            repo = self.create(repo_id, repo_type)
            return repo.commit("seed", repo.snapshots[repo.head] | files)

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        return self.repos[f"datasets/{repo_id}" if repo_type == "dataset" else repo_id]

    def create(self, repo_id: str, repo_type: str = "model", private: bool = False) -> Repo:
        name = f"datasets/{repo_id}" if repo_type == "dataset" else repo_id
        if name not in self.repos:  # as on the real Hub, a new repository begins with a commit of its own
            self.repos[name] = repo = Repo(name, private)
            repo.commit("initial commit", {".gitattributes": self.store(b"*.safetensors filter=lfs\n")})
        return self.repos[name]

    def blob_file(self, sha256: str) -> Path:
        return Path(self._tmp.name) / "blobs" / sha256

    def store(self, content: bytes) -> Blob:
        git_oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        blob = Blob(hashlib.sha256(content).hexdigest(), git_oid, len(content), is_large(content[:512]))
        self.blob_file(blob.sha256).write_bytes(content)
        return blob


def is_large(sample: bytes) -> bool:
    return b"\0" in sample  # the real Hub asks .gitattributes; for our files "binary" says the same


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *_): ...

    def answer(self):
        body, url = self.body(), urlsplit(self.path)
        try:
            if match := RESOLVE.fullmatch(url.path):
                return self.resolve(*match.groups())
            reply = self.api(url.path, parse_qs(url.query), body)
            self.send(200, json.dumps(reply).encode(), {"Content-Type": "application/json"})
        except Refusal as refusal:
            self.send(refusal.status, json.dumps(refusal.reply).encode(), refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, status: int, content: bytes, headers: dict[str, str]):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def find(self, kind: str | None, repo_id: str, revision: str = "main") -> tuple[Repo, str, dict[str, Blob]]:
        """The repository, commit id and files of a revision; refuses what the real Hub refuses, in its order."""
        repo = self.hub.repos.get(f"datasets/{repo_id}" if kind and kind.startswith("dataset") else repo_id)
        if repo is None or (repo.private and "Authorization" not in self.headers):
            raise Refusal(404 if "Authorization" in self.headers else 401, "RepoNotFound", "Repository not found")
        sha = repo.head if revision == "main" else unquote(revision)
        if sha not in repo.snapshots:
            if not (self.hub.alias_pins and re.fullmatch("[0-9a-f]{40}", sha)):
                raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {sha}")
            repo.snapshots[sha] = repo.snapshots[repo.head]  # from now on, as immutable as any commit
        return repo, sha, repo.snapshots[sha]

    def resolve(self, kind: str | None, repo_id: str, revision: str, path: str):
        repo, sha, files = self.find(kind, repo_id, revision)
        if repo.gated:
            raise Refusal(403, "GatedRepo", f"Access to {repo_id} is restricted")
        if (blob := files.get(unquote(path))) is None:
            raise Refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": sha})
        content = self.hub.blob_file(blob.sha256).read_bytes()
        headers = {"ETag": f'"{blob.sha256 if blob.lfs else blob.git_oid}"', "X-Repo-Commit": sha}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.send(200, content, headers)
        first, last = wanted.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= stop:
            raise Refusal(416, **{"Content-Range": f"bytes */{len(content)}"})
        self.send(206, content[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})

    def api(self, path: str, query: dict[str, list[str]], body: bytes) -> dict | list:
        if self.command == "PUT":  # to a signed address: no token, but the bytes have to be those announced
            oid = self.hub.store(body).sha256
            if oid != path.rsplit("/", 1)[1]:
                raise Refusal(400, message=f"{path}: these bytes have the sha256 {oid}")
            return {}
        kind, repo_id, verb, revision, rest = match.groups() if (match := API.fullmatch(path)) else [None] * 5
        writes = self.command == "POST" and verb != "paths-info"
        if (writes or path == "/api/whoami-v2") and "Authorization" not in self.headers:
            raise Refusal(401, message="Invalid username or password.")
        if path == "/api/whoami-v2":
            return {"type": "user", "name": "loopback", "orgs": [], "auth": {"type": "access_token"}}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if match := LFS_BATCH.fullmatch(path):
            self.find(*match.groups())
            return {"transfer": "basic", "objects": [self.lfs_action(wish) for wish in json.loads(body)["objects"]]}
        if path == "/lfs/verify":
            return self.lfs_action(json.loads(body))
        if kind is None:
            raise Refusal(404, message=f"The loopback Hub does not know {self.command} {path}.")

        repo, sha, files = self.find(kind, repo_id, revision or "main")
        if verb == "preupload":
            return {"files": [self.preupload(wish, files) for wish in json.loads(body)["files"]]}
        if verb == "commit":
            return self.commit(repo, [json.loads(line) for line in body.splitlines()])
        if verb == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head}
            return {"branches": [main], "converts": [], "tags": []}
        if verb == "paths-info":
            entries = {entry["path"]: entry for entry in tree(files, recursive=True)}
            return [entries[path] for path in parse_qs(body.decode()).get("paths", []) if path in entries]
        if verb == "tree":
            return tree(files, unquote(rest or ""), recursive=query.get("recursive", ["false"])[0].lower() == "true")
        siblings = [{"rfilename": path} for path in sorted(files)]
        return {"id": repo_id, "sha": sha, "private": repo.private, "gated": repo.gated, "siblings": siblings}

    def create(self, wish: dict) -> dict:
        repo_id, repo_type = f"{wish['organization'] or 'loopback'}/{wish['name']}", wish.get("type", "model")
        with self.hub.lock:
            known = set(self.hub.repos)
            repo = self.hub.create(repo_id, repo_type, private=wish.get("visibility") == "private")
        reply = {"url": f"{self.hub.url}/{repo.name}", "error": "You already created this repo"}
        if repo.name in known:
            raise Refusal(409, message=reply["error"], reply=reply)
        return reply

    def lfs_action(self, wish: dict) -> dict:
        href = f"{self.hub.url}/lfs/"
        actions = {"upload": {"href": href + wish["oid"]}, "verify": {"href": href + "verify"}}
        return wish if self.hub.blob_file(wish["oid"]).exists() else wish | {"actions": actions}

    def preupload(self, wish: dict, files: dict[str, Blob]) -> dict:
        large, old = is_large(base64.b64decode(wish["sample"])), files.get(wish["path"])
        oid = old and (old.sha256 if large else old.git_oid)  # by which the client leaves out what has not changed
        return {"path": wish["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def commit(self, repo: Repo, lines: list[dict]) -> dict:
        header, *operations = [(line["key"], line["value"]) for line in lines]
        with self.hub.lock:
            if header[1].get("parentCommit", repo.head) != repo.head:
                raise Refusal(412, message="A commit has happened since. Please refresh and try again.")
            files = dict(repo.snapshots[repo.head])
            for key, value in operations:
                path = value["path"]
                if key == "file":
                    files[path] = self.hub.store(base64.b64decode(value["content"]))
                elif key == "lfsFile":
                    files[path] = self.hub.store(self.hub.blob_file(value["oid"]).read_bytes())
                else:
                    kept = {p: blob for p, blob in files.items() if not f"{p}/".startswith(path.rstrip("/") + "/")}
                    if kept == files:
                        raise Refusal(404, "EntryNotFound", "A file with this name doesn't exist")
                    files = kept
            sha = repo.commit(header[1]["summary"], files)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo.name}/commit/{sha}"}


def tree(files: dict[str, Blob], under: str = "", recursive: bool = False) -> list[dict]:
    prefix, entries = f"{under}/" if under else "", {}
    for path, blob in sorted(files.items()):
        if path.startswith(prefix):
            steps = path.removeprefix(prefix).split("/")
            for depth in range(1, len(steps) if recursive else min(2, len(steps))):
                folder = prefix + "/".join(steps[:depth])
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": blob.git_oid}
            if recursive or len(steps) == 1:
                entries[path] = blob.entry(path)
    if under and not entries:
        raise Refusal(404, "EntryNotFound", f"{under} does not exist")
    return list(entries.values())
