"""Write an image folder as shards. Images keep their bytes, unless they are to be made smaller (`resize.py`).

The shard folder appears complete or not at all.
"""

from __future__ import annotations

import logging
import random
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import webdataset
from PIL import Image

from ..errors import ShardError
from ..utils.files import atomic_folder, sha256_of, write_json
from ..utils.progress import progress_bar
from .decode import image_size
from .image_folder import FIELD_OF_SUFFIX, IMAGE_SUFFIXES, ImageFolder, describe, is_hidden, read_image_folder
from .index import INFO, Resize, ShardSet, open_shards, read_info
from .paths import require_local
from .resize import ResizeReport, Sample, resize_samples
from .tar import IndexedTar

log = logging.getLogger(__name__)

# A key ends at the first dot, and a slash would start a folder: both are escaped, and different paths stay different.
KEY_ESCAPES = str.maketrans({"_": "__", "/": "_-", ".": "_o"})
TIMM_FIELDS = ("jpg", "png", "webp")  # that timm's reader looks for, unless --input-key says more
NAMED = 20  # images that an error names at most


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
    skip_bad: bool = False,
    only: Collection[Path] | None = None,
    resize: Resize | None = None,
    workers: int = 0,
) -> ShardSet:
    """Write the images of a folder as WebDataset shards and timm's `_info.json`.

    Tars are byte-identical for the same input. Hidden files and folders, and files that are no images by their ending,
    are passed over; a line of the log counts them.

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
        skip_bad: leave out images that can't be used, and log each with its reason, instead of refusing all.
        only: paths of the images that are written; None: all. Labels count all class folders in any case.
        resize: how images are made smaller and become JPEGs; None: they keep their bytes. The index notes it.
        workers: processes that make them smaller; 0: this one does.

    Returns:
        The index of the split.

    Raises:
        ShardError: the folder is missing or empty, images can't be used (all of them are found before anything is
            written), the split exists already, there are too few images for `min_shards`, or a name or number is out
            of its range.
    """
    images, out = require_local(images, what="images"), require_local(out, what="out")
    if not re.fullmatch(r"[\w-]+", split):
        raise ShardError(f"split {split!r} becomes part of file names; spell it with letters, digits, _ and -.")
    if samples_per_shard < 1 or min_shards < 1:
        raise ShardError(f"samples_per_shard ({samples_per_shard}) and min_shards ({min_shards}) must be at least 1.")
    found = read_image_folder(images)
    class_names = _class_names(found) if labels else []
    if only is not None:
        chosen = set(only)
        found = replace(found, images=tuple(path for path in found.images if path in chosen))
    paths = _usable(found, skip_bad=skip_bad)
    info = read_info(out) if (out / INFO).exists() else {"splits": {}}
    if split in info["splits"]:
        raise ShardError(f"{out} already has a split {split!r}. Choose another --split, or remove the folder first.")
    if len(paths) < min_shards:
        raise ShardError(f"{images} holds {len(paths)} images, too few for {min_shards} shards. Lower --min-shards.")
    if class_names and info.get("class_names", class_names) != class_names:
        raise ShardError(
            f"The class folders of {images} differ from those already in {out}: labels would not agree. "
            "Write to another folder."
        )
    if only is None:
        _report(found, paths, class_names)

    random.Random(seed).shuffle(paths)
    per_shard = min(samples_per_shard, len(paths) // min_shards)
    stem = re.sub(r"[^\w-]+", "_", name or out.resolve().name)
    with atomic_folder(out) as temporary:
        filenames, lengths = [], []
        progress = progress_bar(total=len(paths), unit="img", desc=f"shards {split}")
        samples = _encoded(_FolderSamples(images, paths, class_names), resize, workers=workers)
        for shard, start in enumerate(range(0, len(paths), per_shard)):
            chunk = paths[start : start + per_shard]
            filename = f"{stem}-{split}-{shard:05d}.tar"
            with webdataset.TarWriter(str(temporary / filename), mtime=0, user="", group="") as tar:
                for sample in islice(samples, len(chunk)):
                    tar.write({"__key__": sample.key, **sample.fields})
                    progress.update()
            filenames.append(filename)
            lengths.append(len(chunk))
        next(samples, None)  # its last lines: what was counted
        progress.close()
        info["splits"][split] = {
            "name": split,
            "num_samples": len(paths),
            "filenames": filenames,
            "shard_lengths": lengths,
            "sha256": [sha256_of(temporary / filename) for filename in filenames],
            **({} if resize is None else {"resized": asdict(resize)}),
        }
        if class_names:
            info["class_names"] = class_names
        write_json(temporary / INFO, info)
    return open_shards(out, split=split)


def index_shards(folder: str | Path, *, split: str = "train") -> ShardSet:
    """Write `_info.json` for tars that lie in a folder already, such as img2dataset's: names, counts, sha256 sums.

    Args:
        folder: with tars in WebDataset's format. Those of its splits that are indexed already are left out.
        split: name of the split that they become.

    Returns:
        The index of the split.

    Raises:
        ShardError: there are no such tars, one is damaged or empty, or the split exists already.
    """
    folder = require_local(folder, what="folder")
    info = read_info(folder) if (folder / INFO).exists() else {"splits": {}}
    if split in info["splits"]:
        raise ShardError(f"{folder} already has a split {split!r}. Choose another --split.")
    known = {name for entry in info["splits"].values() for name in entry["filenames"]}
    paths = [path for path in sorted(folder.glob("*.tar")) if path.name not in known and not is_hidden(path.name)]
    if not paths:
        raise ShardError(f"{folder} holds no tars that are not indexed yet. Give the folder that holds them.")
    lengths, sums = [], []
    for path in progress_bar(paths, unit="tar", desc=f"index {split}"):
        tar = IndexedTar(path)
        if tar.damage or not tar.keys:
            raise ShardError(f"{path} can't be used ({tar.damage or 'it has no samples'}). Remove or replace it.")
        lengths.append(len(tar.keys))
        sums.append(sha256_of(path))
    info["splits"][split] = {
        "name": split,
        "num_samples": sum(lengths),
        "filenames": [path.name for path in paths],
        "shard_lengths": lengths,
        "sha256": sums,
    }
    write_json(folder / INFO, info)
    return open_shards(folder, split=split)


def _class_names(found: ImageFolder) -> list[str]:
    """List the class folders; none when images lie flat."""
    if found.loose is not None:
        raise ShardError(
            f"{found.root} mixes class folders with loose images such as {found.loose.name}. "
            "Move them into a class folder, or write with --no-labels."
        )
    return list(found.class_names)


def _usable(found: ImageFolder, *, skip_bad: bool) -> list[Path]:
    """Choose the images that can be written. Raises: ShardError for others, unless they are to be left out."""
    if not found.images:
        raise ShardError(
            f"{found.root} holds no images ({', '.join(IMAGE_SUFFIXES)}; passed over: "
            f"{describe(found.passed_over) or 'nothing'}). Give the folder that holds the images."
        )
    bad = dict(_problems(found.images))
    if bad and not skip_bad:
        named = "; ".join(list(bad.values())[:NAMED]) + (f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else "")
        raise ShardError(
            f"{len(bad)} of {len(found.images)} images can't be used: {named}. Remove, replace or rename them, or "
            "leave them out with --skip-bad."
        )
    for reason in bad.values():
        log.warning("left out: %s", reason)
    if len(bad) == len(found.images):
        raise ShardError(f"{found.root} holds no image that can be used. Give the folder that holds the images.")
    return [path for path in found.images if path not in bad]


def _problems(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield the images that can't be written, each with a sentence that names it and says why."""
    stems: dict[Path, Path] = {}
    huge = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # said below
        for path in progress_bar(paths, unit="img", desc="headers", leave=False):
            stem, pixels = path.with_suffix(""), 0
            if wrong := _wrong_name(path):
                yield path, wrong
            elif twin := stems.get(stem):
                yield path, f"{twin} and {path.name} differ only in their suffix, so their samples would share a key"
            else:
                try:
                    width, height = image_size(path)
                    pixels = width * height
                except ShardError as error:
                    yield path, f"{path} can't be opened as an image ({error})"
            stems.setdefault(stem, path)
            if Image.MAX_IMAGE_PIXELS and pixels > Image.MAX_IMAGE_PIXELS:
                huge.append(path)
    if huge:
        log.warning(
            "%d images have more than %d million pixels, such as %s: each is decoded at every epoch. Scale them down.",
            len(huge),
            (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000,
            huge[0],
        )


def _wrong_name(path: Path) -> str | None:
    """Say why a name can't become a key, which is text in tars, logs and JSON; None where it can."""
    text = path.as_posix()
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{text!a} is a name that is not UTF-8, as of an old archive"
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        return f"{text!a} is a name with control characters"
    return None


def _report(found: ImageFolder, paths: Sequence[Path], class_names: Sequence[str]) -> None:
    """Log what is passed over, and what is odd about the classes."""
    bad = len(found.images) - len(paths)
    skipped = found.passed_over + Counter({"that can't be used": bad} if bad else {})
    if skipped:
        total = len(paths) + skipped.total()
        log.info("%d of %d images; %d skipped: %s", len(paths), total, skipped.total(), describe(skipped))
    endings = Counter(path.suffix.lower() for path in paths)
    if other := [ending for ending in endings if FIELD_OF_SUFFIX[ending] not in TIMM_FIELDS]:
        log.info(
            "images by their endings: %s. The bytes are kept; timm's own reader needs --input-key for %s.",
            describe(endings),
            ", ".join(sorted(other)),
        )
    if found.empty:
        log.warning("folders without images, which are no classes: %s", _some(found.empty))
    per_class = Counter(path.relative_to(found.root).parts[0] for path in paths) if class_names else Counter[str]()
    if without := [name for name in class_names if not per_class[name]]:
        log.warning("classes of which no image can be used: %s", _some(without))
    if single := [name for name in class_names if per_class[name] == 1]:
        log.warning("classes of one image: %s", _some(single))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _encoded(samples: _FolderSamples, resize: Resize | None, *, workers: int) -> Iterator[Sample]:
    """Yield the samples, their images made smaller if they are to be. At the end, log how many were."""
    if resize is None:
        yield from samples
        return
    report = ResizeReport()
    for done in resize_samples(samples, resize, workers=workers):
        report.add(done)
        if done.problem is not None:
            log.warning("%s can't be made smaller and keeps its bytes: %s", done.sample.key, done.problem)
        yield done.sample
    log.info("%s: %s", resize, report)


class _FolderSamples:
    """The samples of image files, read when they are asked for."""

    def __init__(self, folder: Path, paths: Sequence[Path], class_names: Sequence[str]) -> None:
        self._folder, self._paths = folder, paths
        self._labels = {name: i for i, name in enumerate(class_names)}

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, position: int) -> Sample:
        path = self._paths[position]
        relative = path.relative_to(self._folder)
        key = relative.with_suffix("").as_posix().translate(KEY_ESCAPES)
        fields = {FIELD_OF_SUFFIX[path.suffix.lower()]: path.read_bytes()}
        if self._labels:
            fields["cls"] = str(self._labels[relative.parts[0]]).encode()
        return Sample(key, fields)
