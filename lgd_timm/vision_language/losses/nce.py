"""Tell each token's teacher state from those of other tokens: token-wise NCE (DistillVLM, arXiv 2104.02096).

    L = -mean_i log( exp(s_i . t_i / tau) / (exp(s_i . t_i / tau) + sum_j exp(s_i . q_j / tau)) )

with s_i the student's hidden state of token i, projected to the teacher's width, t_i the teacher's of the same token,
q a first-in, first-out queue of the teacher's states of earlier batches; all are unit rows. The paper's best queue has
4,096 rows. The temperature, the linear projection and the last block are ours: the paper's are not known.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ...errors import RecipeError
from ...utils.distributed import concat_all_gather, rank_and_world_size
from ...utils.schema import Count, Rate
from .blocks import LAST, States, check_blocks, mean, mean_of_tokens
from .projection import projectors


@dataclass(frozen=True)
class NCEConfig:
    """Switches of the token-wise NCE."""

    weight: Rate = 1.0  # of this loss in the sum; 0: it is not computed
    queue: Count = 4096  # states of the teacher's tokens, of all blocks that are compared
    temperature: float = 0.1  # divides the similarities
    blocks: list[list[int]] = field(default_factory=lambda: [list(pair) for pair in LAST])  # [student's, teacher's]

    def __post_init__(self) -> None:
        check_blocks(self.blocks, where="distillation.nce.blocks")
        if not self.temperature > 0:
            raise RecipeError(f"distillation.nce.temperature = {self.temperature} must be above 0.")


class TokenNCE(nn.Module):
    """The loss, its projectors and its queues.

    Args:
        config: switches.
        student: the student's width.
        teacher: the teacher's width.

    Buffers: `queue` [P, Q, D], unit rows for each of the P pairs of blocks, random at first; `place` [], int64, the
    index of the row that is replaced next.
    """

    queue: Tensor
    place: Tensor

    def __init__(self, config: NCEConfig, *, student: int, teacher: int) -> None:
        super().__init__()
        self.config = config
        self.projectors = projectors(len(config.blocks), student=student, teacher=teacher)
        self.register_buffer("queue", normalize(torch.randn(len(config.blocks), config.queue, teacher), dim=2))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, student: States, teacher: States) -> Tensor:
        """Compute the loss, float32 []. Neither the teacher's states nor the queue get a gradient."""
        parts = []
        for number, (s, t) in enumerate(self.config.blocks):
            projected = self.projectors[number](student.hidden[s])
            parts.append(self._loss(projected, teacher.hidden[t], self.queue[number], valid=student.valid))
        return mean(parts)

    def _loss(self, student: Tensor, teacher: Tensor, queue: Tensor, *, valid: Tensor) -> Tensor:
        """The loss of one pair of blocks, [B, T, D] each."""
        with torch.autocast(student.device.type, enabled=False):
            s, t = normalize(student.float()[valid], dim=1), normalize(teacher.detach().float()[valid], dim=1)
            logits = torch.cat([(s * t).sum(1, keepdim=True), s @ queue.T], 1) / self.config.temperature
            losses = cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64), reduction="none")
        return mean_of_tokens(losses.new_zeros(valid.shape).masked_scatter(valid, losses), valid)

    @torch.no_grad()
    def update(self, teacher: States) -> None:
        """Put the batch's teacher states of all ranks in the queue; after the backward pass, which needs the old rows.

        Of more tokens than the queue holds, the last are put in.
        """
        rows = torch.stack([teacher.hidden[t][teacher.valid] for _, t in self.config.blocks], 1)
        rows = gather_rows(normalize(rows.float(), dim=2))[-self.config.queue :]
        indices = (self.place + torch.arange(len(rows), device=rows.device)) % self.config.queue
        # A row that is not finite would spoil every later loss, so the old one stays.
        new, old = rows.transpose(0, 1), self.queue[:, indices]
        self.queue.index_copy_(1, indices, torch.where(new.isfinite().all(2, keepdim=True), new, old))
        self.place.add_(len(rows)).remainder_(self.config.queue)


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows [N, ...] of all ranks, of which each may have another number N; equal on every rank."""
    if rank_and_world_size()[1] == 1:
        return rows
    counts = concat_all_gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    everyone = concat_all_gather(padded).view(dist.get_world_size(), *padded.shape)
    return torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)])
