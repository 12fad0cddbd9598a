"""Read the index of a shard folder: timm's `_info.json`, with sha256 sums added.

Samples are read by position, not streamed. An epoch's order is then a pure function of (seed, epoch), the same for any
number of workers and ranks; evaluation reads each sample exactly once; a run can resume at any step; and no shuffle
buffer holds samples in memory. webdataset's own pipeline streams and offers none of these.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import ShardError
from ..utils.files import fingerprint
from .paths import AnyPath, resolve_path
from .shard_cache import check_sums, local_file, read_small

INFO = "_info.json"
# In this order, as a sample may have several: those that timm reads come first.
IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tiff", "tif", "avif", "heic", "ppm", "jp2")


@dataclass(frozen=True)
class Resize:
    """How images are made smaller, once, when their shards are written.

    Raises:
        ShardError: a number is out of its range.
    """

    short_side: int = 288  # pixels that the short side has at most; images are never enlarged
    quality: int = 92  # of the JPEGs, 1 to 100

    def __post_init__(self) -> None:
        if not 16 <= self.short_side <= 16384:
            raise ShardError(f"short_side ({self.short_side}) is the short side of an image: 16 to 16384 pixels.")
        if not 1 <= self.quality <= 100:
            raise ShardError(f"quality ({self.quality}) is a JPEG's: 1 to 100.")

    def __str__(self) -> str:
        return f"short side of at most {self.short_side} pixels, JPEG quality {self.quality}"


@dataclass(frozen=True)
class ShardSet:
    """One split: its tars, with their sample counts and sha256 sums (none where the writer gave none).

    `resized` says how its images were made smaller, None: they were not. `resized_from` are the sha256 sums of the
    shards that they were in before, none where they were written from files.
    """

    root: AnyPath
    split: str
    filenames: tuple[str, ...]
    lengths: tuple[int, ...]
    sha256: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    resized: Resize | None = None
    resized_from: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(self.lengths)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over file names, counts and sums."""
        return fingerprint(self.filenames, self.lengths, self.sha256)

    def path(self, shard: int) -> Path:
        """Return a shard's path on this disk; one at an address is fetched first. Raises: as `local_file`."""
        return local_file(self.root / self.filenames[shard], sha256=self.sha256[shard] if self.sha256 else None)


def read_info(root: AnyPath) -> dict:
    """Read a folder's `_info.json`. Raises: ShardError where it is missing or can't be read."""
    path = root / INFO
    if isinstance(path, Path) and not path.is_file():
        if tars := sorted(path.parent.glob("*.tar")):
            raise ShardError(
                f"{root} holds {len(tars)} tars, first {tars[0].name}, and no {INFO}, so it is not a finished shard "
                f"folder. Write it again, or index tars of others where they lie: lgd-timm shards index {root}"
            )
        raise ShardError(
            f"{root} holds no {INFO}, so it is not a finished shard folder. "
            f"Write one with: lgd-timm shards write IMAGES {root}"
        )
    content = read_small(path)
    try:
        info = json.loads(content.decode())
        assert isinstance(info["splits"], dict)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ShardError(f"{path} can't be read as timm's shard index ({error!r}). Write the shards again.") from error
    return info


def open_shards(root: str | AnyPath, *, split: str) -> ShardSet:
    """Open one split of a shard folder.

    Args:
        root: the folder, or its address (https://, hf://, s3://, ...). Of a folder it is checked that every tar exists;
            no tar is read.
        split: its name in the index.

    Returns:
        The split's index.

    Raises:
        ShardError: the folder, the split or a tar is missing, or an address's index has no sha256 sums.
    """
    root = resolve_path(root)
    shards = read_split(root, read_info(root), split=split)
    missing = [name for name in shards.filenames if not (root / name).is_file()] if isinstance(root, Path) else []
    if missing:
        raise ShardError(
            f"{root} lacks {len(missing)} of {len(shards.filenames)} shards of {split!r}, first {missing[0]}. "
            "Copy them here."
        )
    return shards


def read_split(root: AnyPath, info: dict, *, split: str) -> ShardSet:
    """Read a split's entry of an index, without a look at the tars. Raises: ShardError for an unusable entry."""
    if split not in info["splits"]:
        raise ShardError(f"{root} has no split {split!r}; it has {', '.join(sorted(info['splits'])) or 'none'}.")
    entry = info["splits"][split]
    try:
        resized = entry.get("resized") or {}
        shards = ShardSet(
            root=root,
            split=split,
            filenames=tuple(entry["filenames"]),
            lengths=tuple(entry["shard_lengths"]),
            sha256=tuple(entry.get("sha256", ())),
            class_names=tuple(info.get("class_names", ())),
            resized=Resize(int(resized["short_side"]), int(resized["quality"])) if resized else None,
            resized_from=tuple(resized.get("from", ())),
        )
        assert len(shards.lengths) == len(shards.filenames) > 0
    except ShardError as error:
        raise ShardError(f"{root / INFO}: split {split!r} was resized to what can't be: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise ShardError(
            f"{root / INFO}: split {split!r} lacks file names or lengths ({error!r}). Write it again."
        ) from error
    if astray := [name for name in shards.filenames if name != os.path.basename(name) or name in ("", ".", "..")]:
        raise ShardError(
            f"{root / INFO}: split {split!r} names {astray[0]!r}, which is not in this folder. Write the shards again."
        )
    check_sums(root / INFO, shards.sha256, count=len(shards.filenames))
    return shards
