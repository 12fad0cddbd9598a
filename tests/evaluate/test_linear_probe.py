"""Linear probes: against scikit-learn's solutions, and nothing of the test split in what is chosen."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from torch.nn.functional import cross_entropy

from lgd_timm.errors import LGDError, ShardError
from lgd_timm.evaluate import draw_labels, linear_probe
from lgd_timm.evaluate.linear_probe import FITS, STRENGTHS
from tests.helpers.made_features import clouds


def standardised(count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    made = clouds(count, noise=1.5)
    return (made.features - made.features.mean(0)) / made.features.std(0, correction=0), made.labels


@pytest.mark.parametrize("strength", [1.0, 1e-2])
def test_lbfgs_finds_the_least_loss(strength: float) -> None:
    features, labels = standardised()
    (weights,) = FITS["lbfgs"](features, labels, 4, [strength])
    theirs = LogisticRegression(C=1 / (strength * len(labels)), tol=1e-8, max_iter=1000).fit(
        features.double().numpy(), labels.numpy()
    )

    def loss(matrix: torch.Tensor, bias: torch.Tensor) -> float:
        return float(cross_entropy(features.double() @ matrix + bias, labels) + strength / 2 * matrix.square().sum())

    expected = loss(torch.from_numpy(theirs.coef_.T), torch.from_numpy(theirs.intercept_))
    assert loss(weights[:-1].double(), weights[-1].double()) == pytest.approx(expected, rel=1e-5)
    sweep = FITS["lbfgs"](features, labels, 4, [10.0, 1.0, strength])  # begun elsewhere, it ends at the same place
    torch.testing.assert_close(sweep[-1][:-1], weights[:-1], rtol=0, atol=2e-2)


@pytest.mark.parametrize("strength", [10.0, 0.1])
def test_ridge_is_the_closed_form(strength: float) -> None:
    features, labels = standardised()
    (weights,) = FITS["ridge"](features, labels, 4, [strength])
    theirs = RidgeClassifier(alpha=strength * len(labels)).fit(
        features.double().numpy(), labels.numpy()
    )  # labels are -1 and 1 there
    torch.testing.assert_close(2 * weights[:-1], torch.from_numpy(theirs.coef_.T).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(2 * weights[-1] - 1, torch.from_numpy(theirs.intercept_).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("protocol", ["lbfgs", "ridge"])
def test_what_is_separable_is_learned(protocol: str) -> None:
    train, test = clouds(200, noise=0.2), clouds(80, noise=0.2, seed=1)
    score = linear_probe(train, test, protocol=protocol)
    assert (score.top1, score.top5, score.chance, score.train, score.test) == (100.0, 100.0, 25.0, 200, 80)
    assert score.strength in STRENGTHS[protocol]
    assert json.loads(json.dumps(score.to_dict()))["protocol"] == protocol


def test_the_papers_sgd_learns_and_repeats() -> None:
    """lr 30 and all, on features in the range of a normalised backbone's."""
    train, test = clouds(200, noise=1), clouds(80, noise=1, seed=1)
    first, again = (linear_probe(train, test, protocol="sgd", batch_size=64) for _ in range(2))
    assert first == again
    assert first.strength is None
    assert first.top1 > 60
    assert linear_probe(train, test, protocol="sgd", batch_size=64, seed=1) != replace(first, top1=-1.0)


@pytest.mark.parametrize("protocol", ["lbfgs", "ridge"])
def test_scale_and_place_of_features_do_not_matter(protocol: str) -> None:
    train, test = clouds(200, noise=1.5), clouds(80, noise=1.5, seed=1)
    moved = [replace(split, features=100 * split.features + 5) for split in (train, test)]
    constant = [
        replace(split, features=torch.cat([split.features, torch.ones(len(split), 1)], 1)) for split in (train, test)
    ]
    plain = linear_probe(train, test, protocol=protocol)
    for other in (moved, constant):
        score = linear_probe(*other, protocol=protocol)
        assert score.strength == plain.strength
        assert score.top1 == pytest.approx(plain.top1, abs=1.3)  # one of 80 images may stand on the border


def test_the_test_split_has_no_say_in_the_choice() -> None:
    train, test = clouds(200, noise=2), clouds(80, noise=2, seed=1)
    chosen = {
        linear_probe(train, replace(test, labels=(test.labels + i) % 4), protocol="ridge").strength for i in range(4)
    }
    assert len(chosen) == 1


@pytest.mark.parametrize("protocol", ["lbfgs", "ridge"])
def test_the_strength_is_the_one_that_scores_best_on_what_is_held_out_of_training(protocol: str) -> None:
    train, test = clouds(400, size=64, noise=5), clouds(80, size=64, noise=5, seed=1)
    held = draw_labels(train.keys, train.labels, fraction=0.1, seed=7).keys
    rest, out = train.only(set(train.keys) - held), train.only(held)
    scores = {
        strength: linear_probe(rest, out, protocol=protocol, strength=strength).top1 for strength in STRENGTHS[protocol]
    }
    assert len(set(scores.values())) > 1  # so that there is a choice
    assert linear_probe(train, test, protocol=protocol, seed=7).strength == max(
        scores, key=lambda strength: (scores[strength], strength)
    )


def test_a_subset_is_all_that_is_learned_from() -> None:
    train, test = clouds(200, noise=1.5), clouds(80, noise=1.5, seed=1)
    subset = draw_labels(train.keys, train.labels, per_class=10)
    score = linear_probe(train, test, subset=subset, protocol="ridge")
    assert score == replace(
        linear_probe(train.only(subset.keys), test, protocol="ridge"),
        subset="10 of each class, seed 0",
        subset_fingerprint=subset.fingerprint,
    )
    assert score.train == 40
    with pytest.raises(ShardError, match=r"val lacks 40 of the subset's 40 keys, first 'train0"):
        linear_probe(clouds(80, name="val"), test, subset=subset)
    unread = replace(train.at(torch.arange(1, 200)), bad=((train.keys[0], "broken"),))
    everything = draw_labels(train.keys, train.labels, fraction=1.0)
    assert linear_probe(unread, test, subset=everything, protocol="ridge").train == 199


def test_refusals() -> None:
    train = clouds(40)
    with pytest.raises(LGDError, match="protocol 'svm' is unknown; choose one of lbfgs, ridge, sgd"):
        linear_probe(train, train, protocol="svm")
    with pytest.raises(LGDError, match="4 images are too few to hold some of each class out"):
        linear_probe(clouds(4), train)
    assert linear_probe(clouds(4), train, strength=0.1).train == 4
    for options in ({"strength": 0.1, "protocol": "sgd"}, {"strength": -1.0}):
        with pytest.raises(LGDError, match="is the L2 penalty of lbfgs and ridge, at least 0"):
            linear_probe(train, train, **options)  # type: ignore[arg-type]
    with pytest.raises(LGDError, match="batch_size = 0 must be at least 1"):
        linear_probe(train, train, protocol="sgd", batch_size=0)
