"""Measure calibration: of the images that a model is 80 % sure of, are 80 % right?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, nll_loss, normalize

from ..data.subset import draw_labels
from ..errors import LGDError
from .features import Features, class_count
from .zero_shot_model import ZeroShotModel

BINS = 15
FIT = 0.1  # share of each class's training images that the temperature is fitted on


@dataclass(frozen=True)
class Calibration:
    """Calibration of a classifier's probabilities, before and after temperature scaling.

    The fitted values are of logits divided by the temperature that fits training images best, and None without such
    images.

    Attributes:
        ece: expected calibration error in percent: mean distance of confidence and accuracy in 15 bins of equal width
            (arXiv 1706.04599, section 2).
        nll: mean negative log-likelihood of the label, in nats.
        confidence: mean probability of the answer, in percent.
        samples: images that were scored.
        classifier: whose logits: the published classifier's, or cosines at a temperature.
        fitted_temperature: by which the logits are divided.
        fitted_ece: as `ece`, after that.
        fitted_nll: as `nll`, after that.
        fitted_confidence: as `confidence`, after that.
        fitted_on: labelled training images that the temperature was fitted on.
    """

    ece: float
    nll: float
    confidence: float
    samples: int
    classifier: str
    fitted_temperature: float | None = None
    fitted_ece: float | None = None
    fitted_nll: float | None = None
    fitted_confidence: float | None = None
    fitted_on: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the attributes as plain data, as metrics.json holds them."""
        return asdict(self)

    def __str__(self) -> str:
        first = f"ECE {self.ece:.2f} %, NLL {self.nll:.3f}, mean confidence {self.confidence:.2f} % ({self.classifier})"
        if self.fitted_ece is None:
            return first
        return f"{first}; ECE {self.fitted_ece:.2f} % with the logits divided by {self.fitted_temperature:.3g}"


def calibration(
    logits: Tensor, labels: Tensor, *, classifier: str = "logits", fit: tuple[Tensor, Tensor] | None = None
) -> Calibration:
    """Measure how well the softmax of logits is calibrated.

    Args:
        logits: [N, C].
        labels: int64 [N], each from 0 to C - 1.
        classifier: whose logits they are, in words.
        fit: logits and labels of other images, on which the temperature is fitted.

    Returns:
        The calibration.

    Raises:
        LGDError: a label is no column of the logits, or there is no image.
    """
    for scores, targets in [(logits, labels)] + ([] if fit is None else [fit]):
        if not len(targets) or targets.min() < 0 or targets.max() >= scores.shape[1]:
            raise LGDError(f"Calibration needs labelled images whose labels are among the {scores.shape[1]} names.")
    ece, nll, confidence = _measures(logits.float().softmax(1), labels)
    plain: dict[str, Any] = {
        "ece": ece,
        "nll": nll,
        "confidence": confidence,
        "samples": len(labels),
        "classifier": classifier,
    }
    if fit is None:
        return Calibration(**plain)
    temperature = fit_temperature(*fit)
    ece, nll, confidence = _measures((logits.float() / temperature).softmax(1), labels)
    return Calibration(
        **plain,
        fitted_temperature=temperature,
        fitted_ece=ece,
        fitted_nll=nll,
        fitted_confidence=confidence,
        fitted_on=len(fit[1]),
    )


def _measures(probabilities: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """(ECE in percent, NLL, mean confidence in percent)."""
    nll = float(nll_loss(probabilities.double().clamp_min(torch.finfo(torch.float32).tiny).log(), labels))
    return 100 * expected_calibration_error(probabilities, labels), nll, 100 * float(probabilities.amax(1).mean())


def expected_calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = BINS) -> float:
    """Compute the expected calibration error: sum over bins of (share of the images) * |accuracy - mean confidence|.

    Args:
        probabilities: [N, C].
        labels: int64 [N].
        bins: number of bins (0, 1 / bins], (1 / bins, 2 / bins], ... of confidence.

    Returns:
        A share from 0 to 1.
    """
    confidence, answer = probabilities.double().max(1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    index = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add(0, index, (answer == labels).double() - confidence)
    return float(gap.abs().sum()) / len(labels)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the temperature whose softmax(logits / temperature) has the least NLL.

    The NLL is convex in the temperature's inverse, so a ternary search finds the one minimum.

    Args:
        logits: [N, C].
        labels: int64 [N].

    Returns:
        A temperature from 0.01 to 100, exact to 1e-4 of itself.
    """
    logits = logits.double()
    low, high = math.log(0.01), math.log(100)

    def nll(log_temperature: float) -> float:
        return float(cross_entropy(logits / math.exp(log_temperature), labels))

    while high - low > 1e-4:
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if nll(left) <= nll(right) else (left, high)
    return math.exp((low + high) / 2)


def student_logits(model: ZeroShotModel, features: Features) -> tuple[Tensor, str]:
    """Compute a student's zero-shot logits at its own temperature.

    Args:
        model: a student with names.
        features: of N images.

    Returns:
        Logits [N, C], and whose they are, in words: the published classifier's where it has these names, else cosines
        over the student's temperature.
    """
    if model.classifier is not None:
        with torch.no_grad():
            return model.classifier()(features.features), "published classifier"
    assert model.student_temperature is not None, "a teacher's logits are of `similarity_logits`"
    return similarity_logits(model, features, temperature=model.student_temperature)


def similarity_logits(model: ZeroShotModel, features: Features, *, temperature: float) -> tuple[Tensor, str]:
    """Compute cosines of embeddings and names over a temperature, [N, C]; the second value says so in words."""
    assert features.embeddings is not None
    return normalize(features.embeddings, dim=1) @ model.bank.T / temperature, f"cosine / {temperature:g}"


def calibrate(
    model: ZeroShotModel,
    test: Features,
    train: Features | None,
    *,
    logits_of: Callable[[ZeroShotModel, Features], tuple[Tensor, str]] = student_logits,
    seed: int = 0,
) -> Calibration:
    """Measure the calibration of a model's zero-shot classifier.

    The temperature is fitted on a tenth of each class of the training images, where those have labels. A student has
    seen these images in training, but not their labels.

    Args:
        model: with its names.
        test: labelled features that are scored.
        train: features to fit the temperature on; None: no temperature is fitted.
        logits_of: computes logits [N, C] from features, and says whose they are.
        seed: draws the tenth.

    Returns:
        The calibration.

    Raises:
        ShardError: test images have no labels.
        LGDError: as `calibration`.
    """
    class_count(test)
    logits, classifier = logits_of(model, test)
    if train is None or train.labels.min() < 0:  # nothing to fit a temperature on
        return calibration(logits, test.labels, classifier=classifier)
    some = train.only(draw_labels(train.keys, train.labels, fraction=FIT, seed=seed).keys)
    return calibration(logits, test.labels, classifier=classifier, fit=(logits_of(model, some)[0], some.labels))


def teacher_calibration(model: ZeroShotModel, test: Features, train: Features | None, *, seed: int = 0) -> Calibration:
    """Measure the calibration of a student's teacher, from its embeddings at the temperature at which it taught."""
    logits_of = partial(similarity_logits, temperature=model.teacher_temperature)
    return calibrate(model, test, train, logits_of=logits_of, seed=seed)
