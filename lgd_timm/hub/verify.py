"""Verify that the files of a folder are, byte for byte, what was published, without hashing a verified file again.

Sizes and hashes are compared. A stamp records that a file had a hash: it is kept in `settings.cache_folder()`, with the
file's size, inode and times of change, and holds as long as these stay the same. A stamp that was made less than
`MOMENT` after its file was written does not count, since a second write could hide in one tick of the file system's
clock (git does the same with its index). Where no stamp can be written, files are hashed each time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from .. import settings
from ..errors import WeightsError
from ..utils.files import fingerprint, sha256_of, write_json
from ..utils.lfs import is_pointer
from ..utils.typed_json import JSONError, read_json

StrPath = str | os.PathLike[str]

log = logging.getLogger(__name__)

LARGEST_FILE = 1 << 50  # bytes: a petabyte
MOMENT = 100_000_000  # nanoseconds: above any file system's tick


class FileFacts(TypedDict, total=False):
    """A file's content: `size` in bytes and one hash, hexadecimal."""

    size: int
    sha256: str
    git_sha1: str  # the only hash that the Hub tells of small files: git's name for the blob


class _Stamp(TypedDict, total=False):
    state: list[int]
    sha256: str
    git_sha1: str
    at: int


Hash = Literal["sha256", "git_sha1"]


def hash_of(facts: FileFacts) -> tuple[Hash, str]:
    """Return which hash is known of a file, and its hexadecimal digits."""
    return ("git_sha1", facts["git_sha1"]) if "git_sha1" in facts else ("sha256", facts["sha256"])


def checked_facts(size: Any, *, sha256: Any = None, git_sha1: Any = None) -> FileFacts:
    """Build a file's facts of what a server or a remembered file says, which becomes part of paths.

    Args:
        size: bytes, an integer of at least 0.
        sha256: 64 hexadecimal digits.
        git_sha1: 40 hexadecimal digits; one of the two hashes is needed.

    Raises:
        ValueError: names the value that is none of these.
    """
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < LARGEST_FILE:
        raise ValueError(f"{ascii(size)[:80]} is no size in bytes")
    if sha256 is not None:
        return FileFacts(size=size, sha256=_hexadecimal(sha256, digits=64))
    return FileFacts(size=size, git_sha1=_hexadecimal(git_sha1, digits=40))


def _hexadecimal(value: Any, *, digits: int) -> str:
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
        raise ValueError(f"{ascii(value)[:80]} is no hash of {digits} hexadecimal digits")
    return value


def is_path_below(name: Any) -> bool:
    """Whether a name from elsewhere is a plain relative path: no `..`, no drive, no control character."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 1000
        and name.isprintable()
        and not any(mark in name for mark in "\\:")
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in name.split("/"))
    )


def facts_of(path: Path) -> FileFacts:
    """Return the size and sha256 of a file."""
    return FileFacts(size=path.stat().st_size, sha256=sha256_of(path))


def verify(folder: StrPath, files: Mapping[str, FileFacts]) -> None:
    """Check the size and hash of files.

    Args:
        folder: where they are; it may hold others.
        files: path below the folder -> what was published.

    Raises:
        WeightsError: names every file that differs.
    """
    if wrong := wrong_files(folder, files):
        if pointers := [name for name in wrong if is_pointer(Path(folder) / name)]:
            raise WeightsError(
                f"{folder}: {', '.join(pointers)} are git-lfs pointers and not the files themselves. Run in that "
                "checkout: git lfs pull"
            )
        raise WeightsError(
            f"{folder} is not what was published: {'; '.join(wrong.values())}. "
            "Delete the folder and pull it again (`lgd-timm pull`), or restore it from the checkout."
        )


def wrong_files(folder: StrPath, files: Mapping[str, FileFacts]) -> dict[str, str]:
    """Compare the size and hash of files. Files with a valid stamp are not read.

    Args:
        folder: where they are; it may hold others.
        files: path below the folder -> what was published.

    Returns:
        The path of each file that differs -> how, in words.
    """
    folder = Path(os.path.abspath(folder))
    stamps = _read_stamps(folder)
    updated = dict(stamps)
    wrong = {}
    for name, facts in files.items():
        kind, digest = hash_of(facts)
        expected = f"{facts['size']} bytes with {kind} {digest}"
        found = _content(folder / name, kind, stamps.get(name, {}))
        if found is not None and found[:2] != (facts["size"], digest) and name in stamps:
            found = _content(folder / name, kind, {})  # the stamp may be what is damaged
        if found is None:
            wrong[name] = f"{name} should have {expected}, but there is no such file"
            continue
        size, actual, stamp = found
        if (size, actual) == (facts["size"], digest):
            updated[name] = stamp
        else:
            wrong[name] = f"{name} should have {expected}, but there is {size} bytes with {kind} {actual}"
    if updated != stamps:
        _write_stamps(folder, updated)
    return wrong


def stamp_verified(folder: StrPath, files: Mapping[str, FileFacts]) -> None:
    """Write stamps for files whose hash was checked while they were downloaded, so that they are not read again.

    Args:
        folder: where they are.
        files: path below the folder -> size and hash that were checked.
    """
    folder = Path(os.path.abspath(folder))
    stamps = _read_stamps(folder)
    for name, facts in files.items():
        kind, digest = hash_of(facts)
        stamps[name] = {"state": _state(folder / name), kind: digest, "at": time.time_ns()}
    _write_stamps(folder, stamps)


def _content(path: Path, kind: str, stamp: Mapping[str, Any]) -> tuple[int, str, dict[str, Any]] | None:
    """Return the size, hash and stamp of a file, or None if there is none. A file with a valid stamp is not read."""
    if not path.is_file():
        return None
    state = _state(path)
    if stamp.get("state") == state and kind in stamp and stamp.get("at", 0) - max(state[2:]) > MOMENT:
        return state[0], stamp[kind], dict(stamp)
    at = time.time_ns()  # before reading: what is written meanwhile is newer than the stamp
    digest = sha256_of(path) if kind == "sha256" else git_sha1(path.read_bytes())
    return state[0], digest, {"state": state, kind: digest, "at": at}


def _state(path: Path) -> list[int]:
    """Return what changes with every write. No program can set back ctime, the time of the inode's change."""
    stat = path.stat()
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def git_sha1(content: bytes) -> str:
    """Return git's hash of a file's content, in hexadecimal digits."""
    digest = git_digest(len(content))
    digest.update(content)
    return digest.hexdigest()


def git_digest(size: int) -> Any:
    """Start git's hash of a file of `size` bytes; `update` takes its content."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def _stamps(folder: Path) -> Path:
    return settings.cache_folder() / "verified" / f"{fingerprint(str(folder))}.json"


def _read_stamps(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        stamps: dict[str, dict[str, Any]] = read_json(_stamps(folder), dict[str, _Stamp])
    except (OSError, JSONError):  # none yet, or damaged: every file is hashed and stamped anew
        return {}
    return stamps


def _write_stamps(folder: Path, stamps: Mapping[str, Any]) -> None:
    try:
        write_json(_stamps(folder), dict(stamps))
    except OSError as error:  # a read-only home costs time, not correctness
        log.debug("no stamps for %s: %s", folder, error)
