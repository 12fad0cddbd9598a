"""Draw subsets of a split by class: "1 %" or "10 % of ImageNet" and the like, a pure function of (seed, keys).

The paper's subsets are random too (13 and 128 images of each class of ImageNet, 60 of Caltech-256), but without a seed,
so they can't be repeated. Here keys are ranked by a hash of seed and key: neither the order of the images nor the
machine matters, and of two subsets with the same seed the smaller lies within the larger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ShardError
from ..utils.files import fingerprint, write_json
from ..utils.typed_json import JSONError, read_json
from .index import ShardSet
from .tar import IndexedTar


def draw(keys: Iterable[str], count: int, *, seed: int = 0) -> list[str]:
    """Draw `count` of the keys, sorted. Raises: ShardError where there are fewer."""
    keys = list(keys)
    if not 0 < count <= len(keys):
        raise ShardError(f"{count} of {len(keys)} images were asked for. Ask for 1 to {len(keys)}.")
    return sorted(
        sorted(
            keys,
            key=lambda key: hashlib.blake2b(f"{seed}/{key}".encode(errors="surrogatepass"), digest_size=16).digest(),
        )[:count]
    )


def keys_by_class(shards: ShardSet) -> dict[int, list[str]]:
    """Read label -> keys, sorted by label. Raises: ShardError for an image without a label, and for a damaged shard."""
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


def labelled_keys(shards: ShardSet) -> tuple[list[str], Tensor]:
    """Read the keys of a split and their labels, int64 [N], as `draw_labels` takes them. Raises: as `keys_by_class`."""
    classes = keys_by_class(shards)
    labels = [label for label, keys in classes.items() for _ in keys]
    return [key for keys in classes.values() for key in keys], torch.tensor(labels, dtype=torch.int64)


@dataclass(frozen=True)
class Subset:
    """Keys of training images, by class."""

    classes: Mapping[str, tuple[str, ...]]
    rule: str  # how they were drawn, in words

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(key for keys in self.classes.values() for key in keys)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over the keys, whatever rule drew them."""
        return fingerprint(sorted(self.keys))

    def __len__(self) -> int:
        return len(self.keys)

    def write(self, path: str | Path) -> None:
        """A JSON file, class -> keys, as `lgd-timm shards subset` writes it."""
        write_json(Path(path), {name: list(keys) for name, keys in self.classes.items()})


def draw_labels(
    keys: Sequence[str],
    labels: Tensor,
    *,
    fraction: float | None = None,
    per_class: int | None = None,
    seed: int = 0,
    class_names: Sequence[str] = (),
) -> Subset:
    """Draw a share of each class's images, or so many of each class. `.write(path)` makes a file of it.

    Args:
        keys: of the images.
        labels: their labels, int64 [N].
        fraction: share of each class, above 0 and at most 1; rounded, and at least one image.
        per_class: images of each class. Exactly one of this and `fraction` is given.
        seed: of the draw.
        class_names: by label, what the classes are called in the subset; by their labels where a name is missing.

    Raises:
        ShardError: neither or both of `fraction` and `per_class` are given, `fraction` is out of its range, an image
            has no label, or a class has too few images.
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
        named = label < len(class_names)
        count = per_class if fraction is None else max(1, round(fraction * len(by_class[label])))
        assert count is not None
        try:
            drawn = tuple(draw(by_class[label], count, seed=seed))
        except ShardError as error:
            raise ShardError(f"class {repr(class_names[label]) if named else label}: {error}") from error
        classes[class_names[label] if named else str(label)] = drawn
    rule = f"{100 * fraction:g} % of each class" if fraction is not None else f"{per_class} of each class"
    return Subset(classes, f"{rule}, seed {seed}")


def read_subset(path: str | Path) -> Subset:
    """What `Subset.write` or `lgd-timm shards subset` wrote. Raises: ShardError for another file."""
    path = Path(path)
    try:
        classes: dict[str, list[str]] = read_json(path, dict[str, list[str]])
        if not classes:
            raise JSONError("it has no class")
    except (OSError, JSONError) as error:
        raise ShardError(
            f"{path} can't be read as a subset, class -> keys ({error}). Write one with: lgd-timm shards subset"
        ) from error
    return Subset({name: tuple(keys) for name, keys in classes.items()}, f"the keys of {path.name}")


def positions(shards: ShardSet, subset: Subset) -> list[int]:
    """Find the positions of a subset's images in a split, in order. Raises: ShardError for a key that it lacks."""
    wanted, found, start = subset.keys, [], 0
    missing = set(wanted)
    for number, length in enumerate(shards.lengths):
        for index, key in enumerate(IndexedTar(shards.path(number)).keys):
            if key in wanted:
                found.append(start + index)
                missing.discard(key)
        start += length
    check_keys_found(missing, subset, where=f"{shards.root} ({shards.split})")
    return found


def check_keys_found(missing: set[str], subset: Subset, *, where: str) -> None:
    """Refuse a subset of which keys are missing. Raises: ShardError."""
    if missing:
        raise ShardError(
            f"{where} lacks {len(missing)} of the subset's {len(subset)} keys, first {min(missing)!r}. "
            "Is it of other shards?"
        )
