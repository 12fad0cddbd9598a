"""Train a linear classifier on frozen features.

lbfgs    multinomial logistic regression on standardised features. The L2 strength is chosen on held-out training
images,
         then all training images are fitted. The default: quick, with no learning rate to tune.
ridge    least squares to one-hot labels in closed form, with the same choice of strength. Takes seconds.
sgd      the paper's protocol (the released code's linear evaluation; MoCo's): SGD with momentum 0.9, lr 30 * batch /
256,
         100 epochs, lr times 0.1 at 60 and 80, 5 epochs of warm-up, no weight decay, backbone frozen in eval mode.
         Features are cached here, so its random crops and flips are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from timm.scheduler import create_scheduler_v2
from timm.utils import accuracy
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from ..data.subset import Subset, check_keys_found, draw_labels
from ..errors import LGDError
from ..utils.progress import progress_bar
from .features import Features, class_count
from .zero_shot import accuracies

Protocol = Literal["lbfgs", "ridge", "sgd"]
PROTOCOLS: tuple[Protocol, ...] = ("lbfgs", "ridge", "sgd")
HELD_OUT = 0.1  # share of each class's training images on which the strength is chosen

# The strengths to choose from, strongest first. (strength / 2) |W|^2 is added to the mean loss of an image.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "lbfgs": (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4),
    "ridge": (1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3),
}


@dataclass(frozen=True)
class LinearProbe:
    """Accuracies of a linear probe in percent.

    Attributes:
        top1: share of test images whose label is the first answer.
        top5: share of test images whose label is among the first five answers.
        chance: 100 / number of classes.
        protocol: lbfgs, ridge or sgd.
        strength: of the L2 penalty; None where there is none.
        train: labelled training images.
        test: images that were scored.
        subset: which of the labels were used, in words; None: all.
        subset_fingerprint: names the subset.
    """

    top1: float
    top5: float
    chance: float
    protocol: str
    strength: float | None
    train: int
    test: int
    subset: str | None = None
    subset_fingerprint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the attributes as plain data, as metrics.json holds them."""
        return asdict(self)

    def __str__(self) -> str:
        strength = "" if self.strength is None else f", L2 {self.strength:g}"
        how = f"{self.protocol}{strength}, {self.train} labels"
        return f"{accuracies(self.top1, self.top5, chance=self.chance)} of {self.test} images ({how})"


