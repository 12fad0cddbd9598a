"""Zero-shot classification: the name whose text is most similar wins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.task.evaluator import ClassificationEvaluator
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm

from ..data import Views
from ..data.dataset import BadSamples, Batch, ShardDataset
from ..data.loader import loader
from ..data.samplers import SequentialSampler
from ..data.stored_embeddings import find_stored
from ..errors import LGDError, ShardError, VocabularyError
from ..utils.distributed import Ranks


@dataclass(frozen=True)
class ZeroShot:
    """Accuracies in percent over `samples` labelled images."""

    top1: float
    top5: float
    chance: float
    samples: int
    bad: int  # images that could not be read and do not count
    per_class: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} % of {self.samples} images (chance {self.chance:.2f} %)"


def zero_shot_classifier(encoder: nn.Module, text_bank: Tensor) -> Callable[[Batch], Tensor]:
    """Any module that maps raw pixels to embeddings [B, D], and a bank [C, D] -> function from Batch to logits [B, C]."""

    def classify(batch: Batch) -> Tensor:
        return normalize(encoder(batch.images).float(), dim=1) @ text_bank.T.to(batch.images.device)

    return classify


def stored_classifier(text_bank: Tensor) -> Callable[[Batch], Tensor]:
    """The same from stored teacher embeddings: the teacher's own score without the teacher."""

    def classify(batch: Batch) -> Tensor:
        assert batch.embeddings is not None
        return normalize(batch.embeddings.float(), dim=1) @ text_bank.T.to(batch.images.device)

    return classify


def with_stored_embeddings(dataset: ShardDataset, *, views: Views | None, teacher: str) -> ShardDataset | None:
    """The same images with the stored embeddings of that teacher (see `find_stored`), or None where none are stored."""
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
    """Score `classify` on every labelled image exactly once, whichever of the `ranks` reads it; all of them return the same.

    `names[i]` is the name of label i. Raises: ShardError when images have no labels, VocabularyError when there are
    more labels than names.
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
        tally.add(classify(batch), batch.labels)
    tallies = ranks.gather({ranks.rank: (tally.counts, bad.reasons)})
    for number, (counts, reasons) in tallies.items():
        if number != ranks.rank:
            tally.add_counts(counts)
            bad.add(tuple(reasons.items()))
    return tally.score(bad=len(bad.reasons))


class Tally:
    """Counts right answers, in all and a name, batch by batch."""

    def __init__(self, names: Sequence[str], *, device: torch.device | str = "cpu") -> None:
        self._names, self._evaluator = tuple(names), ClassificationEvaluator(device)
        self._hits = torch.zeros(len(names), dtype=torch.int64, device=device)
        self._totals = torch.zeros_like(self._hits)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Logits [B, C], labels int64 [B], each the place of a name."""
        self._evaluator.update(logits, labels)
        correct = logits.argmax(1) == labels
        self._hits += torch.bincount(labels[correct], minlength=len(self._names))
        self._totals += torch.bincount(labels, minlength=len(self._names))

    @property
    def counts(self) -> list[list[int]]:
        """What was counted so far, as `add_counts` takes it from another rank."""
        return [self._evaluator.counts.tolist(), self._hits.tolist(), self._totals.tolist()]

    def add_counts(self, counts: Sequence[Sequence[int]]) -> None:
        for mine, theirs in zip((self._evaluator.counts, self._hits, self._totals), counts, strict=True):
            mine.add_(torch.tensor(theirs, device=mine.device))

    def score(self, *, bad: int) -> ZeroShot:
        """Of all that was added; `bad` images more could not be read."""
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
    """The same batches, with a bar."""
    with tqdm(total=total, unit="img", desc=description, disable=silent or None) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.keys))


def check_labels(batch: Batch, names: Sequence[str], dataset: ShardDataset) -> None:
    """Each label needs to be there and to have a name. Raises: ShardError, VocabularyError."""
    if not batch.keys:  # none could be read, which is counted elsewhere
        return
    if batch.labels.min() < 0:
        raise ShardError(
            f"{dataset.shards.root} ({dataset.shards.split}) has images without a label; evaluation needs field cls. "
            "Write the shards from class folders."
        )
    if batch.labels.max() >= len(names):
        raise VocabularyError(
            f"{dataset.shards.root} ({dataset.shards.split}) has label {int(batch.labels.max())}, the vocabulary only {len(names)} names. "
            "Give the names of these classes, in the order of their labels."
        )


def check_class_count(
    dataset: ShardDataset,
    names: Sequence[str],
    *,
    where: str,
    asked: str,
    advice: str,
    error: type[LGDError] = VocabularyError,
) -> None:
    """Shards that name their classes need as many names: too few may not be noticed at the first label, and too many never.

    Raises: `error`, which says `where` the classes are, who is `asked` about the names, and `advice`.
    """
    classes = dataset.shards.class_names
    if classes and len(classes) != len(names):
        raise error(
            f"{where} has {len(classes)} classes, {asked} {len(names)} names, so scores would mean nothing. {advice}"
        )
