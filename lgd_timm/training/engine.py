"""The training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import LGDError


@dataclass
class Skipped:
    """Counts the steps that were left out; fails after more than `allowed` in a row. With float16 a few are the scaler's search."""

    allowed: int
    total: int = 0
    in_row: int = 0

    def add(self, keys: Sequence[str], *, step: int) -> str:
        """Count one; returns a line that names it. Raises: LGDError, with the batch's keys."""
        self.total += 1
        self.in_row += 1
        text = f"step {step + 1}: a gradient is not finite"
        if self.in_row > self.allowed:
            raise LGDError(
                f"{text}, like those of the {self.allowed} steps before. Lower optimizer.lr, set optimizer.clip_grad, or look at the "
                f"images of this batch: {', '.join(keys)}."
            )
        return f"{text}, so it was left out (of images {', '.join(keys[:4])}, ...)"


def step_seed(seed: int, *, step: int, rank: int = 0) -> int:
    """What a step's random numbers begin with: a run that is resumed anywhere draws what it would have drawn."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)
