"""Shards that lie elsewhere. Each is fetched whole, once, into a cache, and read there like any other.

`<LGD_TIMM_CACHE>/shards/<sha256>.tar`: the name says what the content is, so it serves from wherever it comes, and a set that grows
takes what is new. A file has that name only when its sha256 was right. Processes that want the same one wait for the first.

Where a server doesn't give a shard, it is asked again for `settings.shard_patience()`; then the shard's samples are bad samples, which
`data.max_bad` allows or not. Meanwhile nobody waits for it anew: it is asked for again after `AGAIN_AFTER` seconds, and what else that
server has is asked for once only.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path

from filelock import Timeout
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import WeakFileLock

from .. import settings
from ..errors import CacheError, ShardError
from ..utils.files import atomic_file, write_json
from ..utils.http import PAUSES, Download, Retry, Truncated, is_transient
from .paths import Place, RemotePath
from .storage import Refused, source_of

log = logging.getLogger(__name__)

AGAIN_AFTER = 60.0  # seconds for which a failure is remembered
LARGEST_INDEX = 1 << 26  # bytes


def read_small(where: Place) -> bytes:
    """The content of an index. Raises: ShardError where an address doesn't give it; OSError."""
    if isinstance(where, Path):
        return where.read_bytes()
    content = io.BytesIO()
    part = Download(content, digest=hashlib.sha256, max_size=LARGEST_INDEX)
    source = source_of(where)
    with _explained(where):
        part.run(source, retry=lambda: Retry(settings.hub_patience()))
    if part.size > LARGEST_INDEX:
        raise ShardError(f"{where} is no index of shards: it has more than {LARGEST_INDEX} bytes. Check the address.")
    return content.getvalue()


def local_file(where: Place, *, sha256: str | None) -> Path:
    """Where a file is on this disk: a path is, and what an address names is fetched, if its content is not in the cache.

    Raises: ShardError where it can't be had, at once if that was so a moment ago; CacheError where it can't be kept.
    """
    if isinstance(where, Path):
        return where
    if sha256 is None:
        raise ShardError(
            f"{where} has no sha256 in its index, by which it would be trusted. Download the folder and give its path."
        )
    path = settings.cache_folder() / "shards" / f"{sha256}.tar"
    if path.is_file():
        return path
    if failure := _lately(sha256):
        raise ShardError(failure.reason)
    with _on_this_disk(path), _alone(path, where) as since:
        if not path.is_file():
            _fetch(where, path, sha256, since=since)
    return path


def check_sums(where: Place, sums: tuple[str, ...], *, count: int) -> None:
    """Raises: ShardError for an index on a server without the sums by which what comes from there is known to be right."""
    if isinstance(where, RemotePath) and (
        len(sums) != count or not all(re.fullmatch("[0-9a-f]{64}", str(total)) for total in sums)
    ):
        raise ShardError(
            f"{where} has no sha256 sums of its tars, as those of other writers, and over the network nothing is used unverified. "
            "Download the folder and give its path, or write the shards with lgd-timm shards write."
        )


# ---------------------------------------------------------------------------------------------------------------- fetching


def _fetch(address: RemotePath, path: Path, sha256: str, *, since: float) -> None:
    """Download to `path`, unless another process has failed to since this one began to wait for it."""
    note = path.parent / ".locks" / f"{sha256}.json"
    if (failure := _read_failure(note)) and failure.at >= since:
        _remember(failure, address, sha256)
        raise ShardError(failure.reason)
    start = time.monotonic()
    try:
        size = _download(address, path, sha256)
    except ShardError as error:
        failure = _Failure(time.time(), str(error), outage=isinstance(error, _Outage))
        _remember(failure, address, sha256)
        write_json(note, asdict(failure))
        raise ShardError(failure.reason) from None
    note.unlink(missing_ok=True)
    log.info("fetched %s: %.1f MB in %.1f s", address, size / 1e6, time.monotonic() - start)


