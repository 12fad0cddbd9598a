"""One file from the Hub into the cache, verified before it has a name there.

The Hub's client is asked for everything but this. Its own downloads were measured (shared/reference/hub.md, section 3): they keep
a flipped byte, over HTTP and Xet alike, give up on a reset, and wait up to 223 s. Here the hash is computed while the bytes come,
so that verification costs no second reading, and a wrong file never gets into the cache, where other libraries would find it.
Addresses, sessions, tokens and errors are the client's.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from .. import settings
from ..errors import WeightsError
from ..verify import FileFacts, git_digest, hash_of
from .remote import OTHER_WAY, Cut, Patience, Snapshot, explained

BATCH = 1 << 20  # bytes that are hashed together, as to hand them over costs time too
PROGRESS = 1 << 17  # bytes that must have come between two failures for the second to count as a first

Progress = Callable[[int], object]  # told how many bytes came; fewer than none when some have to come again


def download(name: str, snapshot: Snapshot, blobs: Path, *, token: str | None, progress: Progress) -> Path:
    """Fetch a file of a snapshot as `blobs/HASH`. A wrong one is fetched once more, past all caches on the way, then refused.

    Raises: WeightsError; nothing half-written stays.
    """
    facts = snapshot.files[name]
    digest = hash_of(facts)[1]
    url = hf_hub_url(snapshot.repo_id, name, revision=snapshot.commit, endpoint=constants.ENDPOINT)
    headers = {
        **build_hf_headers(token=token, library_name="lgd_timm"),
        "Accept-Encoding": "identity",  # bytes as they are stored, so that a broken download can go on at any of them
    }
    blobs.mkdir(parents=True, exist_ok=True)
    found = ""
    for again in ({}, {"Cache-Control": "no-cache"}):
        path = blobs / f"{digest}.{secrets.token_hex(4)}.incomplete"
        try:
            with explained(snapshot.repo_id, snapshot.commit), path.open("wb") as file:
                part = _Part(file, facts, progress)
                part.receive(url, {**headers, **again})
            if not (found := part.difference()):
                blob = blobs / digest
                os.replace(path, blob)
                return blob
        finally:
            path.unlink(missing_ok=True)
        progress(-part.size)
    raise WeightsError(
        f"{snapshot.repo_id} at {snapshot.commit}: {name} {found}, also when fetched again; it was deleted. "
        f"Something between {constants.ENDPOINT} and here alters it. Try another network. {OTHER_WAY}"
    )


class _Part:
    """A file that is coming, and the hash of what is there."""

    def __init__(self, file: BinaryIO, facts: FileFacts, progress: Progress) -> None:
        self._file, self._facts, self._progress = file, facts, progress
        self._beside = ThreadPoolExecutor(max_workers=1)  # hashes while we wait for the next bytes
        self._start()

    def _start(self) -> None:
        self.size = self._hashed = 0
        self._chunks: list[bytes] = []
        self._digest = _new_digest(self._facts)

    def difference(self) -> str:
        """How what came differs from what was published, in words; nothing when it does not."""
        size, (kind, digest) = self._facts["size"], hash_of(self._facts)
        expected = f"{size} bytes with {kind} {digest}"
        found = f"{'more than ' if self.size > size else ''}{self.size} bytes with {kind} {self._digest.hexdigest()}"
        return "" if found == expected else f"should have {expected}, but there is {found}"

    def receive(self, url: str, headers: dict[str, str]) -> None:
        """Fetch until it is whole. Where the connection breaks it goes on, as long as something comes."""
        try:
            self._receive(url, headers)
        finally:
            self._hash()
            self._beside.shutdown()

    def _receive(self, url: str, headers: dict[str, str]) -> None:
        patience, since = Patience(settings.hub_patience()), 0
        while True:
            try:
                self._stream(url, headers)
                return
            except (HTTPError, Cut) as error:
                if self.size - since >= PROGRESS:
                    patience, since = Patience(settings.hub_patience()), self.size
                if not patience.again(error):
                    raise

    def _stream(self, url: str, headers: dict[str, str]) -> None:
        """One request, for the rest. Raises: Cut when it ends early and nothing says so."""
        rest = {"Range": f"bytes={self.size}-"} if self.size else {}
        with get_session().stream("GET", url, headers={**headers, **rest}, timeout=settings.hub_timeout()) as response:
            if response.status_code == 416:  # there is no more: the file there is shorter than the one published
                return
            if response.status_code >= 400:
                response.read()
                hf_raise_for_status(response)
            if self.size and not response.headers.get("content-range", "").startswith(f"bytes {self.size}-"):
                self._restart()
            for chunk in response.iter_bytes():  # as they come: what was received before a break is kept
                self._write(chunk)
                if self.size > self._facts["size"]:
                    return
            if self.size < self._facts["size"] and "content-length" not in response.headers:
                raise Cut(f"{url} ended after {self.size} of {self._facts['size']} bytes")

    def _write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._chunks.append(chunk)
        self.size += len(chunk)
        self._progress(len(chunk))
        if self.size - self._hashed > BATCH:
            self._hash()

    def _hash(self) -> None:
        self._beside.submit(_update, self._digest, self._chunks)
        self._hashed, self._chunks = self.size, []

    def _restart(self) -> None:
        self._progress(-self.size)
        self._file.seek(0)
        self._file.truncate()
        self._start()


def _new_digest(facts: FileFacts) -> Any:
    if hash_of(facts)[0] == "sha256":
        return hashlib.sha256()
    return git_digest(facts["size"])


def _update(digest: Any, chunks: list[bytes]) -> None:
    for chunk in chunks:
        digest.update(chunk)
