"""Subsets with so many images of each class, for "1 %" and "10 % of ImageNet" and the like: a pure function of (seed, keys).

The paper's are random too, but unseeded (13 and 128 images of each class of ImageNet, 60 of Caltech-256), so they can't be repeated.
Here a key's place is decided by a hash of seed and key: neither the order of the images nor the machine has a say, and of
two subsets with the same seed the smaller lies within the larger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import ShardError
from ..utils.files import fingerprint, write_json
from .index import ShardSet
from .tar import IndexedTar


def draw(keys: Iterable[str], count: int, *, seed: int = 0) -> list[str]:
    """`count` of the keys, sorted. Raises: ShardError where there are fewer."""
    keys = list(keys)
    if not 0 < count <= len(keys):
        raise ShardError(f"{count} of {len(keys)} images were asked for. Ask for 1 to {len(keys)}.")
    return sorted(
        sorted(keys, key=lambda key: hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=16).digest())[:count]
    )


def keys_by_class(shards: ShardSet) -> dict[int, list[str]]:
    """Label -> keys of its images, by label. Raises: ShardError for images without a label, and for a damaged shard."""
    classes: dict[int, list[str]] = {}
    for number in range(len(shards.filenames)):
        tar = IndexedTar(shards.path(number))
        if tar.damage:
            raise ShardError(f"{tar.path} is damaged ({tar.damage}). Repair it before a subset is drawn from it.")
        for key, fields in tar.samples.items():
            if "cls" not in fields:
                raise ShardError(
                    f"{tar.path} has no label (field cls) for {key!r}. Write the shards from class folders."
                )
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


@dataclass(frozen=True)
class Subset:
    """Keys of training images, by class."""

    classes: Mapping[str, tuple[str, ...]]
    rule: str  # how it was drawn, in words

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(key for keys in self.classes.values() for key in keys)

    @property
    def fingerprint(self) -> str:
        """Name of the set of keys, whatever rule drew them."""
        return fingerprint(sorted(self.keys))

    def __len__(self) -> int:
        return len(self.keys)

    def write(self, path: str | Path) -> None:
        """A JSON file, class -> keys, as `lgd-timm shards subset` writes it."""
        write_json(Path(path), {name: list(keys) for name, keys in self.classes.items()})


def draw_labels(
    keys: Sequence[str], labels: Tensor, *, fraction: float | None = None, per_class: int | None = None, seed: int = 0
) -> Subset:
    """That share of each class's images, rounded and at least one; or so many of each class.

    `labels` int64 [N] are those of `keys`. Raises: ShardError unless exactly one of `fraction` (above 0, at most 1) and
    `per_class` is given, for images without a label, and for a class with too few images.
    """
    if (fraction is None) == (per_class is None):
        raise ShardError("A subset is either a fraction of each class or so many images per class. Give one of them.")
    if fraction is not None and not 0 < fraction <= 1:
        raise ShardError(f"fraction = {fraction:g} is the share of each class's images: above 0, at most 1.")
    by_class: dict[int, list[str]] = {}
    for key, label in zip(keys, labels.tolist(), strict=True):
        by_class.setdefault(label, []).append(key)
    if not by_class or min(by_class) < 0:
        raise ShardError(
            "A subset is drawn by class, and there are images without a label. Write the shards from class folders."
        )
    classes = {}
    for label in sorted(by_class):
        count = per_class if fraction is None else max(1, round(fraction * len(by_class[label])))
        assert count is not None
        try:
            classes[str(label)] = tuple(draw(by_class[label], count, seed=seed))
        except ShardError as error:
            raise ShardError(f"class {label}: {error}") from error
    rule = f"{100 * fraction:g} % of each class" if fraction is not None else f"{per_class} of each class"
    return Subset(classes, f"{rule}, seed {seed}")


def read_subset(path: str | Path) -> Subset:
    """What `Subset.write` or `lgd-timm shards subset` wrote. Raises: ShardError for another file."""
    path = Path(path)
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(classes, dict)
        assert classes
        assert all(isinstance(keys, list) and all(isinstance(key, str) for key in keys) for keys in classes.values())
    except (OSError, ValueError, AssertionError) as error:
        raise ShardError(
            f"{path} can't be read as a subset, class -> keys ({error!r}). Write one with: lgd-timm shards subset"
        ) from error
    return Subset({name: tuple(keys) for name, keys in classes.items()}, f"the keys of {path.name}")


def positions(shards: ShardSet, subset: Subset) -> list[int]:
    """Where the subset's images stand in a split, in order. Raises: ShardError for a key that the split does not have."""
    wanted, found, start = subset.keys, [], 0
    missing = set(wanted)
    for number, length in enumerate(shards.lengths):
        for place, key in enumerate(IndexedTar(shards.path(number)).keys):
            if key in wanted:
                found.append(start + place)
                missing.discard(key)
        start += length
    check_there(missing, subset, where=f"{shards.root} ({shards.split})")
    return found


def check_there(missing: set[str], subset: Subset, *, where: str) -> None:
    """Raises: ShardError where keys of the subset are missing."""
    if missing:
        raise ShardError(
            f"{where} lacks {len(missing)} of the subset's {len(subset)} keys, first {min(missing)!r}. Is it of other shards?"
        )
