"""Verify shards against their index. Every tar is read whole: its sum, its samples, and the embeddings beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import LGDError, ShardError, TeacherError
from ..utils.files import sha256_of_open
from ..utils.progress import progress_bar
from .decode import EncodedImage
from .index import IMAGE_FIELDS, ShardSet, read_info, read_split
from .paths import AnyPath, resolve_path
from .stored_embeddings import TEACHER, StoredEmbeddings, open_stored
from .tar import IndexedTar

Keys = dict[str, tuple[str, ...]]  # file name -> keys, of the tars that could be read

COPY, TEACH = "Copy it again, or write the shards anew.", "Remove it and run lgd-timm teach again."


@dataclass
class ShardReport:
    """What was read, and one line for each problem: what, why, what to do."""

    samples: int = 0
    shards: int = 0
    embeddings: int = 0  # folders
    without_sums: bool = False  # the index has no sha256 sums: timm's writer leaves them out
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = f"{self.samples} images in {_count(self.shards, 'shard')}"
        if self.embeddings:
            what += f", {_count(self.embeddings, 'folder')} of embeddings"
        note = " Bytes were not compared: the index has no sha256 sums." if self.without_sums else ""
        return f"{what}: {_count(len(self.problems), 'problem') if self.problems else 'all right'}.{note}"


def check_shards(
    root: str | AnyPath, *, split: str | None = None, decode: bool = False, embeddings: Sequence[str | AnyPath] = ()
) -> ShardReport:
    """Verify shards, and the embeddings that belong to them. What lies at an address is fetched.

    Args:
        root: the shard folder, or its address.
        split: one split; None: every split.
        decode: decode each image; else only its header is read.
        embeddings: further folders of embeddings. Those in the shard folder are report, but none at an address, since
            servers list no folders.

    Raises:
        ShardError: there is no index to verify against, or the folder holds embeddings and no images.
    """
    root = resolve_path(root)
    info = read_info(root)
    splits = [read_split(root, info, split=name) for name in (info["splits"] if split is None else [split])]
    if any("taught" in info["splits"][shards.split] for shards in splits):
        raise ShardError(f"{root} holds a teacher's embeddings, and no images. Verify the shards that they are of.")
    folders = [*_beside(root), *map(resolve_path, embeddings)]
    report = ShardReport(without_sums=not all(shards.sha256 for shards in splits))
    with progress_bar(total=sum(map(len, splits)) * (1 + len(folders)), unit="img", desc="verify") as bar:
        keys = {shards.split: _check_split(shards, report, bar, decode=decode) for shards in splits}
        for folder in folders:
            _check_embeddings(folder, splits, keys, report, bar)
    return report


def _beside(root: AnyPath) -> list[Path]:
    return [path.parent for path in sorted(root.glob(f"*/{TEACHER}"))] if isinstance(root, Path) else []


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# --------------------------------------------------------------------------------------------------------------- shards


def _check_split(shards: ShardSet, report: ShardReport, bar: tqdm, *, decode: bool) -> Keys:
    """Verify the shards of a split; return their keys."""
    keys: Keys = {}
    first: dict[str, str] = {}  # key -> the first shard that has it
    report.shards += len(shards.filenames)
    for number, filename in enumerate(shards.filenames):
        path = shards.root / filename
        try:
            tar = IndexedTar(shards.path(number))
        except (ShardError, OSError) as error:
            report.problems.append(_unreadable(path, error))
            bar.update(shards.lengths[number])
            continue
        sha256 = shards.sha256[number] if shards.sha256 else None
        report.problems += _tar_problems(path, tar, sha256, shards.lengths[number], advice=COPY)
        report.samples += len(tar.keys)
        keys[filename] = tar.keys
        for key in tar.keys:
            if (twin := first.setdefault(key, filename)) != filename:
                report.problems.append(
                    f"{path}/{key}: {twin} has that key too, and it names one sample. Write the shards anew."
                )
            try:
                _check_sample(tar, key, class_names=shards.class_names, decode=decode)
            except (OSError, ValueError) as error:
                report.problems.append(
                    f"{path}/{key}: {error}. Write the shards anew without it, or leave it to data.max_bad."
                )
            bar.update()
    return keys


def _check_sample(tar: IndexedTar, key: str, *, class_names: Sequence[str], decode: bool) -> None:
    """Refuse a sample that can't be used. Raises: ShardError, OSError; ValueError for a label that is no number."""
    fields = tar.samples[key]
    field = next((name for name in IMAGE_FIELDS if name in fields), None)
    if field is None:
        raise ShardError(f"no image among its fields ({', '.join(fields)})")
    encoded = EncodedImage(tar.read(key, field))
    if decode:
        encoded.crop((0, 0, encoded.height, encoded.width))
    label = int(tar.read(key, "cls")) if "cls" in fields else 0
    if label < 0 or (class_names and label >= len(class_names)):
        raise ShardError(f"label {label}, where there are {len(class_names)} classes")


