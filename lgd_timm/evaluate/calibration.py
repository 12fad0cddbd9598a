"""Whether confidences can be believed: of the images that a model is 80 % sure of, are 80 % right?"""

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
FIT = 0.1  # share of each class's training images on which the temperature is fitted


@dataclass(frozen=True)
class Calibration:
    """Of a classifier's probabilities over `samples` images; and again with the one temperature that fits training images best.

    ECE: mean distance of confidence and accuracy in 15 bins of equal width (arXiv 1706.04599, section 2), percent. NLL in nats.
    Confidence: mean probability of the answer, percent. What lacks training images to be fitted on is None.
    """

    ece: float
    nll: float
    confidence: float
    samples: int
    classifier: str  # whose logits: the published classifier, or similarities at a temperature
    fitted_temperature: float | None = None  # by which these logits are divided
    fitted_ece: float | None = None
    fitted_nll: float | None = None
    fitted_confidence: float | None = None
    fitted_on: int | None = None  # labelled training images

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        first = f"ECE {self.ece:.2f} %, NLL {self.nll:.3f}, mean confidence {self.confidence:.2f} % ({self.classifier})"
        if self.fitted_ece is None:
            return first
        return f"{first}; ECE {self.fitted_ece:.2f} % with the logits divided by {self.fitted_temperature:.3g}"


def calibration(
    logits: Tensor, labels: Tensor, *, classifier: str = "logits", fit: tuple[Tensor, Tensor] | None = None
) -> Calibration:
    """Logits [N, C] and labels int64 [N] -> how well their softmax is calibrated.

    `fit`: logits and labels of other, labelled images, on which the temperature is fitted.
    Raises: LGDError for labels that are no column of the logits.
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
    """sum over bins of (share of the images) * |accuracy - mean confidence|, bins (0, 1/15], (1/15, 2/15], ... Probabilities [N, C]."""
    confidence, answer = probabilities.double().max(1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add(0, place, (answer == labels).double() - confidence)
    return float(gap.abs().sum()) / len(labels)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature from 0.01 to 100 whose softmax(logits / temperature) has the least NLL, to 1e-4 of itself.

    The NLL is convex in the temperature's inverse, so a ternary search closes in on the one minimum.
    """
    logits = logits.double()
    low, high = math.log(0.01), math.log(100)

    def nll(log_temperature: float) -> float:
        return float(cross_entropy(logits / math.exp(log_temperature), labels))

    while high - low > 1e-4:
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if nll(left) <= nll(right) else (left, high)
    return math.exp((low + high) / 2)


def student_logits(subject: ZeroShotModel, features: Features) -> tuple[Tensor, str]:
    """Logits [N, C] of a student's zero-shot classifier at its own temperature, and whose they are.

    Where the folder has a classifier into which projector, bank and temperature are folded, and it is asked about its own names,
    they are that classifier's; else similarities over the student's temperature.
    """
    if subject.classifier is not None:
        with torch.no_grad():
            return subject.classifier()(features.features), "published classifier"
    assert subject.student_temperature is not None, "a teacher's logits are of `similarity_logits`"
    return similarity_logits(subject, features, temperature=subject.student_temperature)


def similarity_logits(subject: ZeroShotModel, features: Features, *, temperature: float) -> tuple[Tensor, str]:
    """Cosines of embeddings and names over a temperature [N, C], and what they are."""
    assert features.embeddings is not None
    return normalize(features.embeddings, dim=1) @ subject.bank.T / temperature, f"cosine / {temperature:g}"


def calibrate(
    subject: ZeroShotModel,
    test: Features,
    train: Features | None,
    *,
    logits_of: Callable[[ZeroShotModel, Features], tuple[Tensor, str]] = student_logits,
    seed: int = 0,
) -> Calibration:
    """`calibration` of a subject's classifier, its temperature fitted on a seeded tenth of each class of the training images, if labelled.

    The student has seen those images, but not their labels, which are used for this and nothing else.
    Raises: ShardError for images without labels; LGDError, as `calibration`.
    """
    class_count(test)
    logits, classifier = logits_of(subject, test)
    if train is None or train.labels.min() < 0:  # nothing to fit a temperature on
        return calibration(logits, test.labels, classifier=classifier)
    some = train.only(draw_labels(train.keys, train.labels, fraction=FIT, seed=seed).keys)
    return calibration(logits, test.labels, classifier=classifier, fit=(logits_of(subject, some)[0], some.labels))


def teacher_calibration(
    subject: ZeroShotModel, test: Features, train: Features | None, *, seed: int = 0
) -> Calibration:
    """The same of a student's teacher, from its embeddings at the temperature at which it taught."""
    logits_of = partial(similarity_logits, temperature=subject.teacher_temperature)
    return calibrate(subject, test, train, logits_of=logits_of, seed=seed)
