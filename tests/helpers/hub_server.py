"""A small Hugging Face Hub on loopback, for the tests: standard library only, a plain folder as its store.

It speaks as much of the Hub's protocol as huggingface_hub and timm use to create, push, list, tag and download
models. Large files live on a "CDN": a second listener on 127.0.0.2, as another *host name* is what makes the client
treat it as one. It refuses requests that bring a token. With `xet=True` it offers Xet as well: large files have a Xet
hash, and a third listener on 127.0.0.3 is the "CAS", which takes xorbs and shards and tells which parts of which xorbs
make up a file (the xorbs themselves come from the CDN); without, clients must run with HF_HUB_DISABLE_XET=1.

    with HubServer(folder, xet=True) as server:  # .url for HF_ENDPOINT, .log, .faults, .set_private(repo), .set_gated
        ...
    python -m tests.helpers.hub_server --root DIR --port N [--xet]

A new operation is one function with `@route`; a new fault is one kind in `Faults` and its place in `_send`.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import hashlib
import json
import re
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.helpers.xet_server import XetError, XetStore

WRITE_TOKEN = "hf_write"  # of the user "me", who may write everywhere
READ_TOKEN = "hf_read"
TOKENS = {WRITE_TOKEN: "write", READ_TOKEN: "read"}
LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".pkl", ".onnx")  # what a new repository's .gitattributes lists
LFS_BYTES = 10_000_000  # larger files go to LFS whatever their name


class HubError(Exception):
    """An answer that is an error. `code` goes into X-Error-Code, by which the client picks its exception."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


# ------------------------------------------------------------------------------------------------------------ store


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """One repository, as its JSON file has it. A commit is {title, date, parent, files: {path: entry}}."""

    id: str
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Any]] = field(default_factory=dict)

    def resolve(self, revision: str) -> str:
        """Commit of a branch, tag or commit."""
        commit = self.branches.get(revision) or self.tags.get(revision) or revision
        if commit not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def files(self, revision: str) -> dict[str, dict[str, Any]]:
        return self.commits[self.resolve(revision)]["files"]


class Store:
    """`blobs/<sha256>` and `repos/<org>--<name>.json` in a folder; nothing is kept in memory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        for name in ("blobs", "repos"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self.xet = XetStore(root / "xet", lambda sha256: self.blob_path(sha256).read_bytes(), self.put_blob)

    def blob_path(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256

    def put_blob(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        self.blob_path(sha256).write_bytes(content)
        return sha256

    def repo(self, repo_id: str) -> Repo:
        path = self._repo_path(repo_id)
        if not path.is_file():
            raise HubError(404, "Repository not found", "RepoNotFound")
        return Repo(**json.loads(path.read_text()))

    def save(self, repo: Repo) -> None:
        self._repo_path(repo.id).write_text(json.dumps(vars(repo), indent=1))

    def has(self, repo_id: str) -> bool:
        return self._repo_path(repo_id).is_file()

    def create(self, repo_id: str, *, private: bool) -> Repo:
        """A new repository; like the Hub's it starts with a commit of .gitattributes."""
        if self._repo_path(repo_id).is_file():
            raise HubError(409, "You already created this model repo")
        repo = Repo(repo_id, private)
        rules = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.commit(repo, "main", "initial commit", {".gitattributes": self.entry(rules.encode())})
        return repo

    def delete(self, repo_id: str) -> None:
        self.repo(repo_id)  # it must be there
        self._repo_path(repo_id).unlink()

    def entry(self, content: bytes) -> dict[str, Any]:
        """A file kept in git itself."""
        return {"sha256": self.put_blob(content), "size": len(content), "oid": _git_sha1(content), "lfs": None}

    def lfs_entry(self, sha256: str, size: int) -> dict[str, Any]:
        """A file kept in LFS; its git object is the pointer."""
        if not self.blob_path(sha256).is_file():
            raise HubError(400, f"LFS object {sha256} was never uploaded")
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        lfs = {"oid": sha256, "sha256": sha256, "size": size, "pointerSize": len(pointer)}  # tree says oid, info sha256
        return {"sha256": sha256, "size": size, "oid": _git_sha1(pointer), "lfs": lfs}

    def commit(self, repo: Repo, branch: str, title: str, files: dict[str, Any]) -> str:
        parent = repo.branches.get(branch)
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        record = {"title": title, "date": date, "parent": parent, "files": dict(sorted(files.items()))}
        commit = hashlib.sha1(json.dumps([repo.id, len(repo.commits), record]).encode()).hexdigest()
        repo.commits[commit] = record
        repo.branches[branch] = commit
        self.save(repo)
        return commit

    def _repo_path(self, repo_id: str) -> Path:
        return self.root / "repos" / f"{repo_id.replace('/', '--')}.json"


