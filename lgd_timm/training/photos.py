"""Look into an image folder before a distillation: names, sizes, and which images are held out for the evaluation."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.decode import image_size
from ..data.image_folder import ImageFolder, describe, read_image_folder
from ..data.subset import draw
from ..data.vocabulary import Vocabulary, class_order, load_vocabulary, names_as_classes
from ..errors import ShardError, VocabularyError
from ..utils.files import fingerprint

log = logging.getLogger(__name__)

SAMPLE = 400  # images whose sizes are read
HELD_OUT = 0.2  # share of each class's images that only the evaluation sees
MOST_HELD_OUT = 2000  # images: more do not make a score much surer


@dataclass(frozen=True)
class Photos:
    """What an image folder holds.

    Attributes:
        root: the folder.
        train: paths of the images that can be learned from, sorted.
        val: of those held out; none where there are no labels to evaluate by.
        vocabulary: the names.
        labelled: whether the class folders are the names' labels.
        side: short side of the images in pixels, the median of `SAMPLE`.
        fingerprint: 16 hexadecimal digits over all paths, sizes and times of change.
    """

    root: Path
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    vocabulary: Vocabulary
    labelled: bool
    side: int
    fingerprint: str

    def sample(self, count: int) -> list[Path]:
        """Draw training images, the same at each call, in an order without meaning."""
        return chosen(self.train, count, root=self.root)


def read_photos(root: Path, *, names: str | Sequence[str] | None, templates: str | Sequence[str]) -> Photos:
    """Look into an image folder, and log what is there.

    Args:
        root: the folder, with one folder a class, or flat.
        names: a vocabulary source; None: the class folders' names, underscores as spaces.
        templates: the vocabulary's.

    Raises:
        ShardError: the folder holds no images.
        VocabularyError: the names can't be read, or there are neither names nor class folders.
    """
    found = read_image_folder(root)
    if not found.images:
        raise ShardError(f"{root} holds no images ({describe(found.passed_over) or 'nothing'}). Give another folder.")
    vocabulary = _vocabulary(found, names, templates)
    labelled = found.loose is None and _are_labels(found.class_names, vocabulary.names)
    val = held_out(found) if labelled else set()
    skipped = f"; passed over: {describe(found.passed_over)}" if found.passed_over else ""
    side = _median_side(chosen(found.images, SAMPLE, root=root))
    log.info("images: %d in %s, short side %d px (median)%s", len(found.images), root, side, skipped)
    _report_names(found, vocabulary, labelled=labelled, val=len(val))
    return Photos(
        root,
        tuple(path for path in found.images if path not in val),
        tuple(sorted(val)),
        vocabulary,
        labelled,
        side,
        _fingerprint(found),
    )


def held_out(found: ImageFolder) -> set[Path]:
    """Choose the images that only the evaluation sees: a share of each class, by hashes of their paths.

    A class keeps at least one image to learn from.
    """
    share = min(HELD_OUT, MOST_HELD_OUT / len(found.images))
    classes: dict[str, list[Path]] = {name: [] for name in found.class_names}
    for path in found.images:
        classes[path.relative_to(found.root).parts[0]].append(path)
    counts = {name: min(len(paths) - 1, max(1, round(share * len(paths)))) for name, paths in classes.items()}
    return {path for name, paths in classes.items() for path in chosen(paths, counts[name], root=found.root)}


def chosen(paths: Iterable[Path], count: int, *, root: Path) -> list[Path]:
    """Draw `count` of the paths, or all where there are fewer: a function of their names below `root` alone."""
    by_key = {path.relative_to(root).as_posix(): path for path in paths}
    count = min(count, len(by_key))
    return [by_key[key] for key in draw(by_key, count)] if count else []


def _vocabulary(found: ImageFolder, names: str | Sequence[str] | None, templates: str | Sequence[str]) -> Vocabulary:
    if names is not None:
        return load_vocabulary(names, templates=templates)
    if not found.class_names or found.loose is not None:
        reason = f"loose images such as {found.loose.name}" if found.loose is not None else "no class folders"
        raise VocabularyError(
            f"{found.root} has {reason}, so nothing says which names to learn. Give them: --names names.txt."
        )
    return load_vocabulary(f"folder:{found.root}", templates=templates)


def _are_labels(classes: Sequence[str], names: Sequence[str]) -> bool:
    """Tell whether class folders are the names, in this order or another."""
    return bool(classes) and (names_as_classes(names, classes) or class_order(names, classes) is not None)


def _report_names(found: ImageFolder, vocabulary: Vocabulary, *, labelled: bool, val: int) -> None:
    shown = ", ".join(vocabulary.names[:8]) + (", ..." if len(vocabulary) > 8 else "")
    log.info("names: %d (%s)", len(vocabulary), shown)
    if labelled:
        log.info(
            "evaluation: on %d images that are held out, a share of each class folder; labels are used here alone", val
        )
    else:
        what = "the class folders are not these names" if found.class_names else "there are no class folders"
        log.info("evaluation: none, as %s", what)


def _median_side(paths: Iterable[Path]) -> int:
    sides = []
    for path in paths:
        try:
            sides.append(min(image_size(path)))
        except ShardError:  # left out, with its reason, when the shards are written
            continue
    if not sides:
        raise ShardError("None of the images can be opened. Give another folder.")
    return int(statistics.median(sides))


def _fingerprint(found: ImageFolder) -> str:
    facts = [(path, path.stat()) for path in found.images if path.exists()]
    return fingerprint([(path.relative_to(found.root).as_posix(), s.st_size, s.st_mtime_ns) for path, s in facts])
