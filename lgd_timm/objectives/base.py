"""The call that every objective answers."""

from __future__ import annotations

from torch import Tensor, nn


class Objective(nn.Module):
    """Scores a batch of student embeddings against the teacher's. State lives in buffers, so it goes into checkpoints."""

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Embeddings [B, D] each, before L2 normalisation -> `loss` and its named parts, float32 scalars."""
        raise NotImplementedError

    def update(self, teacher: Tensor) -> None:
        """Take the batch's teacher embeddings [B, D] into the state. Called once a step, on every rank."""
