"""Refined distillation: the teacher's answers to the names, corrected by its embeddings, and the whole embedding.

    L = w_n * L_names + w_f * L_feature + w_c * L_contrast

    L_names    = -mean_i sum_k p_ik log softmax(s_i . c_k / tau_S)_k                c: text bank
    L_feature  =  mean_i (1 - cos(x(s_i), x(t_i)))
    L_contrast = -mean_i sum_j r_ij log softmax_j(cos(x(s_i), x(t_j)) / tau_C)       j: the batches of all ranks

    x(e)  = (S + shrink v I)^(-whiten / 2) (e - m)      m, S: mean, covariance of the teacher's unit rows; v = tr S / D
    r_i   = softmax(cos(x(t_i), x(t_j)) / tau_C)_j      the teacher's own similarities
    q_i   = softmax(t_i . c_k / tau_T)_k                the text target of LGD (arXiv 2406.11689)
    g_i   = E q + R^T (t_i - m)                         ridge regression of q on t: R = (S + ridge v I)^-1 Cov(t, q)
    p_ik ~ max(g_ik, floor / C)^sharpen u_k             u: brings E p to (E p at u = 1)^(1 - balance)

*Names.* LGD aggregates the teacher's embeddings per name, softly by sum_i q_ik t_i, and reads an image by its cosine to
the aggregates. The regression is this sum, Cov(t, q), read in the metric of the images: what the embeddings of all
images do not bear out is dropped from each answer. `sharpen` restores the confidence that a regression loses.
`balance` scales the names to a flatter frequency (Sinkhorn's scaling, arXiv 1306.0895), which corrects a teacher that
prefers some names; it assumes that the names are about equally frequent among the images and hurts where they are not,
so it is off by default.

*Embedding.* CLIP-KD's two terms (arXiv 2307.12732) in a half-whitened, centred space (standardised teacher features:
PHI-S, arXiv 2410.01680; UNIC, arXiv 2408.05088), so that the few directions with most of the variance do not decide
alone. The contrast asks for the teacher's similarities to the images of the batch, as SEED does for those of a queue
(arXiv 2101.04731), and not for the image itself alone: both terms are at their least where student and teacher agree.

Mean, covariances and R are exact where the teacher's embeddings are stored (`fit`). With an online teacher they are
running means over all images so far, and R and the whitening are computed anew after steps 1 to 8 and then four times
while the number of steps doubles.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ..utils.distributed import concat_all_gather, rank_and_world_size
from .base import Assigned, Objective, above_zero, between

log = logging.getLogger(__name__)

SAMPLE = 2**24  # elements [N, C] of the answers, of all ranks, that `fit` keeps to find the balance: 64 MiB
FEW = 10  # images a name, below which a warning is given
LEAST_VARIANCE = 1e-4  # of unit rows: a mean of products has errors that a ridge of less would blow up
SINKHORN_STEPS = 100
POTENTIAL_RATE = 0.05  # of the running balance, whose means take some tens of steps to follow


@dataclass(frozen=True)
class RefinedConfig:
    """Every switch of the objective. A weight of 0 leaves its term out."""

    names_weight: float = 4.0  # of the refined answers
    student_temperature: float = 0.1  # divides the student's similarities to the names
    teacher_temperature: float = 0.1  # of the answers that are refined: soft ones, or there is little to regress
    refine: bool = True  # False: p = q
    ridge: float = 0.03  # in mean variances of the embeddings' dimensions, as `shrink`
    sharpen: float = 4.0
    floor: float = 0.1  # least refined probability, in parts of 1 / C
    balance: float = 0.0  # 1: the names are equally frequent among the images
    feature_weight: float = 10.0  # of the cosine of half-whitened embeddings
    contrast_weight: float = 1.0  # of the contrast in the same space
    contrast_temperature: float = 0.07  # divides the cosines of the contrast
    whiten: float = 0.5  # 0: centred only, 1: equal variance in every direction
    shrink: float = 0.1

    def __post_init__(self) -> None:
        between(self, 0, float("inf"), "names_weight", "feature_weight", "contrast_weight")
        between(self, 0, 1, "whiten", "balance", "floor")
        above_zero(self, "student_temperature", "teacher_temperature", "contrast_temperature", "ridge", "sharpen")
        above_zero(self, "floor", "shrink")


class RefinedDistillation(Objective):
    """Names by their refined answers, embeddings by direction and by contrast.

    The keys of the contrast and the moments are those of every rank's batch, so the number of ranks does not change the
    loss.

    Buffers: moments of the teacher's unit rows and answers (`images` [], `mean` [D], `second` [D, D], `prior` [C],
    `cross` [D, C]); what is computed from them (`metric` [D, D], `refiner` [D, C]); the balance (`potential`, `found`,
    `balanced`, each [C]). How often moments were taken, and whether they are final, the host knows: it is the module's
    extra state, int64 [2].
    """

    method = "refined distillation: regressed answers to the names, half-whitened embeddings (lgd_timm)"
    presets: ClassVar[dict[str, RefinedConfig]] = {"refined": RefinedConfig(), "balanced": RefinedConfig(balance=1.0)}
    config: RefinedConfig
    per_image = False
    images: Tensor
    mean: Tensor
    second: Tensor
    prior: Tensor
    cross: Tensor
    metric: Tensor
    refiner: Tensor
    potential: Tensor
    found: Tensor
    balanced: Tensor
    _updates: int = 0
    _fitted: bool = False

    def __init__(self, text_bank: Tensor, **settings: Any) -> None:
        super().__init__(text_bank, **settings)
        names, dim = self.text_bank.shape
        shapes = {"mean": (dim,), "second": (dim, dim), "cross": (dim, names), "refiner": (dim, names)}
        for name, shape in shapes.items():
            self.register_buffer(name, self.text_bank.new_zeros(shape))
        for name in ("prior", "found", "balanced"):
            self.register_buffer(name, self.text_bank.new_full((names,), 1 / names))
        self.register_buffer("potential", self.text_bank.new_ones(names))
        self.register_buffer("metric", torch.eye(dim, device=self.text_bank.device))
        self.register_buffer("images", torch.zeros((), dtype=torch.int64, device=self.text_bank.device))

    def score(self, s: Tensor, t: Tensor) -> dict[str, Any]:
        config, losses = self.config, {}
        if config.names_weight:
            logits = s @ self.text_bank.T / config.student_temperature
            losses["names"] = config.names_weight, cross_entropy(logits, self.target(t))
        xs, xt = self.whitened(s), self.whitened(t)
        if config.feature_weight:
            losses["feature"] = config.feature_weight, (1 - (xs * xt).sum(1)).mean()
        if config.contrast_weight:
            keys = concat_all_gather(xt).T / config.contrast_temperature
            logits, own = xs @ keys, torch.softmax(xt @ keys, 1)
            losses["contrast"] = config.contrast_weight, cross_entropy(logits, own)
        total = sum((weight * loss for weight, loss in losses.values()), s.new_zeros(()))
        return {"loss": total, **{f"loss_{name}": loss for name, (_, loss) in losses.items()}}

    @torch.no_grad()
    def target(self, teacher: Tensor) -> Tensor:
        """p [B, C] of unit rows [B, D]."""
        return _unit_sum(self._answers(teacher) * self.potential)

    def whitened(self, rows: Tensor) -> Tensor:
        """x(e) of unit rows [B, D], brought to unit length."""
        return normalize((rows - self.mean) @ self.metric, dim=1)

    @torch.no_grad()
    def update(self, teacher: Tensor, *, assigned: Assigned | None = None) -> None:
        """Update the running moments by a batch [B, D]; after `fit`, nothing. Rows that are not finite are left out.

        One all-reduce carries the sums of all ranks. Nothing is copied to the host but at the few steps that decompose
        the covariance, whose numbers are known beforehand.

        Raises: LGDError for embeddings that do not fit the text bank.
        """
        self.check("teacher", teacher)
        if self._fitted:
            return
        with torch.autocast(teacher.device.type, enabled=False):
            rows = normalize(teacher.float(), dim=1)
            self._take(_all_reduced(self._sums(rows)))
            self._updates += 1
            if _due(self._updates):
                self._solve()
            if self.config.balance:
                self._step_potential(rows)

    @torch.no_grad()
    def fit(self, embeddings: Iterable[Tensor]) -> None:
        """Compute the moments of all stored embeddings and what follows from them, once for the whole run.

        Args:
            embeddings: batches [B, D] of this rank's share. It may be empty, but not on every rank.

        Every rank has to call it.
        """
        with torch.autocast(self.text_bank.device.type, enabled=False):
            sums, sample = self._sums(self.text_bank[:0]), _Sample(SAMPLE // len(self.text_bank))
            for batch in embeddings:
                rows = normalize(batch.to(self.text_bank).float(), dim=1)
                sums += self._sums(rows)
                sample.add(rows)
            self._take(_all_reduced(sums))
            self._solve()
            self._fitted = True
            if self.config.balance:
                self._fit_balance(torch.cat([self.text_bank[:0], *sample.parts]))

    def _fit_balance(self, rows: Tensor) -> None:
        images, names = int(self.images), len(self.text_bank)
        if images < FEW * names:
            log.warning(
                "objective.balance is %g for %d names and %d images. Of so few even equally frequent names show up "
                "unequally often: leave it out, or have %d images a name.",
                *(self.config.balance, names, images, FEW),
            )
        found = balance_names(self._answers(rows), balance=self.config.balance)
        for buffer, value in zip((self.potential, self.found, self.balanced), found, strict=True):
            buffer.copy_(value)

    def _answers(self, teacher: Tensor) -> Tensor:
        """p [B, C] before the balance."""
        config = self.config
        if not config.refine:
            return self._text_answers(teacher)
        g = torch.addmm(self.prior, teacher - self.mean, self.refiner)
        return _unit_sum(g.clamp_min_(config.floor / len(self.text_bank)).pow_(config.sharpen))

    def _text_answers(self, teacher: Tensor) -> Tensor:
        return torch.softmax(teacher @ self.text_bank.T / self.config.teacher_temperature, 1)

    def _sums(self, rows: Tensor) -> Tensor:
        """Over unit rows [B, D] that are finite: of 1, t, q, t t^T and t q^T, in this order, in one vector."""
        finite = rows.isfinite().all(1, keepdim=True)
        rows = torch.where(finite, rows, 0.0)
        q = self._text_answers(rows) * finite
        count, products = finite.sum()[None].float(), [(rows.T @ other).ravel() for other in (rows, q)]
        return torch.cat([count, rows.sum(0), q.sum(0), *products])

    def _take(self, sums: Tensor) -> None:
        """Move the moments, means over `images`, by the sums over some more."""
        names, dim = self.text_bank.shape
        count, *parts = sums.split([1, dim, names, dim * dim, dim * names])
        share = count / (self.images + count).clamp_min(1)
        for moment, part in zip((self.mean, self.prior, self.second, self.cross), parts, strict=True):
            moment.lerp_(part.view_as(moment) / count.clamp_min(1), share)
        self.images += count[0].long()

    def _solve(self) -> None:
        """Compute `metric` and `refiner` from the moments, on the first rank, for all."""
        config = self.config
        covariance = self.second - torch.outer(self.mean, self.mean)
        values, vectors = torch.linalg.eigh(covariance.double())
        values = values.clamp_min(0)
        average = values.mean().clamp_min(LEAST_VARIANCE / len(values))
        powers = (values / average + config.shrink).pow(-config.whiten / 2)
        self.metric.copy_((vectors * powers) @ vectors.T)
        inverse = (vectors / (values + config.ridge * average)) @ vectors.T
        torch.mm(inverse.to(self.cross), self.cross - torch.outer(self.mean, self.prior), out=self.refiner)
        if rank_and_world_size()[1] > 1:  # different processors give different last digits
            for result in (self.metric, self.refiner):
                dist.broadcast(result, 0)

    def _step_potential(self, rows: Tensor) -> None:
        """Move the potential a little, so that running means of p come nearer to the frequencies that are wanted."""
        share = 1 / min(self._updates, 100)
        rows = torch.where(rows.isfinite().all(1, keepdim=True), rows, 0.0)
        p = self._answers(rows)
        sums = _all_reduced(torch.stack([p.sum(0), _unit_sum(p * self.potential).sum(0)]))
        self.found.lerp_(sums[0] / sums[0].sum(), share)
        self.balanced.lerp_(sums[1] / sums[1].sum(), share)
        balance = self.config.balance
        self.potential.copy_(_scaled(self.potential, self.found, self.balanced, balance=balance, rate=POTENTIAL_RATE))

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self._updates, self._fitted], dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        self._updates, fitted = state.tolist()
        self._fitted = bool(fitted)


class _Sample:
    """Keeps rows [n, D] spread evenly over all that are added, at most `room` on all ranks together."""

    def __init__(self, room: int) -> None:
        self._room = max(1, room // rank_and_world_size()[1])
        self._every, self._seen = 1, 0  # every how manyth row is kept; rows that were added
        self.parts: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        self.parts.append(rows[-self._seen % self._every :: self._every])
        self._seen += len(rows)
        while -(-self._seen // self._every) > self._room:  # as many are kept
            self.parts = [torch.cat(self.parts)[::2]]
            self._every *= 2


class Balance(NamedTuple):
    """Factors of the names' answers, and the names' frequencies without and with them, each [C]."""

    potential: Tensor
    found: Tensor
    balanced: Tensor


def balance_names(answers: Tensor, *, balance: float = 1.0) -> Balance:
    """Find factors of 0.001 to 1000 that bring names to a flatter frequency among images, by Sinkhorn's scaling.

    Args:
        answers: rows [N, C] of sum 1, of this rank's images.
        balance: 1: the names are equally frequent; 0: as frequent as they were.
    """
    found = _frequencies(answers)
    potential, balanced = torch.ones_like(found), found
    for _ in range(SINKHORN_STEPS):
        balanced = _frequencies(_unit_sum(answers * potential))
        potential = _scaled(potential, found, balanced, balance=balance, rate=1.0)
    return Balance(potential, found, balanced)


def _frequencies(answers: Tensor) -> Tensor:
    """Of the names among all ranks' images [C]."""
    sums = _all_reduced(answers.sum(0))
    return sums / sums.sum()


def _scaled(potential: Tensor, found: Tensor, balanced: Tensor, *, balance: float, rate: float) -> Tensor:
    """The potential, moved towards the frequencies that are wanted."""
    wanted = found.clamp_min(1e-8) ** (1 - balance)
    return (potential * (wanted / wanted.sum() / balanced.clamp_min(1e-8)) ** rate).clamp_(1e-3, 1e3)


def _due(update: int) -> bool:
    """Whether the covariance is decomposed after this update: the first 8, then four times while the number doubles."""
    return update % (1 << max(0, update.bit_length() - 3)) == 0


def _unit_sum(rows: Tensor) -> Tensor:
    return rows / rows.sum(1, keepdim=True)


def _all_reduced(sums: Tensor) -> Tensor:
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(sums)
    return sums
