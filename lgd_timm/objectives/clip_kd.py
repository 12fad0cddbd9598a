"""CLIP-KD without captions: feature and contrastive distillation, its two strongest losses (arXiv 2307.12732).

    L = w_c * L_contrastive + w_f * L_feature
    L_contrastive = -mean_i log softmax_j(s_i . t_j / tau)_i         the student as anchor, the teacher's batch as keys
    L_feature     =  mean over rows and dimensions of (s - t)^2      of unit rows; CLIP-KD weighs it 2000

CLIP-KD contrasts the student's images with the teacher's captions; here the teacher's images stand for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from ..utils.distributed import concat_all_gather, rank_and_world_size
from .base import Objective, above_zero, between


@dataclass(frozen=True)
class CLIPKDConfig:
    """Switches of `CLIPKD`."""

    contrastive_weight: float = 1.0  # of the image-to-teacher contrast
    feature_weight: float = 2000.0  # of the squared distance of the embeddings
    student_temperature: float = 0.07  # of the contrast; CLIP learns its own, beginning here

    def __post_init__(self) -> None:
        between(self, 0, float("inf"), "contrastive_weight", "feature_weight")
        above_zero(self, "student_temperature")


class CLIPKD(Objective):
    """CLIP-KD's losses. The keys are all ranks' embeddings, so the number of ranks does not change the losses."""

    method = "CLIP-KD's feature and contrastive distillation ([arXiv 2307.12732](https://arxiv.org/abs/2307.12732))"
    presets: ClassVar[dict[str, CLIPKDConfig]] = {"clip_kd": CLIPKDConfig()}
    config: CLIPKDConfig
    per_image = False

    def score(self, s: Tensor, t: Tensor) -> dict[str, Any]:
        config, own = self.config, rank_and_world_size()[0] * len(s) + torch.arange(len(s), device=s.device)
        contrastive = cross_entropy(s @ concat_all_gather(t).T / config.student_temperature, own)
        feature = mse_loss(s, t)
        loss = config.contrastive_weight * contrastive + config.feature_weight * feature
        return {"loss": loss, "loss_contrastive": contrastive, "loss_feature": feature}
