"""Fetch shards from a server into a cache, each whole and once; from there they are read like local ones.

The file is `<LGD_TIMM_CACHE>/shards/<sha256>.tar`. The name is the content's sha256, so one file serves every address
of the same content, and of a set that grows only the new shards are fetched. A file gets its name only after its sha256
was verified. Processes that need the same shard wait for the one that fetches it.

A request that fails is repeated for `settings.shard_patience()` seconds. Then the shard's samples count as bad samples,
of which `data.max_bad` allows so many. For the next `RETRY_AFTER` seconds the shard fails at once, and, if the server
itself was unreachable, each of its other shards is requested only once.
"""

from __future__ import annotations

import errno
import hashlib
import io
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
from ..utils.files import atomic_file, sha256_of, write_json
from ..utils.http import PAUSES, Download, Retry, Truncated, is_transient
from ..utils.typed_json import JSONError, read_json
from .paths import AnyPath, RemotePath
from .storage import Refused, source_of

log = logging.getLogger(__name__)

RETRY_AFTER = 60.0  # seconds for which a failure is remembered
LARGEST_INDEX = 1 << 26  # bytes
LARGEST_SHARD = 1 << 34  # bytes


def read_small(path: AnyPath) -> bytes:
    """Read an index file. Raises: ShardError where the server does not give it, OSError of this disk."""
    if isinstance(path, Path):
        return path.read_bytes()
    content = io.BytesIO()
    download = Download(content, digest=hashlib.sha256, max_size=LARGEST_INDEX)
    source = source_of(path)
    with _as_shard_error(path):
        download.run(source, retry=lambda: Retry(settings.hub_patience()))
    if download.size > LARGEST_INDEX:
        raise ShardError(f"{path} is no index of shards: it has more than {LARGEST_INDEX} bytes. Check the address.")
    return content.getvalue()


def local_file(path: AnyPath, *, sha256: str | None) -> Path:
    """Return a file's path on this disk; one at an address is fetched unless its content is in the cache.

    Args:
        path: of the file.
        sha256: of its content, 64 hexadecimal digits; needed for an address.

    Raises:
        ShardError: the file can't be fetched. For `RETRY_AFTER` seconds after a failure this is raised at once.
        CacheError: it can't be written to the cache.
    """
    if isinstance(path, Path):
        return path
    if sha256 is None:
        raise ShardError(
            f"{path} has no sha256 in its index, by which it would be trusted. Download the folder and give its path."
        )
    cached = settings.cache_folder() / "shards" / f"{sha256}.tar"
    if _is_whole(cached, sha256):
        return cached
    if failure := _recent_failure(sha256):
        raise ShardError(failure.reason)
    with _as_cache_error(cached), _locked(cached, path) as since:
        if not _is_whole(cached, sha256):
            if cached.is_file():
                log.warning("%s went wrong in the cache (its sha256 is another one): it is fetched again", cached)
                cached.unlink()
            _fetch(path, cached, sha256, since=since)
            _stamp(cached)
    return cached


def _is_whole(cached: Path, sha256: str) -> bool:
    """Whether a file of the cache has its sha256. It is read where it changed since it was found right."""
    if not cached.is_file():
        return False
    if _read_stamp(cached) == _state(cached):
        return True
    if sha256_of(cached) != sha256:
        return False
    _stamp(cached)
    return True


def _state(cached: Path) -> list[int]:
    """What changes with every write: size, inode, times of change."""
    stat = cached.stat()
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _stamp_path(cached: Path) -> Path:
    return cached.parent / ".locks" / f"{cached.stem}.right.json"


def _stamp(cached: Path) -> None:
    """Note that a file was found right in its present state."""
    with suppress(OSError):  # a cache that can't be written costs time, not correctness
        write_json(_stamp_path(cached), _state(cached))


def _read_stamp(cached: Path) -> list[int] | None:
    try:
        state: list[int] = read_json(_stamp_path(cached), list[int])
    except (OSError, JSONError):
        return None
    return state


def check_sums(path: AnyPath, sums: tuple[str, ...], *, count: int) -> None:
    """Refuse a server's index without a sha256 sum for each of its `count` tars. Raises: ShardError."""
    if isinstance(path, RemotePath) and (
        len(sums) != count or not all(re.fullmatch("[0-9a-f]{64}", str(total)) for total in sums)
    ):
        raise ShardError(
            f"{path} has no sha256 sums of its tars, as those of other writers, and over the network nothing is used "
            "unverified. Download the folder and give its path, or write the shards with lgd-timm shards write."
        )


