"""Fetch shards from a server into a cache, each whole, and read them from there.

The file is `<LGD_TIMM_CACHE>/shards/<sha256>.tar`. The name is the content's sha256, so one file serves every address
of the same content, and of a set that grows only the new shards are fetched. A file gets its name only after its sha256
was verified. Processes that need the same shard wait for the one that fetches it.

The cache is bounded (`cache_space.py`): a shard may be evicted at any time, and is fetched again when it is read again.

A request that fails is repeated for `settings.shard_patience()` seconds. Then the shard's samples count as bad samples,
of which `data.max_bad` allows so many. For the next `RETRY_AFTER` seconds the shard fails at once, and, if the server
itself was unreachable, each of its other shards is requested only once.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import BinaryIO, Literal

from filelock import Timeout
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import WeakFileLock

from .. import settings
from ..errors import CacheError, ShardError
from ..utils.files import sha256_of_open, write_json
from ..utils.http import PAUSES, Download, Retry, Truncated, is_transient
from ..utils.typed_json import JSONError, read_json
from .cache_space import claim, lock_of, new_file, note_reading
from .paths import AnyPath, RemotePath
from .storage import Refused, source_of

log = logging.getLogger(__name__)

RETRY_AFTER = 60.0  # seconds for which a failure is remembered
LARGEST_INDEX = 1 << 26  # bytes
LARGEST_SHARD = 1 << 34  # bytes
AT_ONCE = 0.05  # seconds that are no wait


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


@dataclass(frozen=True)
class CachedFile:
    """A file at an address, read through the cache."""

    address: RemotePath
    sha256: str  # of its content, 64 hexadecimal digits

    def __str__(self) -> str:
        return str(self.address)

    @property
    def cached(self) -> Path:
        """Where it is while it is in the cache."""
        return settings.cache_folder() / "shards" / f"{self.sha256}.tar"

    def open(self, mode: Literal["rb"] = "rb") -> BinaryIO:
        """Open it as `Path.open` does; fetch it first unless it is in the cache. Close it soon: it may be evicted.

        Raises:
            ShardError: it can't be fetched. For `RETRY_AFTER` seconds after a failure this is raised at once.
            CacheError: it can't be written to the cache.
        """
        cached = self.cached
        if (found := _open(cached, self.sha256)) is not None:
            return found
        if failure := _recent_failure(self.sha256):
            raise ShardError(failure.reason)
        with _as_cache_error(cached), _locked(cached, self.address) as since:
            if (found := _open(cached, self.sha256)) is not None:
                return found
            if cached.is_file():
                log.warning("%s went wrong in the cache (its sha256 is another one): it is fetched again", cached)
                cached.unlink()
            return _fetch(self, partial(_claim_patiently, self), since=since)

    def fetch_ahead(self, *, keep: Collection[str], stopped: Callable[[], bool]) -> None:
        """Fetch it unless it is in the cache, another process is fetching it, or that failed lately.

        Args:
            keep: names of files that are not evicted for it.
            stopped: asked as the bytes come, whether to give up.

        Raises:
            NoRoom: all that the cache holds is kept or being downloaded.
            ShardError, CacheError: as `open`.
        """
        cached = self.cached
        if cached.is_file() or _recent_failure(self.sha256):
            return
        with _as_cache_error(cached), suppress(Timeout), _lock(cached, seconds=AT_ONCE):
            if not cached.is_file():
                _fetch(self, partial(_claim_ahead, self, keep, stopped), since=time.time()).close()


class NoRoom(Exception):
    """All that the cache holds is kept or being downloaded, or nobody waits for the file any more."""


def file_at(path: AnyPath, *, sha256: str | None) -> Path | CachedFile:
    """Return a file that can be opened, on this disk or at an address.

    Args:
        path: of the file.
        sha256: of its content, 64 hexadecimal digits; needed for an address.

    Raises:
        ShardError: the sum of one at an address is not known.
    """
    if isinstance(path, Path):
        return path
    if sha256 is None:
        raise ShardError(
            f"{path} has no sha256 in its index, by which it would be trusted. Download the folder and give its path."
        )
    return CachedFile(path, sha256)


def check_sums(path: AnyPath, sums: tuple[str, ...], *, count: int) -> None:
    """Refuse a server's index without a sha256 sum for each of its `count` tars. Raises: ShardError."""
    if isinstance(path, RemotePath) and (
        len(sums) != count or not all(re.fullmatch("[0-9a-f]{64}", str(total)) for total in sums)
    ):
        raise ShardError(
            f"{path} has no sha256 sums of its tars, as those of other writers, and over the network nothing is used "
            "unverified. Download the folder and give its path, or write the shards with lgd-timm shards write."
        )


# -------------------------------------------------------------------------------------------------------------- reading


def _open(cached: Path, sha256: str) -> BinaryIO | None:
    """Open a file of the cache and note that it is read; None where it is not there, or is not right."""
    try:
        file = cached.open("rb")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    if not _is_right(file, cached, sha256):
        file.close()
        return None
    note_reading(cached)
    return file


State = tuple[int, ...]  # size, inode, times of change: what changes with every write
_right: dict[str, State] = {}  # by sha256; of this process


def _is_right(file: BinaryIO, cached: Path, sha256: str) -> bool:
    """Tell whether an open file has its sha256. It is read where it changed since it was found right."""
    state = _state(file)
    if _right.get(sha256) == state:
        return True
    if _read_stamp(cached) != state:
        if sha256_of_open(file) != sha256:
            return False
        file.seek(0)
        _stamp(cached, state)
    _right[sha256] = state
    return True


