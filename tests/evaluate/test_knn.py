"""Weighted k-NN, against scikit-learn's."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from lgd_timm.errors import LGDError, ShardError
from lgd_timm.evaluate import knn
from tests.helpers.made_features import clouds


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_it_is_scikit_learns(k: int, temperature: float) -> None:
    train, test = clouds(200, noise=2), clouds(120, noise=2, seed=1)
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature))
    theirs.fit(train.features.numpy(), train.labels.numpy())
    expected = 100 * theirs.score(test.features.numpy(), test.labels.numpy())
    ours = knn(train, test, k=k, temperature=temperature)
    assert ours.top1 == pytest.approx(expected)
    assert 30 < ours.top1 < 95  # hard enough to say something
    assert (ours.chance, ours.k, ours.train, ours.test) == (25.0, k, 200, 120)


def test_chunks_and_lengths_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = clouds(100, noise=2), clouds(60, noise=2, seed=1)
    whole = knn(train, test, k=[5, 1, 10])
    monkeypatch.setattr(sys.modules["lgd_timm.evaluate.knn"], "CHUNK", 700)  # 7 images at a time
    longer = replace(test, features=test.features * torch.arange(1, 61)[:, None])
    assert knn(train, longer, k=[5, 1, 10]) == whole
    assert whole.top1_of_k == {str(k): knn(train, test, k=k).top1 for k in (5, 1, 10)}
    assert (whole.k, whole.top1) == (5, whole.top1_of_k["5"])
    assert json.loads(json.dumps(whole.to_dict()))["top1_of_k"] == whole.top1_of_k


def test_a_small_temperature_is_the_nearest_neighbour() -> None:
    train, test = clouds(100, noise=2), clouds(60, noise=2, seed=1)
    assert knn(train, test, k=20, temperature=1e-4).top1 == knn(train, test, k=1).top1


def test_training_images_find_themselves() -> None:
    train = clouds(40, noise=3)
    score = knn(train, train, k=1)
    assert (score.top1, score.top5) == (100.0, 100.0)
    assert str(score) == "top-1 100.00 % of 40 images (k = 1, 40 training images)"


@pytest.mark.parametrize("k", [0, 41, [], [5, 41]])
def test_a_k_that_cannot_be_is_refused(k: int | list[int]) -> None:
    with pytest.raises(LGDError, match=r"k = .* is to be from 1 to the number of training images, 40"):
        knn(clouds(40), clouds(8), k=k)


def test_other_refusals() -> None:
    train = clouds(40)
    with pytest.raises(LGDError, match="temperature = 0 must be above 0"):
        knn(train, train, temperature=0)
    with pytest.raises(LGDError, match="8 features do not fit the 16"):
        knn(train, clouds(40, size=8))
    with pytest.raises(ShardError, match="train has images without a label"):
        knn(replace(train, labels=-torch.ones(40, dtype=torch.int64)), train)