# ------------------------------------------------------------------------------------------------- requests, faults


@dataclass
class Request:
    """A request, as the routes see it and as the log keeps it."""

    method: str
    path: str  # still quoted, without the query
    query: dict[str, list[str]]
    headers: dict[str, str]  # names in lower case
    body: bytes
    at: str  # whose address it came to: hub, cdn or cas
    status: int = 0  # of the answer; 0 as long as there is none

    @property
    def cdn(self) -> bool:
        return self.at == "cdn"

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def token(self) -> str | None:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme == "Bearer" else None


@dataclass
class Reply:
    """An answer; `body` is JSON unless it is bytes."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Fault:
    """Something that goes wrong with the next `times` requests of `method` whose path matches `pattern`."""

    kind: str
    pattern: str
    method: str
    times: float
    value: float
    code: str
    call: Callable[[], object] | None


class Faults:
    """What goes wrong, and how often.

    The path of a large file's download is /cdn/SHA/ORG/NAME/FILE, with Xet /xorb/HASH/ORG/NAME/FILE, so that a pattern
    such as "FILE$" means both. With Xet the body is a part of a xorb: per chunk a header of 8 bytes, then its content
    (as it is in a file that came without Xet: 40,000 bytes, then 65,536 each; else perhaps compressed).

    flip      one bit of byte number `value`, or for 0 in the middle of the body, flips; length and headers stay right
    cut       the connection closes after `value` bytes of the body
    reset     the connection is reset (a RST packet) after `value` bytes of the body, once the client has them
    nolength  there is no Content-Length, and the connection closes after `value` bytes of the body: it looks whole
    norange   the request's Range is ignored: the whole body comes, with 200
    stall     the headers come, then for `value` seconds nothing, then the body
    hang      no answer ever comes; for a `value` the connection closes after as many seconds
    status    the answer is the status `value` with X-Error-Code `code`
    call      `call()` runs before the request is answered, as always: the place to let something else happen
    """

    KINDS = ("flip", "cut", "reset", "nolength", "norange", "stall", "hang", "status", "call")

    def __init__(self) -> None:
        self._active: list[Fault] = []
        self._lock = threading.Lock()

    def add(
        self,
        kind: str,
        pattern: str,
        *,
        times: float = float("inf"),
        value: float = 0,
        method: str = "GET",
        code: str = "",
        call: Callable[[], object] | None = None,
    ) -> None:
        assert kind in self.KINDS, kind
        assert (kind == "call") == (call is not None), "a call needs its function, others take none"
        with self._lock:
            self._active.append(Fault(kind, pattern, method, times, value, code, call))

    def clear(self) -> None:
        with self._lock:
            self._active.clear()

    def take(self, request: Request) -> Fault | None:
        """The first fault that applies, used up by one."""
        with self._lock:
            for fault in self._active:
                if fault.times > 0 and fault.method == request.method and re.search(fault.pattern, request.path):
                    fault.times -= 1
                    return fault
        return None


# ----------------------------------------------------------------------------------------------------------- routes


@dataclass(frozen=True)
class Route:
    method: str
    pattern: re.Pattern[str]
    answer: Callable[..., Reply]
    needs: str


ROUTES: list[Route] = []
ADDRESSES = {"read": "hub", "write": "hub", "cdn": "cdn", "cas-read": "cas", "cas-write": "cas"}  # by what is needed
GROUPS = {"REPO": "(?P<repo>[^/]+/[^/]+)", "REV": "(?P<rev>[^/]+)", "PATH": "(?P<path>.+)", "SHA": "(?P<sha>[^/]+)"}


def route(method: str, path: str, *, needs: str = "read") -> Callable[[Callable[..., Reply]], Callable[..., Reply]]:
    """Enter a function into the table. It gets the server, the request, and by name what REPO, REV, PATH, SHA matched.

    `needs` is "read" (the repository must be visible to the token), "write" (a token that may), "cdn", or for the CAS
    "cas-read" or "cas-write" (a token of Xet's own).
    """
    pattern = re.compile(re.sub("REPO|REV|PATH|SHA", lambda m: GROUPS[m[0]], path) + "$")

    def enter(answer: Callable[..., Reply]) -> Callable[..., Reply]:
        ROUTES.append(Route(method, pattern, answer, needs))
        return answer

    return enter


@route("GET", "/api/whoami-v2")
def whoami(server: HubServer, request: Request) -> Reply:
    if request.token is None:
        raise HubError(401, "Invalid username or password.")
    role = TOKENS[request.token]
    return Reply({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": role}}})


@route("POST", "/api/repos/create", needs="write")
def create_repo(server: HubServer, request: Request) -> Reply:
    wanted = request.json
    repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
    url = {"url": f"{server.url}/{repo_id}", "name": repo_id}
    try:
        server.store.create(
            repo_id, private=wanted.get("visibility") == "private" or bool(wanted.get("private"))
        )  # as the client says it since 1.33, and before
    except HubError as error:
        return Reply({**url, "error": str(error)}, status=error.status)  # the client reads the url of what exists
    return Reply(url)


@route("DELETE", "/api/repos/delete", needs="write")
def delete_repo(server: HubServer, request: Request) -> Reply:
    wanted = request.json
    server.store.delete(f"{wanted.get('organization') or 'me'}/{wanted['name']}")
    return Reply({})


@route("GET", "/api/models/REPO/auth-check")
def auth_check(server: HubServer, request: Request, repo: Repo) -> Reply:
    return Reply({})  # who may not see it does not come here


@route("GET", "/api/models/REPO/auth-check/write", needs="write")
def auth_check_write(server: HubServer, request: Request, repo: Repo) -> Reply:
    return Reply({})


CARD_ERRORS: list[dict[str, str]] = []  # what the Hub has to say against any card: tests put it there


@route("POST", "/api/validate-yaml")
def validate_yaml(server: HubServer, request: Request) -> Reply:
    return Reply({"errors": CARD_ERRORS, "warnings": []}, 400 if CARD_ERRORS else 200)


@route("POST", "/api/models/REPO/preupload/REV", needs="write")
def preupload(server: HubServer, request: Request, repo: Repo, rev: str) -> Reply:
    there = repo.files(rev)
    files = []
    for file in request.json["files"]:
        path = file["path"]
        lfs = path.endswith(LFS_SUFFIXES) or file["size"] > LFS_BYTES
        entry = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        if path in there:  # lets the client leave out what did not change
            entry["oid"] = there[path]["sha256" if there[path]["lfs"] else "oid"]
        files.append(entry)
    return Reply({"files": files})


@route("POST", "/REPO.git/info/lfs/objects/batch", needs="write")
def lfs_batch(server: HubServer, request: Request, repo: Repo) -> Reply:
    objects = []
    for item in request.json["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if not server.store.blob_path(item["oid"]).is_file():  # no actions: it is here already
            put, verify = f"{server.cdn_url}/cdn/{item['oid']}", f"{server.url}/{repo.id}.git/info/lfs/objects/verify"
            answer["actions"] = {"upload": {"href": put, "header": {}}, "verify": {"href": verify, "header": {}}}
        objects.append(answer)
    return Reply({"transfer": "basic", "objects": objects})


@route("PUT", "/cdn/SHA", needs="cdn")
def lfs_put(server: HubServer, request: Request, sha: str) -> Reply:
    if hashlib.sha256(request.body).hexdigest() != sha:
        raise HubError(400, "The content is not what its sha256 says")
    server.store.put_blob(request.body)
    return Reply({})


@route("POST", "/REPO.git/info/lfs/objects/verify", needs="write")
def lfs_verify(server: HubServer, request: Request, repo: Repo) -> Reply:
    path = server.store.blob_path(request.json["oid"])
    if not path.is_file() or path.stat().st_size != request.json["size"]:
        raise HubError(404, "Not uploaded, or with another size")
    return Reply({})


@route("POST", "/api/models/REPO/commit/REV", needs="write")
def commit(server: HubServer, request: Request, repo: Repo, rev: str) -> Reply:
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if rev not in repo.branches:
        raise HubError(404, f"No such branch: {rev}", "RevisionNotFound")
    if header.get("parentCommit") not in (None, repo.branches[rev]):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(repo.files(rev))
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = server.store.entry(base64.b64decode(value["content"]))
        elif line["key"] == "lfsFile":
            files[value["path"]] = server.store.lfs_entry(value["oid"], value["size"])
        elif line["key"] == "deletedFile":
            del files[value["path"]]
        elif line["key"] != "header":
            raise HubError(400, f"This server does not know the operation {line['key']!r}")
    oid = server.store.commit(repo, rev, header["summary"], files)
    return Reply({"success": True, "commitOid": oid, "commitUrl": f"{server.url}/{repo.id}/commit/{oid}"})


@route("GET", "/api/models/REPO")
@route("GET", "/api/models/REPO/revision/REV")
def model_info(server: HubServer, request: Request, repo: Repo, rev: str = "main") -> Reply:
    sha = repo.resolve(rev)
    siblings = []
    for path, file in repo.files(sha).items():
        facts = {"size": file["size"], "blobId": file["oid"], **({"lfs": file["lfs"]} if file["lfs"] else {})}
        siblings.append({"rfilename": path, **(facts if request.query.get("blobs") else {})})
    date = repo.commits[sha]["date"]
    info = {"id": repo.id, "modelId": repo.id, "sha": sha, "lastModified": date, "private": repo.private}
    return Reply(
        {**info, "gated": "auto" if repo.gated else False, "disabled": False, "tags": [], "siblings": siblings}
    )


def _tree_entry(server: HubServer, path: str, file: dict[str, Any] | None) -> dict[str, Any]:
    """A file, or for None a folder, as tree and paths-info list it."""
    if file is None:
        return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
    entry = {"type": "file", "path": path, "size": file["size"], "oid": file["oid"]}
    if file["lfs"] and server.xet:
        entry["xetHash"] = server.store.xet.hash_of(file["sha256"])
    return {**entry, "lfs": file["lfs"]} if file["lfs"] else entry


@route("GET", "/api/models/REPO/tree/REV")
@route("GET", "/api/models/REPO/tree/REV/PATH")
def tree(server: HubServer, request: Request, repo: Repo, rev: str, path: str = "") -> Reply:
    prefix = f"{path.rstrip('/')}/" if path else ""
    entries: dict[str, dict[str, Any] | None] = {}
    for name, file in repo.files(rev).items():
        if name.startswith(prefix):
            parts = name[len(prefix) :].split("/")
            entries |= {prefix + "/".join(parts[:depth]): None for depth in range(1, len(parts))}
            entries[name] = file
    if prefix and not entries:
        raise HubError(404, f"{path} does not exist on {rev}", "EntryNotFound")
    deep = request.query.get("recursive", ["false"])[0].lower() == "true"
    shown = {name: file for name, file in entries.items() if deep or "/" not in name[len(prefix) :]}
    return Reply([_tree_entry(server, name, file) for name, file in shown.items()])


@route("POST", "/api/models/REPO/paths-info/REV")
def paths_info(server: HubServer, request: Request, repo: Repo, rev: str) -> Reply:
    files = repo.files(rev)
    paths = parse_qs(request.body.decode()).get("paths", [])
    return Reply([_tree_entry(server, path, files[path]) for path in paths if path in files])


@route("POST", "/api/models/REPO/tag/REV", needs="write")
def create_tag(server: HubServer, request: Request, repo: Repo, rev: str) -> Reply:
    tag = request.json["tag"]
    if tag in repo.tags:
        raise HubError(409, f"Tag {tag} exists")
    repo.tags[tag] = repo.resolve(rev)
    server.store.save(repo)
    return Reply({})


@route("GET", "/api/models/REPO/refs")
def refs(server: HubServer, request: Request, repo: Repo) -> Reply:
    def listed(names: dict[str, str], kind: str) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": commit} for n, commit in names.items()]

    return Reply({"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags"), "converts": []})


@route("GET", "/REPO/resolve/REV/PATH")  # HEAD is answered as GET, without the body
def resolve(server: HubServer, request: Request, repo: Repo, rev: str, path: str) -> Reply:
    sha = repo.resolve(rev)
    file = repo.files(sha).get(path)
    headers = {"X-Repo-Commit": sha}
    if file is None:
        raise HubError(404, f"{path} does not exist on {rev}", "EntryNotFound", headers)
    if not file["lfs"]:
        content = server.store.blob_path(file["sha256"]).read_bytes()
        return _ranged(request, content, {**headers, "ETag": f'"{file["oid"]}"'})
    location = f"{server.cdn_url}/cdn/{file['sha256']}/{repo.id}/{quote(path)}"
    linked = {"X-Linked-Etag": f'"{file["sha256"]}"', "X-Linked-Size": str(file["size"])}
    if server.xet:
        linked["X-Xet-Hash"] = server.store.xet.hash_of(file["sha256"])
        linked["Link"] = f'<{server.url}/api/models/{repo.id}/xet-read-token/{sha}>; rel="xet-auth"'
    return Reply(b"", 302, {**headers, **linked, "Location": location})


@route("GET", "/cdn/SHA/PATH", needs="cdn")
def download(server: HubServer, request: Request, sha: str, path: str) -> Reply:
    return _ranged(request, server.store.blob_path(sha).read_bytes(), {"ETag": f'"{sha}"'})


def _ranged(request: Request, content: bytes, headers: dict[str, str]) -> Reply:
    wanted = _range(request)
    if not wanted:
        return Reply(content, 200, headers)
    start, end = wanted[0], min(wanted[1], len(content))
    if start >= end:
        raise HubError(416, "Nothing there", headers={"Content-Range": f"bytes */{len(content)}"})
    span = f"bytes {start}-{end - 1}/{len(content)}"
    return Reply(content[start:end], 206, {**headers, "Content-Range": span})


def _range(request: Request) -> tuple[int, int] | None:
    """First byte that is wanted and the byte after the last one."""
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    return (int(wanted[1]), int(wanted[2]) + 1 if wanted[2] else 1 << 62) if wanted else None


# -------------------------------------------------------------------------------------------------------------- Xet


@route("GET", "/api/models/REPO/xet-read-token/REV")
def xet_read_token(server: HubServer, request: Request, repo: Repo, rev: str) -> Reply:
    return _xet_token(server, "read", repo, rev)


@route("GET", "/api/models/REPO/xet-write-token/REV", needs="write")
def xet_write_token(server: HubServer, request: Request, repo: Repo, rev: str) -> Reply:
    return _xet_token(server, "write", repo, rev)


def _xet_token(server: HubServer, scope: str, repo: Repo, rev: str) -> Reply:
    """Leave for the CAS. The token says what it is for, by which the CAS can name a file as the repository does."""
    if not server.xet:
        raise HubError(404, "This server has no Xet")
    token, expires = f"xet-{scope}:{repo.id}:{repo.resolve(rev)}", int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": server.cas_url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
    return Reply({"casUrl": server.cas_url, "accessToken": token, "exp": expires}, headers=headers)


@route("POST", "/v1/xorb-grants/default/SHA", needs="cas-write")
def xorb_grant(server: HubServer, request: Request, sha: str) -> Reply:
    if server.store.xet.xorb_path(sha).is_file():
        return Reply({})  # 200: it is here, nothing need be sent
    raise HubError(404, "No grants here")  # upon which the client posts to /v1/xorbs


@route("POST", "/v1/xorbs/default/SHA", needs="cas-write")
def put_xorb(server: HubServer, request: Request, sha: str) -> Reply:
    return Reply({"was_inserted": server.store.xet.put_xorb(sha, request.body)})


@route("POST", "/v1/shards", needs="cas-write")
def put_shard(server: HubServer, request: Request) -> Reply:
    server.store.xet.put_shard(request.body)
    return Reply({"result": 1})


@route("GET", "/v1/reconstructions/SHA", needs="cas-read")
def reconstruction(server: HubServer, request: Request, sha: str) -> Reply:
    file = server.store.xet.file(sha)
    if file is None:
        raise HubError(404, "No such file")
    _, repo_id, commit = (request.token or "").split(":")
    files = server.store.repo(repo_id).files(commit)
    path = next((path for path, entry in files.items() if entry["sha256"] == file["sha256"]), "unknown")
    start, end = _range(request) or (0, 1 << 62)
    answer = server.store.xet.reconstruction(
        sha, start, end, lambda xorb: f"{server.cdn_url}/xorb/{xorb}/{repo_id}/{quote(path)}"
    )
    if answer is None:
        raise HubError(416, "The file ends before")
    return Reply(answer)


@route("GET", "/xorb/SHA/PATH", needs="cdn")
def get_xorb(server: HubServer, request: Request, sha: str, path: str) -> Reply:
    return _ranged(request, server.store.xet.xorb_path(sha).read_bytes(), {})


# ----------------------------------------------------------------------------------------------------------- server


class HubServer:
    """The Hub, its CDN and if wanted Xet's CAS on loopback, in threads, while the `with` block lasts.

    `cas_url` is what clients are told: where nothing listens, the CAS refuses connections.
    """

    def __init__(self, root: Path | str, *, port: int = 0, xet: bool = False) -> None:
        self.store = Store(Path(root))
        self.faults = Faults()
        self.log: list[Request] = []  # in the order of arrival
        self.closing = threading.Event()
        self.xet = xet
        self._listeners = {
            "hub": _Listener(("127.0.0.1", port), self),
            "cdn": _Listener(("127.0.0.2", 0), self),
            **({"cas": _Listener(("127.0.0.3", 0), self)} if xet else {}),
        }
        urls = {at: "http://{}:{}".format(*listener.server_address) for at, listener in self._listeners.items()}
        self.url, self.cdn_url, self.cas_url = urls["hub"], urls["cdn"], urls.get("cas", "")

    def __enter__(self) -> HubServer:
        for listener in self._listeners.values():
            threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()  # wakes what stalls or hangs
        for listener in self._listeners.values():
            listener.shutdown()
            listener.server_close()

    def at(self, listener: _Listener) -> str:
        return next(at for at, own in self._listeners.items() if own is listener)

    def set_private(self, repo_id: str, private: bool = True) -> None:
        with self.store.lock:
            repo = self.store.repo(repo_id)
            repo.private = private
            self.store.save(repo)

    def set_gated(self, repo_id: str, gated: bool = True) -> None:
        """Only its owner, whose is the write token, has been let in."""
        with self.store.lock:
            repo = self.store.repo(repo_id)
            repo.gated = gated
            self.store.save(repo)

    def answer(self, request: Request, fault: Fault | None) -> Reply:
        """The reply to a request: the fault's, the route's, or an error's."""
        try:
            if fault and fault.kind == "status":
                raise HubError(int(fault.value), "This fault was asked for", fault.code)
            if fault and fault.kind == "norange":
                request = replace(request, headers={**request.headers, "range": ""})
            return self._dispatch(request)
        except XetError as error:
            return Reply({"error": str(error)}, 400)
        except HubError as error:
            headers = {"X-Error-Message": str(error), **({"X-Error-Code": error.code} if error.code else {})}
            return Reply({"error": str(error)}, error.status, {**headers, **error.headers})

    def _dispatch(self, request: Request) -> Reply:
        method = "GET" if request.method == "HEAD" else request.method
        for entry in ROUTES:
            match = entry.pattern.match(request.path)
            if match and entry.method == method and request.at == ADDRESSES[entry.needs]:
                found: dict[str, Any] = {name: unquote(text) for name, text in match.groupdict().items()}
                self._authorize(request, entry.needs)
                with self.store.lock:
                    if "repo" in found:
                        found["repo"] = self._visible(found["repo"], request.token)
                    return entry.answer(self, request, **found)
        raise HubError(404, f"No route for {request.method} {request.path}")

    def _authorize(self, request: Request, needs: str) -> None:
        if needs == "cdn":
            if "authorization" in request.headers:
                raise HubError(400, "A token was sent to the CDN")
        elif needs in ("cas-read", "cas-write"):
            scope = (request.token or "").partition(":")[0]
            if scope not in ("xet-read", "xet-write"):
                raise HubError(401, "Not a token of Xet's")
            if needs == "cas-write" and scope != "xet-write":
                raise HubError(403, "This token may only read")
        elif request.token is not None and request.token not in TOKENS:
            raise HubError(401, "Invalid credentials in Authorization header")
        elif needs == "write" and request.token is None:
            raise HubError(401, "Invalid username or password.")
        elif needs == "write" and TOKENS[request.token or ""] != "write":
            raise HubError(403, "This token may only read")

    def _visible(self, repo_id: str, token: str | None) -> Repo:
        """The repository; without a token a private one looks as if it were missing, a gated one is shut."""
        repo = self.store.repo(repo_id)
        if repo.private and token is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if repo.gated and TOKENS.get(token or "") != "write":
            raise HubError(403, f"Access to model {repo_id} is restricted: ask for it on its page", "GatedRepo")
        return repo


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # idle keep-alive connections of clients would hold the close up

    def __init__(self, address: tuple[str, int], server: HubServer) -> None:
        super().__init__(address, _Handler)
        self.hub = server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: without this each answer waits 40 ms
    server: _Listener

    def handle_any(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        request = Request(self.command, url.path, parse_qs(url.query), headers, body, hub.at(self.server))
        hub.log.append(request)
        fault = hub.faults.take(request)
        kind = fault.kind if fault else ""
        if kind == "hang" and fault:
            hub.closing.wait(fault.value or None)
            self.close_connection = True
            return
        if fault and fault.call:
            fault.call()
        reply = hub.answer(request, fault)
        request.status = reply.status
        with suppress(ConnectionError):  # the client may hang up, above all when it is killed on purpose
            self._send(reply, kind, fault.value if fault else 0)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _send(self, reply: Reply, kind: str, value: float) -> None:
        content = reply.content()
        length = {"Connection": "close"} if kind == "nolength" else {"Content-Length": str(len(content))}
        self.send_response(reply.status)
        for name, text in {**reply.headers, **length}.items():
            self.send_header(name, text)
        self.end_headers()
        if kind == "stall":
            self.server.hub.closing.wait(value)
        if kind == "flip" and content:
            place = min(int(value), len(content) - 1) or len(content) // 2
            content = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        if kind in ("cut", "reset", "nolength"):
            content = content[: int(value)]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(content)
        if kind == "reset":
            self._reset()

    def _reset(self) -> None:
        """Reset the connection once the client's side has what was written: a RST throws away what is on the way."""
        for _ in range(200):
            if not struct.unpack("i", fcntl.ioctl(self.connection, termios.TIOCOUTQ, b"\0" * 4))[0]:
                break
            time.sleep(0.01)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()  # it holds the socket open too
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Silent: `HubServer.log` is the log."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the store")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--xet", action="store_true", help="offer Xet as well")
    arguments = parser.parse_args()
    with HubServer(arguments.root, port=arguments.port, xet=arguments.xet) as server:
        disable = "" if arguments.xet else " HF_HUB_DISABLE_XET=1"
        print(f"export HF_ENDPOINT={server.url}{disable} HF_TOKEN={WRITE_TOKEN}", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