def _download(address: RemotePath, path: Path, sha256: str) -> int:
    """A file that is wrong is fetched once more, past all caches on the way, then refused. Returns its size."""
    for fresh in (False, True):
        with suppress(_Altered), atomic_file(path) as temporary:
            with temporary.open("wb") as file:
                part = Download(file, digest=hashlib.sha256)
                source = source_of(address, fresh=fresh)
                with _explained(address):
                    part.run(source, retry=lambda: _patience(address))
            if part.hexdigest != sha256:
                raise _Altered  # and `atomic_file` removes it
            return part.size
    raise ShardError(
        f"{address} should have sha256 {sha256}, but what comes has {part.hexdigest}, also when fetched again. Either it is another file "
        "than its index says, or something on the way alters it: copy shards and index there again, or try another network."
    )


def _patience(address: RemotePath) -> Retry:
    return Retry(0 if _lately(address.server) else settings.shard_patience(), pauses=_pauses())


def _pauses() -> Iterator[float]:
    """Without end, as it is time that counts."""
    return chain(PAUSES, repeat(PAUSES[-1]))


class _Altered(Exception):
    """The content is not what its sum says."""


class _Outage(ShardError):
    """The server gives no answer, or none but that it is in trouble: no fault of this file's alone."""


@contextmanager
def _alone(path: Path, address: RemotePath) -> Iterator[float]:
    """Keep other processes from fetching the same, and clear away what killed ones left half-written. Yields when the wait began."""
    locks, since, seconds = path.parent / ".locks", time.time(), settings.lock_timeout()
    locks.mkdir(parents=True, exist_ok=True)
    try:
        with WeakFileLock(locks / f"{path.stem}.lock", timeout=seconds):
            for stale in path.parent.glob(f".{path.name}.*"):  # as `atomic_file` names them
                stale.unlink(missing_ok=True)
            yield since
    except Timeout as error:
        reason = f"another process has been fetching it to {path} for {seconds:g} s (LGD_TIMM_LOCK_TIMEOUT). Wait for it, or end it."
        failure = _Failure(time.time(), f"{address} can't be had: {reason}", outage=False)
        _remember(failure, address, path.stem)
        raise ShardError(failure.reason) from error


# ---------------------------------------------------------------------------------------------------------------- failures


@dataclass(frozen=True)
class _Failure:
    at: float  # time.time()
    reason: str
    outage: bool  # of the server


_failures: dict[str, _Failure] = {}  # by sha256, and by server; of this process


def _lately(key: str) -> _Failure | None:
    failure = _failures.get(key)
    return failure if failure is not None and 0 <= time.time() - failure.at < AGAIN_AFTER else None


def _remember(failure: _Failure, address: RemotePath, sha256: str) -> None:
    _failures[sha256] = failure
    if failure.outage:
        _failures[address.server] = failure


def _read_failure(note: Path) -> _Failure | None:
    try:
        return _Failure(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or not of this version: then it is tried
        return None


@contextmanager
def _on_this_disk(path: Path) -> Iterator[None]:
    """What goes wrong in here with files is the cache's fault, the network's having been explained within."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        raise CacheError(
            f"{path} can't be written: {reason}. Free some space, or set LGD_TIMM_CACHE to a folder on another disk."
        ) from error


@contextmanager
def _explained(address: RemotePath) -> Iterator[None]:
    """Turn a failure to read into a ShardError with value, reason and what to do.

    Without its cause: that one shows the addresses that a server redirects to, in whose queries there may be signatures.
    """
    try:
        yield
    except (HTTPError, Truncated, Refused, OfflineModeIsEnabled) as error:
        kind = _Outage if is_transient(error) else ShardError
        raise kind(f"{address} can't be had: {_reason(error, address)}") from None


def _reason(error: Exception, address: RemotePath) -> str:
    if isinstance(error, Refused):
        return _without_queries(error)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 404:
        return "the server says 404, no such file. Check the address; the folder may be incomplete."
    if status in (401, 403):
        advice = (
            "Log in with `hf auth login` or HF_TOKEN."
            if address.scheme == "hf"
            else "Private shards are read over hf:// or s3://."
        )
        return f"the server says {status}, not for you. {advice}"
    if status is not None:
        return f"the server says {status}. Try again later."
    detail = "" if isinstance(error, Truncated) else f"{type(error).__name__}: "
    return f"no answer ({detail}{_without_queries(error)}). Check the network, a proxy, the server."


def _without_queries(error: Exception) -> str:
    return re.sub(r"\?\S+", "?...", " ".join(str(error).split()))
