"""Pointers of git-lfs: small texts that stand in the place of files that git did not fetch."""

from __future__ import annotations

from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/"  # how one begins
POINTER_REASON = "it is a git-lfs pointer and not the file itself; fetch that with: git lfs pull"
LARGEST_POINTER = 1024  # bytes


def is_pointer(path: Path) -> bool:
    """Return whether a file is what git-lfs leaves in the place of one that was not fetched."""
    try:
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def pointers_in(folder: Path) -> list[str]:
    """List the names of the pointers among a folder's small files."""
    small = (path for path in folder.iterdir() if path.is_file() and path.stat().st_size <= LARGEST_POINTER)
    return sorted(path.name for path in small if is_pointer(path))