def _state(file: BinaryIO) -> State:
    stat = os.fstat(file.fileno())
    return stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def _stamp_path(cached: Path) -> Path:
    return cached.parent / ".locks" / f"{cached.stem}.right.json"


def _stamp(cached: Path, state: State) -> None:
    """Note that a file was found right in this state."""
    with suppress(OSError):  # a cache that can't be written costs time, not correctness
        write_json(_stamp_path(cached), list(state))


def _read_stamp(cached: Path) -> State | None:
    try:
        state: list[int] = read_json(_stamp_path(cached), list[int])
    except (OSError, JSONError):
        return None
    return tuple(state)


# ------------------------------------------------------------------------------------------------------------- fetching


# Claims bytes of the cache for a temporary file. Raises: NoRoom, CacheError.
MakeRoom = Callable[[Path, int], None]


def _fetch(file: CachedFile, make_room: MakeRoom, *, since: float) -> BinaryIO:
    """Download to the cache, unless another process failed to after `since` (time.time()), when the wait began.

    The file is returned open, since it may be evicted as soon as it has its name.
    """
    note = file.cached.parent / ".locks" / f"{file.sha256}.json"
    if (failure := _read_failure(note)) and failure.at >= since:
        _remember(failure, file.address, file.sha256)
        raise ShardError(failure.reason)
    start = time.monotonic()
    try:
        fetched = _download(file, make_room)
    except ShardError as error:
        failure = _Failure(time.time(), str(error), outage=isinstance(error, _Outage))
        _remember(failure, file.address, file.sha256)
        write_json(note, asdict(failure))
        raise ShardError(failure.reason) from None
    note.unlink(missing_ok=True)
    _stamp(file.cached, _state(fetched))
    size = os.fstat(fetched.fileno()).st_size
    log.info("fetched %s: %.1f MB in %.1f s", file.address, size / 1e6, time.monotonic() - start)
    return fetched


def _download(file: CachedFile, make_room: MakeRoom) -> BinaryIO:
    """Download, verify and open a file; a wrong one is fetched once more, past HTTP caches."""
    address = file.address
    for fresh in (False, True):
        with suppress(_WrongContent), new_file(file.cached) as temporary, ExitStack() as stack:
            written = stack.enter_context(temporary.open("wb"))
            reserve = _Reservation(temporary, make_room, stack)
            download = Download(written, digest=hashlib.sha256, max_size=LARGEST_SHARD, reserve=reserve)
            source = source_of(address, fresh=fresh)
            with _as_shard_error(address):
                download.run(source, retry=lambda: _retry(address))
            if download.size > LARGEST_SHARD:
                raise ShardError(
                    f"{address} has more than {LARGEST_SHARD} bytes, the most of a shard. Write smaller ones."
                )
            if download.hexdigest != file.sha256:
                raise _WrongContent  # `new_file` removes the file
            written.truncate(download.size)  # more may have been claimed
            written.close()
            return temporary.open("rb")
    raise ShardError(
        f"{address} should have sha256 {file.sha256}, but what comes has {download.hexdigest}, also when fetched "
        "again. Either it is another file than its index says, or something on the way alters it: copy shards and "
        "index there again, or try another network."
    )


class _Reservation:
    """Claims room for a download, as `http.Reserve`.

    Where the server does not say how large the file is, room is claimed as it grows, by one process at a time: two
    could otherwise each wait for the room that the other has.
    """

    def __init__(self, temporary: Path, make_room: MakeRoom, stack: ExitStack) -> None:
        self._temporary, self._make_room, self._stack = temporary, make_room, stack
        self._growing = False

    def __call__(self, size: int, whole: bool) -> None:
        if not whole and not self._growing:
            path = lock_of(self._temporary.parent, "growing")
            self._stack.enter_context(WeakFileLock(path, timeout=settings.lock_timeout()))
            self._growing = True
        self._make_room(self._temporary, size)


def _claim_patiently(file: CachedFile, temporary: Path, size: int) -> None:
    """Claim room, and wait while other processes' downloads have it. Raises: CacheError."""
    seconds = settings.lock_timeout()
    end = time.monotonic() + seconds
    while not claim(temporary, size, what=str(file)):
        if time.monotonic() > end:
            raise CacheError(
                f"{file} waited {seconds:g} s for room in {temporary.parent}, all of which other downloads have "
                "(LGD_TIMM_LOCK_TIMEOUT). End them, or raise LGD_TIMM_CACHE_SIZE."
            )
        time.sleep(AT_ONCE)


def _claim_ahead(
    file: CachedFile, keep: Collection[str], stopped: Callable[[], bool], temporary: Path, size: int
) -> None:
    """Claim room if there is some. Raises: NoRoom, CacheError."""
    if stopped() or not claim(temporary, size, what=str(file), keep=keep):
        raise NoRoom(f"no room for {file}")


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
def _lock(path: Path, *, seconds: float) -> Iterator[None]:
    """Lock a file of the cache, and remove what killed processes left half-written. Raises: Timeout."""
    lock = lock_of(path.parent, path.stem)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock, timeout=seconds):
        for stale in path.parent.glob(f".{path.name}.*"):  # as `new_file` names them
            stale.unlink(missing_ok=True)
        yield


@contextmanager
def _locked(path: Path, address: RemotePath) -> Iterator[float]:
    """Wait for the lock of a file of the cache. Yields when the wait began. Raises: ShardError."""
    since, seconds = time.time(), settings.lock_timeout()
    try:
        with _lock(path, seconds=seconds):
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
