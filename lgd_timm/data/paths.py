"""Paths of shards and stored embeddings: a folder on this disk, or an address on a server.

An address is `scheme://...`: `https://host/folder`, `hf://datasets/ORG/NAME[@REVISION]/folder`, `s3://bucket/folder`,
or any other scheme that fsspec knows. It is never a `Path`, which would make one slash of two. It carries no
credentials, which would end up in logs, recipes and process lists: those belong in the environment, or in the
configuration of the library that reads the address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import ShardError

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # of two letters at least: C:// is a drive
_COLLAPSED = re.compile(r"(https?|hf|s3|gs):/(?!/)")  # what a Path makes of an address
_NO_SECRETS = (
    "Credentials come from the environment or the library's own settings: "
    "HF_TOKEN or `hf auth login` for hf://, AWS_* for s3://."
)


@dataclass(frozen=True)
class RemotePath:
    """A folder or a file on a server, with what is used of `Path`'s interface here: `/`, `resolve`, `str`."""

    url: str

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    def resolve(self) -> RemotePath:
        return self

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def server(self) -> str:
        """Scheme and host, bucket or the like."""
        return "/".join(self.url.split("/", 3)[:3])


AnyPath = Path | RemotePath


def is_address(text: str) -> bool:
    """Tell whether a text begins with `scheme://`."""
    return _ADDRESS.match(text) is not None


def resolve_path(path: str | AnyPath) -> AnyPath:
    """Turn a text into a RemotePath if it is an address, else into a Path.

    Raises:
        ShardError: the address is malformed, or carries credentials, a query or a fragment.
    """
    if isinstance(path, RemotePath):
        return path
    text = str(path)
    if _COLLAPSED.match(text):
        raise ShardError(f"{text!r} has lost a slash, as an address does in a Path. Give it as text, with '://'.")
    return _parse_address(text) if is_address(text) else Path(path)


def require_local(path: str | AnyPath, *, what: str) -> Path:
    """Refuse an address where a folder on this disk is needed; `what` names it in the message. Raises: ShardError."""
    resolved = resolve_path(path)
    if isinstance(resolved, RemotePath):
        raise ShardError(
            f"{what} {resolved} is an address, and only shards and embeddings are read from one. "
            "Give a folder on this disk."
        )
    return resolved


def _parse_address(text: str) -> RemotePath:
    scheme, rest = text.split("://", 1)
    scheme = scheme.lower()
    if "::" in re.sub(r"\[[^]]*\]", "", rest):  # in brackets it is an IPv6 host
        raise ShardError(f"{scheme}://... chains addresses. Give that of the folder alone.")
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        _ = parts.port, (parts.hostname or "").encode("idna")  # raise here, not in the middle of a request
    except ValueError:  # its text may show a password
        raise ShardError(
            f"{scheme}://... is no address: its host or port can't be read. Write scheme://host/folder."
        ) from None
    bare = f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if "@" in parts.netloc:
        raise ShardError(
            f"{bare} was given with a user or a password, which logs and recipes would show. Leave it out. "
            f"{_NO_SECRETS}"
        )
    if parts.query or parts.fragment or rest.endswith(("?", "#")):
        raise ShardError(
            f"{bare} was given with a query (?...) or a fragment (#...). Give a folder's address alone. {_NO_SECRETS}"
        )
    if scheme in ("file", "local"):
        raise ShardError(f"{bare} is on this disk. Give it as a path, without {scheme}://.")
    if scheme == "hub":
        raise ShardError(
            f"{bare} names a published recipe or weight. Shards on the Hub are at hf://datasets/ORG/NAME/FOLDER."
        )
    if not parts.netloc or not bare.isprintable():
        raise ShardError(f"{bare!r} is no address of a folder. Write {scheme}://host/folder.")
    return RemotePath(bare.rstrip("/"))