def _unreadable(path: AnyPath, error: Exception) -> str:
    if isinstance(error, LGDError):  # of an address: the message is complete
        return str(error)
    return f"{path}: can't be read ({error}). Copy it here."


def _tar_problems(path: AnyPath, tar: IndexedTar, sha256: str | None, length: int, *, advice: str) -> Iterator[str]:
    """Yield how a tar differs from its index."""
    if sha256 is not None and (actual := _sum_of(tar)) != sha256:
        yield f"{path}: should have sha256 {sha256}, but has {actual}. {advice}"
    if tar.damage:
        yield f"{path}: the tar is damaged ({tar.damage}) and holds {len(tar.keys)} of {length} samples. {advice}"
    elif len(tar.keys) != length:
        yield f"{path}: holds {len(tar.keys)} samples, its index says {length}. {advice}"


def _sum_of(tar: IndexedTar) -> str:
    with tar.path.open("rb") as file:
        return sha256_of_open(file)


# ----------------------------------------------------------------------------------------------------------- embeddings


def _check_embeddings(
    root: AnyPath, splits: Sequence[ShardSet], keys: Mapping[str, Keys], report: ShardReport, bar: tqdm
) -> None:
    """Verify a folder of embeddings, for the splits that it has."""
    try:
        stored, info = open_stored(root), read_info(root)
        taught = {name: read_split(root, info, split=name) for name in info["splits"]}
    except (ShardError, TeacherError) as error:
        report.problems.append(str(error))
        return
    report.embeddings += 1
    for shards in splits:
        entry = info["splits"].get(shards.split)
        if entry is None:
            bar.update(len(shards))
        elif tuple(entry.get("taught", ())) != shards.sha256:
            report.problems.append(f"{root}: was made from other shards of {shards.split!r} than these. {TEACH}")
            bar.update(len(shards))
        else:
            left_out = entry.get("left_out", {})
            _check_sidecars(stored, taught[shards.split], left_out, keys[shards.split], report=report, bar=bar)


def _check_sidecars(
    stored: StoredEmbeddings,
    taught: ShardSet,
    left_out: Collection[str],
    keys: Keys,
    *,
    report: ShardReport,
    bar: tqdm,
) -> None:
    for number, (filename, length) in enumerate(zip(taught.filenames, taught.lengths, strict=True)):
        path = stored.root / filename
        try:
            tar = stored.tar(filename)
        except (ShardError, OSError) as error:
            report.problems.append(_unreadable(path, error))
            bar.update(length)
            continue
        report.problems += _tar_problems(
            path, tar, taught.sha256[number] if taught.sha256 else None, length, advice=TEACH
        )
        if filename in keys:
            expected = {key for key in keys[filename] if f"{filename}/{key}" not in left_out}
            if strange := expected.symmetric_difference(tar.keys):
                report.problems.append(
                    f"{path}: has other keys than its shard, {len(strange)} differ, first {min(strange)!r}. {TEACH}"
                )
        for key in tar.keys:
            if fault := _embedding_problem(stored, filename, key):
                report.problems.append(f"{path}/{key}: {fault}. {TEACH}")
            bar.update()


def _embedding_problem(stored: StoredEmbeddings, filename: str, key: str) -> str | None:
    """Say what is wrong with the rows of a sample; None if nothing is."""
    try:
        with np.errstate(all="ignore"):  # a row of zeros in int8 becomes one that is not finite
            lengths = np.linalg.norm(stored.rows(filename, key).astype(np.float32), axis=-1)
    except KeyError:
        return "no embedding among its fields"
    except (ShardError, OSError) as error:
        return str(error).rstrip(".")
    if not np.isfinite(lengths).all():
        return f"not finite in {int((~np.isfinite(lengths)).sum())} of {len(lengths)} views"
    if (away := np.abs(lengths - 1)).max() > 0.01:
        count, worst = int((away > 0.01).sum()), lengths[away.argmax()]
        return f"no unit row in {count} of {len(lengths)} views, one has length {worst:.3g}"
    return None
