"""Map the student's hidden states to the teacher's width: one linear layer a pair of blocks."""

from __future__ import annotations

from torch import nn


def projectors(count: int, *, student: int, teacher: int) -> nn.ModuleList:
    """Build linear maps from the student's width to the teacher's."""
    return nn.ModuleList(nn.Linear(student, teacher) for _ in range(count))
