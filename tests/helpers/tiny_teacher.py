"""The smallest teacher there can be, for tests of what is done with a teacher's embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lgd_timm.data.preprocess import Preprocess
from lgd_timm.teachers import ImageTeacher


def interrupt() -> None:
    raise KeyboardInterrupt


class Tiny(ImageTeacher):
    """A fixed random projection. At call `fail_at` it does what it is told instead."""

    def __init__(self, *, seed: int = 0, fail_at: int | None = None, fail: Callable[[], None] = interrupt) -> None:
        super().__init__(Preprocess(size=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)))
        self.name, self.embed_dim, self.fingerprint = "tiny", 5, f"{seed:02x}" * 8
        weight = torch.randn(5, 3 * 8 * 8, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("weight", weight)
        self.calls, self.fail_at, self.fail = 0, fail_at, fail
        self.sizes: set[int] = set()

    def encode(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.sizes.add(len(inputs))
        if self.calls == self.fail_at:
            self.fail()
        return inputs.flatten(1) @ self.weight.T
