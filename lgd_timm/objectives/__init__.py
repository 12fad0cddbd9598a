"""Losses between student and teacher embeddings, one a file, all called in the same way.

losses = objective(student, teacher)      # [B, D] each, BEFORE L2 normalisation -> {"loss": ..., "loss_*": ...}
losses["loss"].backward()
objective.update(teacher)                 # banks and queues, after the loss
"""

from .base import Assigned, Objective, join_assigned
from .clip_kd import CLIPKD
from .lgd import LGD
from .logits import Logits
from .refined import RefinedDistillation
from .registry import OBJECTIVES, create_objective, objective_config
from .regression import Regression
from .seed import SEED
from .supervised import Supervised

__all__ = [
    "CLIPKD",
    "LGD",
    "OBJECTIVES",
    "SEED",
    "Assigned",
    "Logits",
    "Objective",
    "RefinedDistillation",
    "Regression",
    "Supervised",
    "create_objective",
    "join_assigned",
    "objective_config",
]