def linear_probe(
    train: Features,
    test: Features,
    *,
    protocol: str = "lbfgs",
    subset: Subset | None = None,
    strength: float | None = None,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> LinearProbe:
    """Train a linear classifier on one split's features and score it on another's.

    Args:
        train: labelled features to learn from.
        test: labelled features that are scored; no choice depends on them.
        protocol: lbfgs, ridge or sgd (see the module's docstring).
        subset: labels that may be used; None: all.
        strength: of the L2 penalty of lbfgs and ridge; None: chosen on held-out training images.
        batch_size: of sgd.
        seed: of what is held out, and of sgd.
        device: where it is trained.

    Returns:
        The accuracies.

    Raises:
        ShardError: images have no labels, or the subset is of other images.
        LGDError: an option is out of range, there are too few images to choose a strength, or sgd diverged.
    """
    if protocol not in PROTOCOLS:
        raise LGDError(f"protocol {protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}.")
    if strength is not None and (protocol == "sgd" or strength < 0):
        raise LGDError(
            f"strength = {strength:g} is the L2 penalty of lbfgs and ridge, at least 0; protocol is {protocol}."
        )
    if batch_size < 1:
        raise LGDError(f"batch_size = {batch_size} must be at least 1.")
    classes = class_count(train, test)
    if subset is not None:
        unread = {key for key, _ in train.bad}
        check_keys_found(set(subset.keys) - set(train.keys) - unread, subset, where=train.name)
        train = train.only(subset.keys)
        class_count(train)
    scale = _Scale(train.features.to(device), standardise=protocol != "sgd")
    if protocol == "sgd":
        weights = _sgd(scale(train.features), train.labels.to(device), classes, batch_size=batch_size, seed=seed)
    else:
        if strength is None:
            strength = _chosen(train, protocol, classes, seed=seed, device=device)
        weights = FITS[protocol](scale(train.features), train.labels.to(device), classes, [strength])[0]
    top1, top5 = accuracy(_logits(scale(test.features), weights).cpu(), test.labels, topk=(1, 5))
    return LinearProbe(
        top1=float(top1),
        top5=float(top5),
        chance=100 / classes,
        protocol=protocol,
        strength=strength,
        train=len(train),
        test=len(test),
        subset=None if subset is None else subset.rule,
        subset_fingerprint=None if subset is None else subset.fingerprint,
    )


class _Scale:
    """Standardise features to mean 0 and deviation 1 over the training images, or leave them as they are."""

    def __init__(self, features: Tensor, *, standardise: bool) -> None:
        self.mean, self.deviation = features.new_zeros(1), features.new_ones(1)
        if standardise:
            self.deviation, self.mean = torch.std_mean(features, dim=0, correction=0)
            self.deviation = torch.where(self.deviation > 1e-6, self.deviation, 1.0)  # a constant feature

    def __call__(self, features: Tensor) -> Tensor:
        return (features.to(self.mean.device) - self.mean) / self.deviation


def _logits(features: Tensor, weights: Tensor) -> Tensor:
    return features @ weights[:-1] + weights[-1]


def _chosen(train: Features, protocol: str, classes: int, *, seed: int, device: torch.device | str) -> float:
    """Choose the strength that scores best on held-out training images; of equal ones, the strongest."""
    held = draw_labels(train.keys, train.labels, fraction=HELD_OUT, seed=seed).keys
    rest, out = train.only(set(train.keys) - held), train.only(held)
    if not len(rest) or rest.labels.unique().numel() < train.labels.unique().numel():
        raise LGDError(
            f"{len(train)} images are too few to hold some of each class out, by which the strength is chosen. "
            "Give it: --strength 0.1."
        )
    scale = _Scale(rest.features.to(device), standardise=True)
    fits = FITS[protocol](scale(rest.features), rest.labels.to(device), classes, STRENGTHS[protocol])
    features = scale(out.features)
    right = [float((_logits(features, weights).argmax(1).cpu() == out.labels).float().mean()) for weights in fits]
    return STRENGTHS[protocol][right.index(max(right))]


def _principal(features: Tensor) -> tuple[Tensor, Tensor]:
    """Compute eigenvalues [F] and eigenvectors [F, F] of X'X / N, in float64 where the device has it."""
    exact = torch.float32 if features.device.type == "mps" else torch.float64
    gram = torch.zeros(features.shape[1], features.shape[1], dtype=exact, device=features.device)
    for part in features.split(8192):  # a float64 copy of all might be large
        gram.addmm_(part.to(exact).T, part.to(exact), alpha=1 / len(features))
    values, vectors = torch.linalg.eigh(gram)
    return values.clamp_min(0), vectors


def _lbfgs(features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float]) -> list[Tensor]:
    """Fit weights [F + 1, C] for each strength, starting from those of the strength before. The bias is not penalised.

    The search runs in the basis of the features' principal components, each scaled by its expected curvature. The
    minimum is the same, and takes a fraction of the steps that correlated features would take.
    """
    values, vectors = _principal(features)
    basis = vectors.to(features.dtype)
    rotated = features @ basis
    weights = features.new_zeros(features.shape[1] + 1, classes)
    fits = []
    for strength in progress_bar(strengths, desc="linear probe"):
        curvature = (values / classes + strength).clamp_min(1e-6).to(features.dtype)
        stretch = torch.cat([curvature, curvature.new_tensor([1 / classes])]).rsqrt()[:, None]
        free = (weights / stretch).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [free],
            max_iter=100,
            history_size=10,
            tolerance_grad=1e-5,
            tolerance_change=1e-7,
            line_search_fn="strong_wolfe",
        )

        def loss(
            free: Tensor = free,
            stretch: Tensor = stretch,
            strength: float = strength,
            optimizer: torch.optim.Optimizer = optimizer,
        ) -> float:
            optimizer.zero_grad()
            weights = stretch * free
            value = cross_entropy(_logits(rotated, weights), labels) + strength / 2 * weights[:-1].square().sum()
            value.backward()
            return float(value.detach())

        optimizer.step(loss)
        weights = (stretch * free).detach()
        fits.append(torch.cat([basis @ weights[:-1], weights[-1:]]))
    return fits


def _ridge(features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float]) -> list[Tensor]:
    """Compute (X'X / N + strength I)^-1 X'Y / N for each strength, by one eigendecomposition.

    X is centred, so the bias is the mean of Y.
    """
    values, vectors = _principal(features)
    targets = one_hot(labels, classes).to(features.dtype)
    shares = targets.mean(0)
    projected = vectors.T @ (features.T @ (targets - shares) / len(features)).to(vectors.dtype)
    floor = values.max() * len(values) * torch.finfo(values.dtype).eps  # where strength is 0: the least-norm solution
    inverses = [torch.where(values + strength > floor, 1 / (values + strength), 0.0) for strength in strengths]
    return [
        torch.cat([(vectors @ (inverse[:, None] * projected)).to(features.dtype), shares[None]]) for inverse in inverses
    ]


FITS = {"lbfgs": _lbfgs, "ridge": _ridge}


def _sgd(features: Tensor, labels: Tensor, classes: int, *, batch_size: int, seed: int, epochs: int = 100) -> Tensor:
    """Fit weights [F + 1, C] by the paper's schedule. Each epoch shuffles; the last, smaller batch is used too."""
    draw = torch.Generator().manual_seed(seed)
    drawn = 0.01 * torch.randn(features.shape[1], classes, generator=draw)  # MoCo's initialisation
    start = torch.cat([drawn, torch.zeros(1, classes)])
    weights = nn.Parameter(start.to(features.device))
    optimizer = torch.optim.SGD([weights], lr=30 * batch_size / 256, momentum=0.9, weight_decay=0)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="multistep",
        num_epochs=epochs,
        decay_milestones=[60, 80],
        decay_rate=0.1,
        warmup_epochs=5,
        warmup_lr=0.03,
    )
    assert scheduler is not None
    for epoch in progress_bar(range(epochs), desc="linear probe"):
        scheduler.step(epoch)
        for rows in torch.randperm(len(features), generator=draw).to(features.device).split(batch_size):
            optimizer.zero_grad()
            cross_entropy(_logits(features[rows], weights), labels[rows]).backward()
            optimizer.step()
    if not weights.isfinite().all():
        raise LGDError(
            f"The probe's weights are not finite at lr {30 * batch_size / 256:g}. Use protocol lbfgs, or a smaller "
            "batch."
        )
    return weights.detach()
