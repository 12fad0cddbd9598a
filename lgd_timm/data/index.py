"""Read the index of a shard folder: timm's `_info.json`, with sha256 sums added.

Samples are read by position, not streamed. An epoch's order is then a pure function of (seed, epoch), the same for any
number of workers and ranks; evaluation reads each sample exactly once; a run can resume at any step; and no shuffle
buffer holds samples in memory. webdataset's own pipeline streams and offers none of these.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypedDict

from ..errors import RecipeError, ShardError
from ..utils.files import fingerprint
from ..utils.lfs import is_pointer
from ..utils.schema import QUALITY, SHORT_SIDE, Range, build
from ..utils.typed_json import JSONError, parse_json
from .paths import AnyPath, resolve_path
from .shard_cache import LARGEST_INDEX, CachedFile, check_sums, file_at, read_small

INFO = "_info.json"
# In this order, as a sample may have several: those that timm reads come first.
IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tiff", "tif", "avif", "heic", "ppm", "jp2")

MOST_SAMPLES = 100_000_000  # of one shard
PLAUSIBLE_SAMPLES = 100_000  # of one shard, above which its size is compared
SMALLEST_TAR = 1024  # bytes: two empty blocks


_Resized = TypedDict("_Resized", {"short_side": int, "quality": int, "from": list[str]}, total=False)


class SplitEntry(TypedDict, total=False):
    """What the index says of a split. Those of embeddings have `taught` and what follows it."""

    name: str
    num_samples: int
    filenames: list[str]
    shard_lengths: list[Annotated[int, Range(0, MOST_SAMPLES)]]
    sha256: list[str]
    taught: list[str]  # `sidecar.identity` of each shard that was read
    left_out: dict[str, str]  # <shard>/<key> -> reason
    fidelity: dict[str, float] | None
    resized: dict[str, Any] | None


class _Splits(TypedDict):
    splits: dict[str, SplitEntry]


class Index(_Splits, total=False):
    """What `_info.json` says. Keys of other writers are kept."""

    class_names: list[str]


@dataclass(frozen=True)
class Resize:
    """How images are made smaller, once, when their shards are written.

    Raises:
        ShardError: a number is out of its range.
    """

    short_side: int = 288  # pixels that the short side has at most; images are never enlarged
    quality: int = 92  # of the JPEGs, 1 to 100

    def __post_init__(self) -> None:
        if not SHORT_SIDE.low <= self.short_side <= SHORT_SIDE.high:
            raise ShardError(f"short_side ({self.short_side}) is the short side of an image: 16 to 16384 pixels.")
        if not QUALITY.low <= self.quality <= QUALITY.high:
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

    def path(self, shard: int) -> Path | CachedFile:
        """Return a shard, which can be opened; one at an address is fetched then. Raises: as `file_at`."""
        return file_at(self.root / self.filenames[shard], sha256=self.sha256[shard] if self.sha256 else None)


def read_info(root: AnyPath) -> Index:
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
        info: Index = parse_json(content, Index, limit=LARGEST_INDEX)
    except JSONError as error:
        raise ShardError(f"{path} can't be read as timm's shard index ({error}). Write the shards again.") from error
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
    if isinstance(root, Path):
        for name, length in zip(shards.filenames, shards.lengths, strict=True):
            _check_length(root / name, length)
    return shards


def _is_file_name(name: str) -> bool:
    return name == os.path.basename(name) and name not in ("", ".", "..") and name.isprintable() and len(name) < 256


def _check_length(path: Path, length: int) -> None:
    """Refuse a tar that is too small for the samples that its index promises, whose order takes memory."""
    size = path.stat().st_size
    if size < SMALLEST_TAR and is_pointer(path):
        raise ShardError(f"{path} is a git-lfs pointer and not the shard itself. Run: git lfs pull")
    if length <= PLAUSIBLE_SAMPLES or size >= length * tarfile.BLOCKSIZE:  # smaller ones are read as far as they go
        return
    raise ShardError(
        f"{path} has {size} bytes, too few for the {length} samples that {INFO} promises. Copy it again, or write the "
        "shards anew."
    )


def read_split(root: AnyPath, info: Index, *, split: str) -> ShardSet:
    """Read a split's entry of an index, without a look at the tars. Raises: ShardError for an unusable entry."""
    if split not in info["splits"]:
        raise ShardError(f"{root} has no split {split!r}; it has {', '.join(sorted(info['splits'])) or 'none'}.")
    entry = info["splits"][split]
    try:
        resized = build(_Resized, entry.get("resized") or {}, where="resized")
        shards = ShardSet(
            root=root,
            split=split,
            filenames=tuple(entry["filenames"]),
            lengths=tuple(entry["shard_lengths"]),
            sha256=tuple(entry.get("sha256", ())),
            class_names=tuple(info.get("class_names", ())),
            resized=Resize(resized["short_side"], resized["quality"]) if resized else None,
            resized_from=tuple(resized.get("from", ())),
        )
    except KeyError as error:
        raise ShardError(f"{root / INFO}: split {split!r} lacks its {error}. Write the shards again.") from error
    except (ShardError, RecipeError) as error:
        raise ShardError(f"{root / INFO}: split {split!r} was resized to what can't be: {error}") from error
    if not len(shards.lengths) == len(shards.filenames) > 0:
        raise ShardError(
            f"{root / INFO}: split {split!r} has {len(shards.filenames)} file names and {len(shards.lengths)} lengths. "
            "Write the shards again."
        )
    if astray := [name for name in shards.filenames if not _is_file_name(name)]:
        raise ShardError(
            f"{root / INFO}: split {split!r} names {ascii(astray[0])[:200]}, which is not in this folder. "
            "Write the shards again."
        )
    if twice := [name for name, count in Counter(shards.filenames).items() if count > 1]:
        raise ShardError(
            f"{root / INFO}: split {split!r} lists {twice[0]!r} more than once, whose images would count as often. "
            "Write the shards again."
        )
    check_sums(root / INFO, shards.sha256, count=len(shards.filenames))
    if shards.sha256 and (
        len(shards.sha256) != len(shards.filenames)
        or not all(re.fullmatch("[0-9a-f]{64}", total) for total in shards.sha256)
    ):
        raise ShardError(
            f"{root / INFO}: split {split!r} has not one sha256 sum a tar, of 64 hexadecimal digits. "
            "Write the shards again."
        )
    return shards
