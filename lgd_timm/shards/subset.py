"""Subsets with so many images of each class, for "1 %" and "10 % of ImageNet" and the like: a pure function of (seed, keys).

The paper's are random too, but unseeded (13 and 128 images of each class of ImageNet, 60 of Caltech-256), so they can't be repeated.
Here a key's place is decided by a hash of seed and key: neither the order of the images nor the machine has a say, and of
two subsets with the same seed the smaller lies within the larger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ..errors import ShardError
from ..files import write_json
from .index import IndexedTar, ShardSet


def draw(keys: Iterable[str], count: int, *, seed: int = 0) -> list[str]:
    """`count` of the keys, sorted. Raises: ShardError where there are fewer."""
    keys = list(keys)
    if not 0 < count <= len(keys):
        raise ShardError(f"{count} of {len(keys)} images were asked for. Ask for 1 to {len(keys)}.")
    return sorted(sorted(keys, key=lambda key: hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=16).digest())[:count])


def keys_by_class(shards: ShardSet) -> dict[int, list[str]]:
    """Label -> keys of its images, by label. Raises: ShardError for images without a label, and for a damaged shard."""
    classes: dict[int, list[str]] = {}
    for number in range(len(shards.filenames)):
        tar = IndexedTar(shards.path(number))
        if tar.damage:
            raise ShardError(f"{tar.path} is damaged ({tar.damage}). Repair it before a subset is drawn from it.")
        for key, fields in tar.samples.items():
            if "cls" not in fields:
                raise ShardError(f"{tar.path} has no label (field cls) for {key!r}. Write the shards from class folders.")
            classes.setdefault(int(tar.read(key, "cls")), []).append(key)
    return dict(sorted(classes.items()))


def draw_subset(shards: ShardSet, *, per_class: int, seed: int = 0) -> dict[str, list[str]]:
    """Class -> `per_class` of its keys. A class is called by its folder, or by its label where shards don't say.

    Raises: ShardError for a class of fewer images, and as `keys_by_class`.
    """
    subset = {}
    for label, keys in keys_by_class(shards).items():
        name = shards.class_names[label] if label < len(shards.class_names) else str(label)
        try:
            subset[name] = draw(keys, per_class, seed=seed)
        except ShardError as error:
            raise ShardError(f"class {name!r} of {shards.root} ({shards.split}): {error}") from error
    return subset


def write_subset(shards: ShardSet, out: str | Path, *, per_class: int, seed: int = 0) -> int:
    """Write `draw_subset` as JSON, which `evaluate linear-probe --subset` reads. Returns the number of images. Raises: as `draw_subset`."""
    subset = draw_subset(shards, per_class=per_class, seed=seed)
    write_json(Path(out), subset)
    return sum(map(len, subset.values()))
