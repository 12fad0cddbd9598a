"""Classify images zero-shot: the answer is the name whose text embedding is most similar to the image's embedding."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.task.evaluator import ClassificationEvaluator
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..data import Views
from ..data.dataset import BadSamples, Batch, ShardDataset
from ..data.index import ShardSet
from ..data.loader import loader
from ..data.samplers import SequentialSampler
from ..data.stored_embeddings import find_stored
from ..data.vocabulary import class_order, misplaced, names_as_classes
from ..errors import ShardError, VocabularyError, WeightsError
from ..utils.distributed import Ranks
from ..utils.progress import progress_bar

log = logging.getLogger(__name__)

FEW_CLASSES = 10.0  # percent: chance among ten classes


@dataclass(frozen=True)
class ZeroShot:
    """Zero-shot accuracies in percent.

    Attributes:
        top1: share of images whose label is the first answer.
        top5: share of images whose label is among the first five answers.
        chance: 100 / number of names.
        samples: labelled images that were scored.
        bad: images that could not be read, which do not count.
        per_class: top-1 of each name that has images.
    """

    top1: float
    top5: float
    chance: float
    samples: int
    bad: int
    per_class: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Give the attributes as plain data, as metrics.json holds them."""
        return asdict(self)

    def __str__(self) -> str:
        shares = accuracies(self.top1, self.top5, chance=self.chance)
        return f"{shares} of {self.samples} images (chance {self.chance:.2f} %)"

    @property
    def no_better_than_chance(self) -> bool:
        """Whether guessing might do as well: top-1 is not two standard deviations of guessing above chance."""
        share = self.chance / 100
        return self.top1 / 100 <= share + 2 * math.sqrt(share * (1 - share) / max(1, self.samples))


def accuracies(top1: float, top5: float, *, chance: float) -> str:
    """Spell accuracies in percent; without top-5 where there are fewer than ten classes, of which five say little."""
    return f"top-1 {top1:.2f} %" + (f", top-5 {top5:.2f} %" if chance <= FEW_CLASSES else "")


def warn_of_weak_teacher(score: ZeroShot | None) -> None:
    """Log loudly that a teacher can't teach these names, where its score says so."""
    if score is not None and score.no_better_than_chance:
        log.warning(
            "THE TEACHER IS NO BETTER THAN CHANCE here (%s), so a student can't learn these names from it. Try prompt "
            "templates (vocabulary.templates: openai), plainer names in their language, or another teacher.",
            score,
        )


def zero_shot_classifier(encoder: nn.Module, text_bank: Tensor) -> Callable[[Batch], Tensor]:
    """Build a classifier from an image encoder.

    Args:
        encoder: uint8 images [B, 3, H, W] -> embeddings [B, D].
        text_bank: the names' embeddings, float32 [C, D], of length 1.

    Returns:
        A function from `Batch` to logits float32 [B, C], which are cosines.
    """

    def classify(batch: Batch) -> Tensor:
        return normalize(encoder(batch.images).float(), dim=1) @ text_bank.T.to(batch.images.device)

    return classify


def stored_classifier(text_bank: Tensor) -> Callable[[Batch], Tensor]:
    """Build the teacher's classifier from its stored embeddings (`Batch.embeddings`), so that no teacher is run."""

    def classify(batch: Batch) -> Tensor:
        assert batch.embeddings is not None
        return normalize(batch.embeddings.float(), dim=1) @ text_bank.T.to(batch.images.device)

    return classify


def with_stored_embeddings(dataset: ShardDataset, *, views: Views | None, teacher: str) -> ShardDataset | None:
    """Add a teacher's stored embeddings to a dataset.

    Args:
        dataset: images that the teacher may have embedded.
        views: those that are wanted; None: unaugmented ones, of whichever size is stored (see `find_stored`).
        teacher: the teacher's fingerprint.

    Returns:
        The same images, each batch with `embeddings`; None where none are stored.
    """
    stored = find_stored(dataset.shards, views=views, teacher=teacher)
    return (
        None
        if stored is None
        else ShardDataset(dataset.shards, views=views or stored.views, stored=stored, allow_empty=True)
    )


@torch.no_grad()
def zero_shot(
    classify: Callable[[Batch], Tensor],
    dataset: ShardDataset,
    *,
    names: Sequence[str],
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str = "cpu",
    max_bad: float = 0.001,
    description: str = "zero-shot",
    ranks: Ranks | None = None,
) -> ZeroShot:
    """Score a classifier on every image of a labelled dataset, exactly once.

    Args:
        classify: a batch -> logits [B, C], as of `zero_shot_classifier`.
        dataset: unaugmented images.
        names: the name of each label, C of them.
        batch_size: images a step.
        workers: processes that load images; 0: this one.
        device: where batches are moved to.
        max_bad: share of the images that may be unreadable.
        description: of the progress bar.
        ranks: processes that share the images; all of them return the same.

    Returns:
        The accuracies.

    Raises:
        ShardError: images have no labels, or too many can't be read.
        VocabularyError: there are more labels than names.
        WeightsError: logits are not finite.
    """
    device, ranks = torch.device(device), ranks or Ranks()
    tally, bad = Tally(names, device=device), BadSamples(max_bad, size=len(dataset))
    positions = ranks.share(range(len(dataset)))
    batches = loader(dataset, SequentialSampler(positions, batch_size), workers=workers)
    for read in progress(batches, description, len(positions), silent=not ranks.first):
        bad.add(read.bad)
        if not read.keys:
            continue
        check_labels(read, names, dataset)
        batch = read.to(device)
        logits = classify(batch)
        if not logits.isfinite().all():
            raise WeightsError(
                f"{description}: the model's answers are not finite (NaN or infinite). Its training diverged, or its "
                "weights are damaged: take an earlier checkpoint."
            )
        tally.add(logits, batch.labels)
    tallies = ranks.gather({ranks.rank: (tally.counts, bad.reasons)})
    for number, (counts, reasons) in tallies.items():
        if number != ranks.rank:
            tally.add_counts(counts)
            bad.add(tuple(reasons.items()))
    return tally.score(bad=len(bad.reasons))


