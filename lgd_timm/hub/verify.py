"""Is a folder, byte for byte, what was published? Sizes and hashes are compared; a file that was verified is not hashed again.

A stamp says that a file had a hash at a moment: its size, inode and times of change are kept with it in `settings.cache_folder()`.
As long as they are the same, the hash is. A file that was written less than a moment before its stamp is not trusted, since a
clock's tick could hide a second write (git does the same with its index). Where no stamp can be written, files are hashed each time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from .. import settings
from ..errors import WeightsError
from ..utils.files import fingerprint, sha256_of, write_json

StrPath = str | os.PathLike[str]

log = logging.getLogger(__name__)

MOMENT = 100_000_000  # nanoseconds: above any file system's tick


class FileFacts(TypedDict, total=False):
    """A file's content: `size` in bytes and one hash, hexadecimal."""

    size: int
    sha256: str
    git_sha1: str  # all that the Hub tells of small files: git's name for the blob


Hash = Literal["sha256", "git_sha1"]


def hash_of(facts: FileFacts) -> tuple[Hash, str]:
    """Which hash is known of a file, and what it is."""
    return ("git_sha1", facts["git_sha1"]) if "git_sha1" in facts else ("sha256", facts["sha256"])


def facts_of(path: Path) -> FileFacts:
    """Size and sha256 of a file."""
    return FileFacts(size=path.stat().st_size, sha256=sha256_of(path))


def verify(folder: StrPath, files: Mapping[str, FileFacts]) -> None:
    """Compare size and hash of each file in `folder` with `files`; WeightsError names all that differ."""
    if wrong := wrong_files(folder, files):
        raise WeightsError(
            f"{folder} is not what was published: {'; '.join(wrong.values())}. "
            "Delete the folder and pull it again (`lgd-timm pull`), or restore it from the checkout."
        )


def wrong_files(folder: StrPath, files: Mapping[str, FileFacts]) -> dict[str, str]:
    """The files that differ from their facts, and how, in words. Files with a valid stamp are not read."""
    folder = Path(os.path.abspath(folder))
    stamps = _read_stamps(folder)
    known = dict(stamps)
    wrong = {}
    for name, facts in files.items():
        kind, digest = hash_of(facts)
        expected = f"{facts['size']} bytes with {kind} {digest}"
        found = _content(folder / name, kind, stamps.get(name, {}))
        if found is None:
            wrong[name] = f"{name} should have {expected}, but there is no such file"
            continue
        size, actual, stamp = found
        if (size, actual) == (facts["size"], digest):
            known[name] = stamp
        else:
            wrong[name] = f"{name} should have {expected}, but there is {size} bytes with {kind} {actual}"
    if known != stamps:
        _write_stamps(folder, known)
    return wrong


def stamp_verified(folder: StrPath, files: Mapping[str, FileFacts]) -> None:
    """Stamp files whose hash was compared while they were written, so that they need not be read for it."""
    folder = Path(os.path.abspath(folder))
    stamps = _read_stamps(folder)
    for name, facts in files.items():
        kind, digest = hash_of(facts)
        stamps[name] = {"state": _state(folder / name), kind: digest, "at": time.time_ns()}
    _write_stamps(folder, stamps)


def _content(path: Path, kind: str, stamp: Mapping[str, Any]) -> tuple[int, str, dict[str, Any]] | None:
    """Size, hash and stamp of a file, or None when there is none. It is read only if its stamp does not vouch for it."""
    if not path.is_file():
        return None
    state = _state(path)
    if stamp.get("state") == state and kind in stamp and stamp.get("at", 0) - max(state[2:]) > MOMENT:
        return state[0], stamp[kind], dict(stamp)
    at = time.time_ns()  # before reading: what is written while we read is newer than the stamp
    digest = sha256_of(path) if kind == "sha256" else git_sha1(path.read_bytes())
    return state[0], digest, {"state": state, kind: digest, "at": at}


def _state(path: Path) -> list[int]:
    """What changes with every write. The time of the inode's change can't be set back by a program."""
    facts = path.stat()
    return [facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns]


def git_sha1(content: bytes) -> str:
    """git's name for a file: the Hub tells no other hash of small ones."""
    digest = git_digest(len(content))
    digest.update(content)
    return digest.hexdigest()


def git_digest(size: int) -> Any:
    """The beginning of git's hash of a file of so many bytes; `update` takes its content."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def _stamps(folder: Path) -> Path:
    return settings.cache_folder() / "verified" / f"{fingerprint(str(folder))}.json"


def _read_stamps(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        stamps = json.loads(_stamps(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: everything is hashed, and stamped anew
        return {}
    return stamps if isinstance(stamps, dict) and all(isinstance(stamp, dict) for stamp in stamps.values()) else {}


def _write_stamps(folder: Path, stamps: Mapping[str, Any]) -> None:
    try:
        write_json(_stamps(folder), dict(stamps))
    except OSError as error:  # a home that can't be written costs time, not correctness
        log.debug("no stamps for %s: %s", folder, error)