# ------------------------------------------------------------------------------------------------------------- fetching


def _fetch(address: RemotePath, path: Path, sha256: str, *, since: float) -> None:
    """Download to `path`, unless another process failed to after `since` (time.time()), when the wait began."""
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
    """Download and verify a file; a wrong one is fetched once more, past HTTP caches. Returns its size in bytes."""
    for fresh in (False, True):
        with suppress(_WrongContent), atomic_file(path) as temporary:
            with temporary.open("wb") as file:
                download = Download(file, digest=hashlib.sha256, max_size=LARGEST_SHARD)
                source = source_of(address, fresh=fresh)
                with _as_shard_error(address):
                    download.run(source, retry=lambda: _retry(address))
            if download.size > LARGEST_SHARD:
                raise ShardError(
                    f"{address} has more than {LARGEST_SHARD} bytes, the most of a shard. Write smaller ones."
                )
            if download.hexdigest != sha256:
                raise _WrongContent  # `atomic_file` removes the file
            return download.size
    raise ShardError(
        f"{address} should have sha256 {sha256}, but what comes has {download.hexdigest}, also when fetched again. "
        "Either it is another file than its index says, or something on the way alters it: copy shards and index there "
        "again, or try another network."
    )


def _retry(address: RemotePath) -> Retry:
    """Retry without a limit of attempts, for `settings.shard_patience()` seconds; not at all if the server is down."""
    seconds = 0 if _recent_failure(address.server) else settings.shard_patience()
    return Retry(seconds, pauses=_pauses())


def _pauses() -> Iterator[float]:
    return chain(PAUSES, repeat(PAUSES[-1]))


class _WrongContent(Exception):
    """The content's sha256 is not the expected one."""


class _Outage(ShardError):
    """The server does not answer, or says that it is in trouble: its other files can't be had either."""


@contextmanager
def _locked(path: Path, address: RemotePath) -> Iterator[float]:
    """Lock a file of the cache, and remove what killed processes left half-written. Yields when the wait began."""
    locks, since, seconds = path.parent / ".locks", time.time(), settings.lock_timeout()
    locks.mkdir(parents=True, exist_ok=True)
    try:
        with WeakFileLock(locks / f"{path.stem}.lock", timeout=seconds):
            for stale in path.parent.glob(f".{path.name}.*"):  # as `atomic_file` names them
                stale.unlink(missing_ok=True)
            yield since
    except Timeout as error:
        reason = (
            f"another process has been fetching it to {path} for {seconds:g} s (LGD_TIMM_LOCK_TIMEOUT). "
            "Wait for it, or end it."
        )
        failure = _Failure(time.time(), f"{address} can't be had: {reason}", outage=False)
        _remember(failure, address, path.stem)
        raise ShardError(failure.reason) from error


# ------------------------------------------------------------------------------------------------------------- failures


@dataclass(frozen=True)
class _Failure:
    at: float  # time.time()
    reason: str
    outage: bool  # of the whole server


_failures: dict[str, _Failure] = {}  # by sha256, and by server; of this process


def _recent_failure(key: str) -> _Failure | None:
    failure = _failures.get(key)
    return failure if failure is not None and 0 <= time.time() - failure.at < RETRY_AFTER else None


def _remember(failure: _Failure, address: RemotePath, sha256: str) -> None:
    _failures[sha256] = failure
    if failure.outage:
        _failures[address.server] = failure


def _read_failure(note: Path) -> _Failure | None:
    try:
        failure: _Failure = read_json(note, _Failure)
        return failure
    except (OSError, JSONError):  # none, or of another version: then the download is tried
        return None


@contextmanager
def _as_cache_error(path: Path) -> Iterator[None]:
    """Turn an OSError into a CacheError; errors of the network are ShardErrors by then."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        raise CacheError(
            f"{path} can't be written: {reason}. Free some space, or set LGD_TIMM_CACHE to a folder on another disk."
        ) from error


@contextmanager
def _as_shard_error(address: RemotePath) -> Iterator[None]:
    """Turn a failure to read into a ShardError with value, reason and what to do.

    The cause is dropped (`from None`): it shows the URLs that a server redirects to, whose queries may hold signatures.
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
