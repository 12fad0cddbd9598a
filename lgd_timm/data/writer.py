"""Write an image folder as shards. Images keep their bytes; the shard folder appears complete or not at all."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image
from tqdm import tqdm

from ..errors import ShardError
from ..utils.files import atomic_folder, sha256_of, write_json
from .index import INFO, ShardSet, open_shards, read_info
from .paths import require_local

# A key ends at the first dot, and a slash would start a folder: both are escaped, and different paths stay different.
KEY_ESCAPES = str.maketrans({"_": "__", "/": "_-", ".": "_o"})
FIELD_OF_SUFFIX = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}


def write_shards(
    images: str | Path,
    out: str | Path,
    *,
    split: str = "train",
    labels: bool = True,
    samples_per_shard: int = 5000,
    min_shards: int = 1,
    name: str | None = None,
    seed: int = 0,
) -> ShardSet:
    """Write `images/**/*.{jpg,jpeg,png,webp}` as WebDataset shards and timm's `_info.json`.

    Tars are byte-identical for the same input.

    Args:
        images: the folder, with one folder a class, or flat.
        out: the shard folder. It may hold other splits already.
        split: name of the split; letters, digits, _ and -.
        labels: write field `cls`: the index of an image's first folder in sorted order. A flat folder has no labels.
        samples_per_shard: at most so many.
        min_shards: at least so many, one for each process that is to read.
        name: shards are called `<name>-<split>-00000.tar`; None: the name of `out`, so that names stay unique when
            shards of several folders are mixed.
        seed: of the shuffle, after which any shard is a random sample of all images.

    Returns:
        The index of the split.

    Raises:
        ShardError: the folder is missing or empty, an image can't be opened, the split exists already, there are too
            few images for `min_shards`, or a name or number is out of its range.
    """
    images, out = require_local(images, what="images"), require_local(out, what="out")
    if not re.fullmatch(r"[\w-]+", split):
        raise ShardError(f"split {split!r} becomes part of file names; spell it with letters, digits, _ and -.")
    if samples_per_shard < 1 or min_shards < 1:
        raise ShardError(f"samples_per_shard ({samples_per_shard}) and min_shards ({min_shards}) must be at least 1.")
    paths = _find_images(images)
    info = read_info(out) if (out / INFO).exists() else {"splits": {}}
    if split in info["splits"]:
        raise ShardError(f"{out} already has a split {split!r}. Choose another --split, or remove the folder first.")
    if len(paths) < min_shards:
        raise ShardError(f"{images} holds {len(paths)} images, too few for {min_shards} shards. Lower --min-shards.")
    class_names = _class_names(images, paths) if labels else []
    if class_names and info.get("class_names", class_names) != class_names:
        raise ShardError(
            f"The class folders of {images} differ from those already in {out}: labels would not agree. "
            "Write to another folder."
        )

    random.Random(seed).shuffle(paths)
    per_shard = min(samples_per_shard, len(paths) // min_shards)
    stem = re.sub(r"[^\w-]+", "_", name or out.resolve().name)
    with atomic_folder(out) as temporary:
        filenames, lengths = [], []
        progress = tqdm(total=len(paths), unit="img", desc=f"shards {split}", disable=None)
        for shard, start in enumerate(range(0, len(paths), per_shard)):
            chunk = paths[start : start + per_shard]
            filename = f"{stem}-{split}-{shard:05d}.tar"
            with webdataset.TarWriter(str(temporary / filename), mtime=0, user="", group="") as tar:
                for sample in _samples(images, chunk, class_names):
                    tar.write(sample)
                    progress.update()
            filenames.append(filename)
            lengths.append(len(chunk))
        progress.close()
        info["splits"][split] = {
            "name": split,
            "num_samples": len(paths),
            "filenames": filenames,
            "shard_lengths": lengths,
            "sha256": [sha256_of(temporary / filename) for filename in filenames],
        }
        if class_names:
            info["class_names"] = class_names
        write_json(temporary / INFO, info)
    return open_shards(out, split=split)


def _find_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ShardError(f"{folder} is not a folder. Give the folder that holds the images.")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in FIELD_OF_SUFFIX and p.is_file())
    if not paths:
        raise ShardError(
            f"{folder} holds no images ({', '.join(FIELD_OF_SUFFIX)}). Give the folder that holds the images."
        )
    stems: dict[Path, Path] = {}
    for path in paths:
        if twin := stems.get(path.with_suffix("")):
            raise ShardError(
                f"{twin} and {path.name} differ only in their suffix, so their samples would share a key. Rename one."
            )
        stems[path.with_suffix("")] = path
    return paths


def _class_names(folder: Path, paths: Sequence[Path]) -> list[str]:
    """List the class folders, sorted; none when images lie flat."""
    firsts = [p.relative_to(folder).parts[0] for p in paths if len(p.relative_to(folder).parts) > 1]
    if firsts and len(firsts) != len(paths):
        flat = next(p for p in paths if p.parent == folder)
        raise ShardError(
            f"{folder} mixes class folders with loose images such as {flat.name}. "
            "Move them into a class folder, or write with --no-labels."
        )
    return sorted(set(firsts))


def _samples(folder: Path, paths: Sequence[Path], class_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    index = {name: i for i, name in enumerate(class_names)}
    for path in paths:
        relative = path.relative_to(folder)
        _check_image(path)
        key = relative.with_suffix("").as_posix().translate(KEY_ESCAPES)
        sample: dict[str, Any] = {"__key__": key, FIELD_OF_SUFFIX[path.suffix.lower()]: path.read_bytes()}
        if class_names:
            sample["cls"] = index[relative.parts[0]]
        yield sample


def _check_image(path: Path) -> None:
    """Refuse a file that is no image, by its header; truncated pixels are found when they are decoded."""
    try:
        with Image.open(path):
            pass
    except (OSError, Image.DecompressionBombError) as error:
        raise ShardError(f"{path} can't be opened as an image ({error}). Remove or replace it.") from error
