"""Classify frozen features by weighted k-NN, as InstDisc (arXiv 1805.01978, section 3.4) and DINO do.

score_c = sum over the k most similar training images i of class c of exp(cos(f, f_i) / temperature)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.utils import accuracy
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import LGDError
from ..utils.progress import progress_bar
from .features import Features, class_count
from .zero_shot import accuracies

CHUNK = 1 << 24  # similarities computed at a time: 64 MB


@dataclass(frozen=True)
class KNN:
    """k-NN accuracies in percent.

    Attributes:
        top1: share of test images whose label has the highest score.
        top5: share of test images whose label is among the five highest.
        chance: 100 / number of classes.
        k: neighbours that vote.
        temperature: of the votes' weights.
        train: labelled images that vote.
        test: images that were scored.
        top1_of_k: top-1 of every k that was asked for.
    """

    top1: float
    top5: float
    chance: float
    k: int
    temperature: float
    train: int
    test: int
    top1_of_k: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Give the attributes as plain data, as metrics.json holds them."""
        return asdict(self)

    def __str__(self) -> str:
        votes = f"k = {self.k}, {self.train} training images"
        return f"{accuracies(self.top1, self.top5, chance=self.chance)} of {self.test} images ({votes})"


@torch.no_grad()
def knn(
    train: Features,
    test: Features,
    *,
    k: int | Sequence[int] = 20,
    temperature: float = 0.07,
    device: torch.device | str = "cpu",
) -> KNN:
    """Score test features by the labels of their nearest training features.

    Args:
        train: labelled features.
        test: labelled features of the same model.
        k: neighbours that vote; of several numbers, the first is reported as `top1` and `top5`.
        temperature: divides cosines before they become weights.
        device: where similarities are computed.

    Returns:
        The accuracies.

    Raises:
        ShardError: images have no labels.
        LGDError: k is not from 1 to the number of training images, the temperature is not above 0, or features are of
            two models.
    """
    ks = [k] if isinstance(k, int) else list(k)
    if not ks or min(ks) < 1 or max(ks) > len(train):
        raise LGDError(f"k = {', '.join(map(str, ks))} is to be from 1 to the number of training images, {len(train)}.")
    if temperature <= 0:
        raise LGDError(f"temperature = {temperature:g} must be above 0.")
    if train.features.shape[1] != test.features.shape[1]:
        raise LGDError(
            f"{test.features.shape[1]} features do not fit the {train.features.shape[1]} of the training images."
        )
    classes = class_count(train, test)
    memory, labels = normalize(train.features.to(device), dim=1), train.labels.to(device)
    votes: dict[int, list[Tensor]] = {k: [] for k in ks}
    step = max(1, CHUNK // len(train))
    for start in progress_bar(range(0, len(test), step), desc="k-NN"):
        queries = normalize(test.features[start : start + step].to(device), dim=1)
        similarities, nearest = (queries @ memory.T).topk(max(ks), dim=1)  # [B, k], most similar first
        # Relative to the largest similarity: the order of classes stays, and a small temperature does not overflow
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        for one, parts in votes.items():
            parts.append(
                weights.new_zeros(len(queries), classes)
                .scatter_add(1, labels[nearest[:, :one]], weights[:, :one])
                .cpu()
            )
    scores = {
        one: [float(value) for value in accuracy(torch.cat(parts), test.labels, topk=(1, 5))]
        for one, parts in votes.items()
    }
    return KNN(
        top1=scores[ks[0]][0],
        top5=scores[ks[0]][1],
        chance=100 / classes,
        k=ks[0],
        temperature=temperature,
        train=len(train),
        test=len(test),
        top1_of_k={str(one): score[0] for one, score in scores.items()},
    )
