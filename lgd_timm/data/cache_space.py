"""Keep the cache of shards within its bound, among all processes of a machine.

A download claims its bytes before they come: its temporary file gets its final size at once (sparse), and what lies in
the folder is counted by size. So the sum never exceeds the bound, whoever downloads at the same time. Room is made by
evicting the shards that were not read for longest. A lock file makes counting and claiming one step.

A shard that is evicted while another process reads it can be read to the end of that read; readers keep no file open.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from huggingface_hub.utils import WeakFileLock

from .. import settings
from ..errors import CacheError

SHARE = 0.8  # of what the disk has free, the cache's own files counted as free, where no bound is set


class _Entry(NamedTuple):
    path: Path
    size: int
    read: int  # nanoseconds since the epoch when it was last read


def claim(file: Path, size: int, *, what: str, keep: Collection[str] = ()) -> bool:
    """Give `size` bytes of the cache to a file that is being downloaded, and evict what was not read for longest.

    Args:
        file: the temporary file, of whose shard the caller holds the lock.
        size: bytes that it has, or is going to have.
        what: name of the shard, for an error.
        keep: names of files that are not evicted.

    Returns:
        False where there is no room, as all else is kept or being downloaded. Nothing was evicted then.

    Raises:
        CacheError: `size` is above the bound, or another process holds the lock for too long.
    """
    folder = file.parent
    with _locked(folder):
        entries = [entry for entry in _entries(folder) if entry.path != file]
        limit = _limit(folder, entries, file)
        if size > limit:
            raise CacheError(f"{what} {_too_large(folder, size, limit)}")
        excess = sum(entry.size for entry in entries) + size - limit
        if excess > 0:
            excess -= sum(entry.size for entry in _sweep(entries))
        chosen = []
        for entry in sorted(entries, key=lambda entry: entry.read):
            if excess <= 0:
                break
            if not _is_temporary(entry.path) and entry.path.name not in keep:
                chosen.append(entry.path)
                excess -= entry.size
        if excess > 0:
            return False
        for path in chosen:
            path.unlink(missing_ok=True)
        os.truncate(file, size)
        return True


def note_reading(file: Path) -> None:
    """Note that a file of the cache is read now. Its own times stay: they say that it did not change."""
    with suppress(OSError):  # another user's, or a disk that is read only: then it counts as read when it came
        os.utime(lock_of(file.parent, file.stem))


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Write a file of the cache, as `atomic_file` does. It gets its name under the lock: a count could miss it else.

    Args:
        path: the file, in a folder that exists.

    Yields:
        A temporary path beside it, for `claim` and for the block to write.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's 0600 is for secrets
        with _locked(path.parent):
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def lock_of(folder: Path, name: str) -> Path:
    """Return the lock file of that name in a cache folder."""
    return folder / ".locks" / f"{name}.lock"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    seconds = settings.lock_timeout()
    try:
        with WeakFileLock(lock_of(folder, "space"), timeout=seconds):
            yield
    except Timeout as error:
        raise CacheError(
            f"{folder} has been locked by another process for {seconds:g} s (LGD_TIMM_LOCK_TIMEOUT). "
            "End it, or set LGD_TIMM_CACHE to another folder."
        ) from error


def _entries(folder: Path) -> Iterator[_Entry]:
    with os.scandir(folder) as found:
        for entry in found:
            try:
                if entry.is_file(follow_symlinks=False):
                    status, path = entry.stat(follow_symlinks=False), Path(entry.path)
                    yield _Entry(path, status.st_size, max(status.st_mtime_ns, _noted(path)))
            except FileNotFoundError:  # a download that failed meanwhile
                continue


def _noted(path: Path) -> int:
    """When it was noted that a file is read, or when a process last wanted to fetch it; 0: it is not known."""
    try:
        return lock_of(path.parent, path.stem).stat().st_mtime_ns
    except OSError:
        return 0


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".")  # as `new_file` names them: .<sha256>.tar.<random>


def _sweep(entries: list[_Entry]) -> list[_Entry]:
    """Remove what killed processes left half-written: files of shards whose lock nobody holds."""
    swept = []
    for entry in entries:
        if _is_temporary(entry.path):
            try:
                with FileLock(lock_of(entry.path.parent, entry.path.name.split(".")[1]), timeout=0):
                    entry.path.unlink(missing_ok=True)
                    swept.append(entry)
            except Timeout:
                continue
    return swept


def _limit(folder: Path, entries: list[_Entry], file: Path) -> int:
    """Bytes that the folder may take."""
    bound = settings.cache_size()
    if bound is not None:
        return bound
    return int(SHARE * (shutil.disk_usage(folder).free + sum(entry.size for entry in entries) + file.stat().st_size))


def _too_large(folder: Path, size: int, limit: int) -> str:
    sizes = f"{size / 1e6:.3g} MB, and the cache in {folder} may take {limit / 1e6:.3g} MB"
    if settings.cache_size() is not None:
        return f"has {sizes} (LGD_TIMM_CACHE_SIZE). Raise it, or write smaller shards (--samples-per-shard)."
    return (
        f"has {sizes}, {SHARE:.0%} of what its disk has free. Free some space, or set LGD_TIMM_CACHE to a "
        "folder on another disk."
    )
