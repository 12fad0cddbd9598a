"""What a student is asked to reproduce. One objective a file, all with the same call.

objective(student [B, D], teacher [B, D]) -> {"loss": ..., named parts}      embeddings BEFORE L2 normalisation
objective.update(teacher [B, D])             the step of its own state (banks, queues), after the loss
"""

from .base import Objective
from .clip_kd import CLIPKD
from .lgd import LGD
from .logits import Logits
from .registry import OBJECTIVES, create_objective, objective_config
from .regression import Regression
from .seed import SEED
from .supervised import Supervised

__all__ = [
    "CLIPKD",
    "LGD",
    "OBJECTIVES",
    "SEED",
    "Logits",
    "Objective",
    "Regression",
    "Supervised",
    "create_objective",
    "objective_config",
]
