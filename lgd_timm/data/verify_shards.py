"""Is a set of shards what its index says? Every tar is read whole: its sum, its samples, and the embeddings that stand beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import LGDError, ShardError, TeacherError
from ..utils.files import sha256_of
from .decode import EncodedImage
from .index import IMAGE_FIELDS, ShardSet, read_info, read_split
from .paths import Place, resolve_path
from .stored_embeddings import TEACHER, StoredEmbeddings, open_stored
from .tar import IndexedTar

Keys = dict[str, tuple[str, ...]]  # of the tars that could be read, by file name

COPY, TEACH = "Copy it again, or write the shards anew.", "Remove it and run lgd-timm teach again."


@dataclass
class Found:
    """What there is, and one line for each problem: what, why, what to do."""

    samples: int = 0
    shards: int = 0
    embeddings: int = 0  # folders of them
    unsummed: bool = False  # the index has no sha256 sums, as timm's writer leaves them out
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = f"{self.samples} images in {_count(self.shards, 'shard')}"
        if self.embeddings:
            what += f", {_count(self.embeddings, 'folder')} of embeddings"
        unsummed = " Bytes were not compared: the index has no sha256 sums." if self.unsummed else ""
        return f"{what}: {_count(len(self.problems), 'problem') if self.problems else 'all right'}.{unsummed}"


def check_shards(
    root: str | Place, *, split: str | None = None, decode: bool = False, embeddings: Sequence[str | Place] = ()
) -> Found:
    """Check every split, or one, and the embeddings beside the shards and at other places; what an address names is fetched.

    Images are opened, which reads their headers, and with `decode` decoded whole. Beside an address no embeddings are found, since
    servers list no folders: name them. Raises: ShardError where there is no index to check against.
    """
    root = resolve_path(root)
    info = read_info(root)
    splits = [read_split(root, info, split=name) for name in (info["splits"] if split is None else [split])]
    if any("taught" in info["splits"][shards.split] for shards in splits):
        raise ShardError(f"{root} holds a teacher's embeddings, and no images. Verify the shards that they are of.")
    folders = [*_beside(root), *map(resolve_path, embeddings)]
    found = Found(unsummed=not all(shards.sha256 for shards in splits))
    with tqdm(total=sum(map(len, splits)) * (1 + len(folders)), unit="img", desc="verify", disable=None) as bar:
        keys = {shards.split: _check_split(shards, found, bar, decode=decode) for shards in splits}
        for folder in folders:
            _check_embeddings(folder, splits, keys, found, bar)
    return found


def _beside(root: Place) -> list[Path]:
    return [path.parent for path in sorted(root.glob(f"*/{TEACHER}"))] if isinstance(root, Path) else []


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# ------------------------------------------------------------------------------------------------------------------ shards


def _check_split(shards: ShardSet, found: Found, bar: tqdm, *, decode: bool) -> Keys:
    """Returns the keys of its shards."""
    keys: Keys = {}
    first: dict[str, str] = {}  # key -> the first shard that has it
    found.shards += len(shards.filenames)
    for number, filename in enumerate(shards.filenames):
        where = shards.root / filename
        try:
            tar = IndexedTar(shards.path(number))
        except (ShardError, OSError) as error:
            found.problems.append(_absent(where, error))
            bar.update(shards.lengths[number])
            continue
        found.problems += _tar_faults(
            where, tar, shards.sha256[number] if shards.sha256 else None, shards.lengths[number], advice=COPY
        )
        found.samples += len(tar.keys)
        keys[filename] = tar.keys
        for key in tar.keys:
            if (twin := first.setdefault(key, filename)) != filename:
                found.problems.append(
                    f"{where}/{key}: {twin} has that key too, and it names one sample. Write the shards anew."
                )
            try:
                _check_sample(tar, key, class_names=shards.class_names, decode=decode)
            except (OSError, ValueError) as error:
                found.problems.append(
                    f"{where}/{key}: {error}. Write the shards anew without it, or leave it to data.max_bad."
                )
            bar.update()
    return keys


def _check_sample(tar: IndexedTar, key: str, *, class_names: Sequence[str], decode: bool) -> None:
    """Raises: ShardError, OSError, and ValueError for a label that is no number."""
    fields = tar.samples[key]
    image = next((name for name in IMAGE_FIELDS if name in fields), None)
    if image is None:
        raise ShardError(f"no image among its fields ({', '.join(fields)})")
    picture = EncodedImage(tar.read(key, image))
    if decode:
        picture.crop((0, 0, picture.height, picture.width))
    label = int(tar.read(key, "cls")) if "cls" in fields else 0
    if label < 0 or (class_names and label >= len(class_names)):
        raise ShardError(f"label {label}, where there are {len(class_names)} classes")


def _absent(where: Place, error: Exception) -> str:
    if isinstance(error, LGDError):  # of an address, which says all
        return str(error)
    return f"{where}: can't be read ({error}). Copy it here."


def _tar_faults(where: Place, tar: IndexedTar, sha256: str | None, length: int, *, advice: str) -> Iterator[str]:
    """How a tar differs from what its index says."""
    if sha256 is not None and (actual := sha256_of(tar.path)) != sha256:
        remedy = advice if where == tar.path else f"It went wrong in the cache: remove {tar.path}."
        yield f"{where}: should have sha256 {sha256}, but has {actual}. {remedy}"
    if tar.damage:
        yield f"{where}: the tar is damaged ({tar.damage}) and holds {len(tar.keys)} of {length} samples. {advice}"
    elif len(tar.keys) != length:
        yield f"{where}: holds {len(tar.keys)} samples, its index says {length}. {advice}"


# -------------------------------------------------------------------------------------------------------------- embeddings


def _check_embeddings(
    root: Place, splits: Sequence[ShardSet], keys: Mapping[str, Keys], found: Found, bar: tqdm
) -> None:
    """Those of the splits that were taught there."""
    try:
        stored, taught = open_stored(root), read_info(root)["splits"]
    except (ShardError, TeacherError) as error:
        found.problems.append(str(error))
        return
    found.embeddings += 1
    for shards in splits:
        entry = taught.get(shards.split)
        if entry is None:
            bar.update(len(shards))
        elif tuple(entry["taught"]) != shards.sha256:
            found.problems.append(f"{root}: was made from other shards of {shards.split!r} than these. {TEACH}")
            bar.update(len(shards))
        else:
            _check_sidecars(stored, entry, keys[shards.split], found, bar)


def _check_sidecars(stored: StoredEmbeddings, entry: Mapping[str, Any], keys: Keys, found: Found, bar: tqdm) -> None:
    for number, (filename, length) in enumerate(zip(entry["filenames"], entry["shard_lengths"], strict=True)):
        where = stored.root / filename
        try:
            tar = stored.tar(filename)
        except (ShardError, OSError) as error:
            found.problems.append(_absent(where, error))
            bar.update(length)
            continue
        found.problems += _tar_faults(where, tar, entry["sha256"][number], length, advice=TEACH)
        if filename in keys:
            expected = {key for key in keys[filename] if f"{filename}/{key}" not in entry["left_out"]}
            if strange := expected.symmetric_difference(tar.keys):
                found.problems.append(
                    f"{where}: has other keys than its shard, {len(strange)} differ, first {min(strange)!r}. {TEACH}"
                )
        for key in tar.keys:
            if fault := _embedding_fault(stored, filename, key):
                found.problems.append(f"{where}/{key}: {fault}. {TEACH}")
            bar.update()


def _embedding_fault(stored: StoredEmbeddings, filename: str, key: str) -> str | None:
    """What is wrong with the rows of a sample."""
    try:
        with np.errstate(all="ignore"):  # of a row of zeros in int8, which then is not finite
            lengths = np.linalg.norm(stored.rows(filename, key).astype(np.float32), axis=-1)
    except KeyError:
        return "no embedding among its fields"
    except (ShardError, OSError) as error:
        return str(error).rstrip(".")
    if not np.isfinite(lengths).all():
        return f"not finite in {int((~np.isfinite(lengths)).sum())} of {len(lengths)} views"
    if (away := np.abs(lengths - 1)).max() > 0.01:
        return f"no unit row in {int((away > 0.01).sum())} of {len(lengths)} views, one has length {lengths[away.argmax()]:.3g}"
    return None
