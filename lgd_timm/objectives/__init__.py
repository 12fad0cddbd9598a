"""What a student is asked to reproduce. One objective a file, all with the same call.

objective(student [B, D], teacher [B, D]) -> {"loss": ..., named parts}      embeddings BEFORE L2 normalisation
objective.update(teacher [B, D])             the step of its own state (banks, queues), after the loss
"""

from .base import Objective
from .lgd import LGD

__all__ = ["LGD", "Objective"]
