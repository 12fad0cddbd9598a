"""Calibration: against a plain computation and what is known of sure, honest and boastful classifiers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lgd_timm.errors import LGDError
from lgd_timm.evaluate import calibration
from lgd_timm.evaluate.calibration import expected_calibration_error, fit_temperature


def honest(count: int, *, seed: int = 0, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits, and labels that are drawn from their softmax."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=draw)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=draw)[:, 0]


def plain_ece(probabilities: Tensor, labels: Tensor, bins: int) -> float:
    """As the definition reads, image by image."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        members[min(bins - 1, math.ceil(confidence * bins) - 1)].append((confidence, row.index(confidence) == label))
    gaps = [abs(sum(right for _, right in bin_) - sum(sure for sure, _ in bin_)) for bin_ in members]
    return sum(gaps) / len(labels)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_ece_is_its_definition(bins: int) -> None:
    logits, labels = honest(500)
    probabilities = (3 * logits).double().softmax(1)
    assert expected_calibration_error(probabilities, labels, bins=bins) == pytest.approx(
        plain_ece(probabilities, labels, bins), abs=1e-12
    )


def test_ece_of_those_who_are_always_sure() -> None:
    sure = torch.eye(2)[torch.zeros(10, dtype=torch.int64)]
    labels = torch.tensor([0] * 7 + [1] * 3)
    assert expected_calibration_error(sure, labels) == pytest.approx(0.3)
    assert expected_calibration_error(sure, torch.zeros(10, dtype=torch.int64)) == 0


@pytest.mark.parametrize("factor", [0.25, 1.0, 8.0])
def test_the_fitted_temperature_undoes_a_scale(factor: float) -> None:
    logits, labels = honest(20000)
    temperature = fit_temperature(factor * logits, labels)
    assert temperature == pytest.approx(factor, rel=0.03)  # of 20,000 draws
    at = [
        float(cross_entropy(factor * logits / t, labels)) for t in (temperature, 1.01 * temperature, 0.99 * temperature)
    ]
    assert at[0] == min(at)


def test_boasting_is_measured_and_undone() -> None:
    logits, labels = honest(4000)
    score = calibration(
        6 * logits, labels, classifier="boaster", fit=(6 * honest(4000, seed=1)[0], honest(4000, seed=1)[1])
    )
    assert score.ece > 15
    assert score.fitted_ece is not None
    assert score.fitted_nll is not None
    assert score.fitted_ece < 3
    assert score.fitted_nll < score.nll
    assert score.nll == pytest.approx(float(cross_entropy(6 * logits, labels)), rel=1e-5)
    assert score.confidence == pytest.approx(100 * float((6 * logits).softmax(1).amax(1).mean()))
    assert (score.samples, score.fitted_on, score.classifier) == (4000, 4000, "boaster")
    assert json.loads(json.dumps(score.to_dict()))["ece"] == score.ece
    assert "(boaster); ECE" in str(score)


def test_without_training_images_nothing_is_fitted() -> None:
    score = calibration(*honest(50))
    assert (score.fitted_ece, score.fitted_temperature, score.fitted_on) == (None, None, None)
    assert "divided" not in str(score)


def test_refusals() -> None:
    logits, labels = honest(50)
    for wrong in (labels - 1, labels + 1, labels[:0]):
        with pytest.raises(LGDError, match="labels are among the 5 names"):
            calibration(logits[: len(wrong)], wrong)
        with pytest.raises(LGDError, match="labels are among the 5 names"):
            calibration(logits, labels, fit=(logits[: len(wrong)], wrong))


def test_the_fitted_temperature_stays_within_bounds() -> None:
    logits, _ = honest(50)
    assert fit_temperature(logits, logits.argmax(1)) == pytest.approx(
        0.01, rel=0.5
    )  # always right: the surer the better
    assert fit_temperature(logits, logits.argmin(1)) == pytest.approx(
        100, rel=1e-3
    )  # always wrong: the less sure the better
