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

from ..errors import ShardError, VocabularyError
from ..shards import Views
from ..shards.read import BadSamples, Batch, InOrder, ShardDataset, loader
from ..shards.stored import find_stored


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


def taught(dataset: ShardDataset, *, views: Views | None, teacher: str) -> ShardDataset | None:
    """The same images with the stored embeddings of that teacher (see `find_stored`), or None where none are stored."""
    stored = find_stored(dataset.shards, views=views, teacher=teacher)
    return None if stored is None else ShardDataset(dataset.shards, views=views or stored.views, stored=stored, allow_empty=True)


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
) -> ZeroShot:
    """Score `classify` on every labelled image exactly once.

    `names[i]` is the name of label i. Raises: ShardError when images have no labels, VocabularyError when there are
    more labels than names.
    """
    device = torch.device(device)
    evaluator = ClassificationEvaluator(device)
    bad = BadSamples(max_bad, size=len(dataset))
    hits = torch.zeros(len(names), dtype=torch.int64, device=device)
    totals = torch.zeros_like(hits)
    batches = loader(dataset, InOrder(range(len(dataset)), batch_size), workers=workers)
    for read in _progress(batches, description, len(dataset)):
        bad.add(read.bad)
        if not read.keys:
            continue
        check_labels(read, names, dataset)
        batch = read.to(device)
        logits = classify(batch)
        evaluator.update(logits, batch.labels)
        correct = logits.argmax(1) == batch.labels
        hits += torch.bincount(batch.labels[correct], minlength=len(names))
        totals += torch.bincount(batch.labels, minlength=len(names))
    summary = evaluator.compute()
    shares = (100 * hits / totals).tolist()
    return ZeroShot(
        top1=summary["top1"],
        top5=summary["top5"],
        chance=100 / len(names),
        samples=int(totals.sum()),
        bad=len(bad.reasons),
        per_class={name: share for name, share, total in zip(names, shares, totals.tolist(), strict=True) if total},
    )


def _progress(batches: Iterable[Batch], description: str, total: int) -> Iterable[Batch]:
    with tqdm(total=total, unit="img", desc=description, disable=None) as progress:
        for batch in batches:
            yield batch
            progress.update(len(batch.keys))


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
