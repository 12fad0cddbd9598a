"""Read image folders: which files are images, which folders are classes, and what is passed over.

`shards write` and the vocabulary source `folder:` both ask here, so that labels and names count the same classes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ShardError

# What systems and tools put among photos; names that begin with a dot (`._0.jpg`, `.ipynb_checkpoints`) are hidden too.
SYSTEM_NAMES = frozenset(
    {
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "Thumbs.db",
        "desktop.ini",
    }
)
# Suffix -> field of a sample in a shard. The bytes are kept, whichever field they are in.
FIELD_OF_SUFFIX = {
    ".jpg": "jpg",
    ".jpeg": "jpg",
    ".png": "png",
    ".webp": "webp",
    ".jfif": "jpg",
    ".jpe": "jpg",
    ".bmp": "bmp",
    ".dib": "bmp",
    ".gif": "gif",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".avif": "avif",
    ".heic": "heic",
    ".heif": "heic",
    ".ppm": "ppm",
    ".pgm": "ppm",
    ".pbm": "ppm",
    ".pnm": "ppm",
    ".jp2": "jp2",
}
IMAGE_SUFFIXES = tuple(FIELD_OF_SUFFIX)


@dataclass(frozen=True)
class ImageFolder:
    """What lies in an image folder.

    Attributes:
        root: the folder.
        images: paths of the images, sorted.
        class_names: the class folders, sorted: the first folders below `root` that hold images. Empty where images lie
            flat.
        empty: folders beside them that hold no image, and are no classes.
        loose: an image beside class folders, of which there should be none; None where there is none.
        passed_over: how many files of each kind ("hidden", ".txt", ...) are no images.
    """

    root: Path
    images: tuple[Path, ...]
    class_names: tuple[str, ...]
    empty: tuple[str, ...]
    loose: Path | None
    passed_over: Counter[str]


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is a system's own, and no image or class of anybody's."""
    return name.startswith(".") or name in SYSTEM_NAMES


def is_image(name: str) -> bool:
    """Tell whether a file is an image, by its name."""
    return not is_hidden(name) and os.path.splitext(name)[1].lower() in FIELD_OF_SUFFIX


def read_image_folder(root: Path) -> ImageFolder:
    """List an image folder, links followed.

    Args:
        root: folder of images, or of class folders of images at any depth.

    Returns:
        Its images, classes, and what is passed over.

    Raises:
        ShardError: it is no folder, or a folder in it can't be listed.
    """
    if not root.is_dir():
        raise ShardError(f"{root} is not a folder. Give the folder that holds the images.")
    images: list[Path] = []
    passed_over: Counter[str] = Counter()
    for folder, names in _walk(root):
        for name in names:
            if is_image(name):
                images.append(folder / name)
            else:
                passed_over[_kind(name)] += 1
    images.sort()
    firsts = {path.relative_to(root).parts[0] for path in images if path.parent != root}
    loose = next((path for path in images if path.parent == root), None) if firsts else None
    folders = {entry.name for entry in _list(root) if entry.is_dir() and not is_hidden(entry.name)}
    return ImageFolder(root, tuple(images), tuple(sorted(firsts)), tuple(sorted(folders - firsts)), loose, passed_over)


def class_folders(root: Path) -> tuple[list[str], list[str]]:
    """List class folders without listing all images.

    Args:
        root: the image folder.

    Returns:
        The names of the class folders, as `read_image_folder` finds them, and those of folders without an image. Where
        no folder holds an image, all are classes: such a folder has names to give, and no labels that could differ.

    Raises:
        OSError: the folder can't be listed.
    """
    folders = sorted(entry.name for entry in _list(root) if entry.is_dir() and not is_hidden(entry.name))
    full = [name for name in folders if any(map(is_image, (n for _, names in _walk(root / name) for n in names)))]
    return (full, [name for name in folders if name not in full]) if full else (folders, [])


def describe(passed_over: Counter[str]) -> str:
    """Spell counts, the most frequent first: "6 hidden, 2 .txt"."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(passed_over.items(), key=lambda kv: (-kv[1], kv[0])))


def _kind(name: str) -> str:
    if is_hidden(name):
        return "hidden"
    return os.path.splitext(name)[1].lower() or "without an ending"


def _list(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _walk(folder: Path, above: Sequence[tuple[int, int]] = ()) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder with the names of its files. A link to a folder in which it lies is not followed."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    files, folders = [], []
    for entry in _list(folder):
        if not entry.is_dir():
            files.append(entry.name)
        elif not is_hidden(entry.name):
            folders.append(entry.name)
    yield folder, files
    for name in sorted(folders):
        yield from _walk(folder / name, (*above, here))
