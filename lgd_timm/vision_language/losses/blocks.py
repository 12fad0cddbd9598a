"""Which blocks of the student learn from which of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import RecipeError

LAST = [[-1, -1]]  # the paper's choice: the last block of each


class States(NamedTuple):
    """What a transformer computed of a batch of T tokens.

    Attributes:
        hidden: the output [B, T, D] of each block.
        attention: attention distributions [B, H, T, T] of each block, rows over keys.
        valid: whether a place holds a token, bool [B, T].
    """

    hidden: Sequence[Tensor]
    attention: Sequence[Tensor]
    valid: Tensor


def check_blocks(blocks: Sequence[Sequence[int]], *, where: str) -> None:
    """Check pairs (student's block, teacher's block); negative ones count from the last. Raises: RecipeError."""
    if not blocks or any(len(pair) != 2 for pair in blocks):
        raise RecipeError(f"{where} = {list(blocks)} must be pairs of blocks, [[student's, teacher's], ...].")


def fit_blocks(blocks: Sequence[Sequence[int]], *, student: int, teacher: int, where: str) -> None:
    """Check that both models have the blocks. Raises: RecipeError."""
    for pair in blocks:
        for name, block, count in zip(("student", "teacher"), pair, (student, teacher), strict=True):
            if not -count <= block < count:
                raise RecipeError(f"{where} names block {block} of the {name}, which has {count}, from 0 or from -1.")


def mean_of_tokens(values: Tensor, valid: Tensor) -> Tensor:
    """Average values [B, T] over each sample's tokens, then over samples that have any: the mean of equal shares of a
    batch is the mean of the batch, however many tokens each has.
    """
    counts = valid.sum(1)
    means = (values * valid).sum(1) / counts.clamp(min=1)
    return means.sum() / (counts > 0).sum().clamp(min=1)


def mean(parts: Sequence[Tensor]) -> Tensor:
    """Average the losses of several pairs of blocks."""
    return torch.stack(list(parts)).mean()