class Tally:
    """Count right answers batch by batch, in all and for each name."""

    def __init__(self, names: Sequence[str], *, device: torch.device | str = "cpu") -> None:
        self._names, self._evaluator = tuple(names), ClassificationEvaluator(device)
        self._hits = torch.zeros(len(names), dtype=torch.int64, device=device)
        self._totals = torch.zeros_like(self._hits)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits [B, C], and labels int64 [B], each an index of a name."""
        self._evaluator.update(logits, labels)
        correct = logits.argmax(1) == labels
        self._hits += torch.bincount(labels[correct], minlength=len(self._names))
        self._totals += torch.bincount(labels, minlength=len(self._names))

    @property
    def counts(self) -> list[list[int]]:
        """Give what was counted so far, for `add_counts` of another rank."""
        return [self._evaluator.counts.tolist(), self._hits.tolist(), self._totals.tolist()]

    def add_counts(self, counts: Sequence[Sequence[int]]) -> None:
        """Add what another rank counted."""
        for mine, theirs in zip((self._evaluator.counts, self._hits, self._totals), counts, strict=True):
            mine.add_(torch.tensor(theirs, device=mine.device))

    def score(self, *, bad: int) -> ZeroShot:
        """Compute the accuracies over all that was added; `bad` more images could not be read."""
        summary, totals = self._evaluator.compute(), self._totals.tolist()
        shares = (100 * self._hits / self._totals).tolist()
        return ZeroShot(
            top1=summary["top1"],
            top5=summary["top5"],
            chance=100 / len(self._names),
            samples=sum(totals),
            bad=bad,
            per_class={name: share for name, share, total in zip(self._names, shares, totals, strict=True) if total},
        )


def progress(batches: Iterable[Batch], description: str, total: int, *, silent: bool = False) -> Iterable[Batch]:
    """Pass batches through, with a progress bar that counts images up to `total`."""
    with progress_bar(total=total, unit="img", desc=description, disable=silent) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.keys))


def check_labels(batch: Batch, names: Sequence[str], dataset: ShardDataset) -> None:
    """Check that each image of a batch has a label, and each label a name.

    Raises:
        ShardError: an image has no label.
        VocabularyError: a label has no name.
    """
    if not batch.keys:  # none could be read; `BadSamples` counts that
        return
    if batch.labels.min() < 0:
        raise ShardError(
            f"{dataset.shards.root} ({dataset.shards.split}) has images without a label; evaluation needs field cls. "
            "Write the shards from class folders."
        )
    if batch.labels.max() >= len(names):
        raise VocabularyError(
            f"{dataset.shards.root} ({dataset.shards.split}) has label {int(batch.labels.max())}, the vocabulary only "
            f"{len(names)} names. Give the names of these classes, in the order of their labels."
        )


class ClassCountError(VocabularyError):
    """Shards have another number of classes than there are names. Callers add where the names come from."""

    def __init__(self, *, classes: int, names: int) -> None:
        super().__init__(f"{classes} classes and {names} names do not fit. Give a name for each class, in their order.")
        self.classes, self.names = classes, names


def match_classes(shards: ShardSet, names: Sequence[str]) -> list[int] | None:
    """Check names against the classes that shards name, and find each class's name where they stand in another order.

    The labels do not show it: with too few names the first labels may fit, with too many all do, and in another order
    all do. Where names and classes differ, the pairs that will be used are logged.

    Args:
        shards: whose labels count.
        names: one for each label, or those of the classes in another order.

    Returns:
        For each class the index of its name, where they stand in another order, which is logged; else None.

    Raises:
        ClassCountError: there are more or fewer names than classes.
    """
    classes, where = shards.class_names, f"{shards.root} ({shards.split})"
    if not classes:
        return None
    if len(classes) != len(names):
        raise ClassCountError(classes=len(classes), names=len(names))
    if order := class_order(names, classes):
        log.warning(
            "The names are the classes of %s in another order, so each class takes the name that it equals: %s.",
            where,
            _pairs(classes, [names[number] for number in order]),
        )
        return order
    if wrong := misplaced(names, classes):
        log.warning(
            "Check the names' order: %s of %s%s.", wrong[0], where, f", and {len(wrong) - 1} more" if wrong[1:] else ""
        )
    if not names_as_classes(names, classes):
        log.info("classes of %s = names: %s", where, _pairs(classes, names))
    return None


def _pairs(classes: Sequence[str], names: Sequence[str]) -> str:
    shown = [f"{number} {one} = {other}" for number, (one, other) in enumerate(zip(classes, names, strict=True))]
    return ", ".join(shown[:8]) + (f", and {len(shown) - 8} more" if len(shown) > 8 else "")
