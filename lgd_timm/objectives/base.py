"""The call that every objective answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..errors import LGDError


class Objective(nn.Module):
    """Scores a batch of student embeddings against the teacher's. State lives in buffers, so it goes into checkpoints.

    Args:
        text_bank: unit rows [C, D], one a category name.
        preset: one of the class's `presets`; the first if None.
        seed: of whatever starts at random, so that every rank starts with the same.
        switches: fields of the preset that are set otherwise.

    Buffers: `text_bank` [C, D], and whatever a subclass has. Raises: LGDError for a bank that is no [C, D] matrix of unit
    rows, an unknown preset, unknown switches.
    """

    presets: ClassVar[Mapping[str, Any]]  # name -> frozen dataclass of switches, `student_temperature` among them
    method: ClassVar[str]  # what it is called, with its source, in Markdown
    per_image: bool = (
        True  # the loss is a mean over images, each of which could be asked alone, and does not move the state
    )
    needs_labels: ClassVar[bool] = (
        False  # then `forward` is given labels, int64 [B], in place of the teacher's embeddings
    )
    text_bank: Tensor

    def __init__(self, text_bank: Tensor, *, preset: str | None = None, seed: int = 0, **switches: Any) -> None:
        super().__init__()
        _check_bank(text_bank)
        self.config = self.configure(preset, **switches)
        self.seed = seed
        self.register_buffer("text_bank", text_bank.detach().float().clone())

    @classmethod
    def configure(cls, preset: str | None = None, **switches: Any) -> Any:
        """A preset with some switches changed. Raises: LGDError for unknown presets, switches or values."""
        if preset is None:
            preset = next(iter(cls.presets))
        if preset not in cls.presets:
            raise LGDError(f"objective.preset {preset!r} is unknown; choose one of {', '.join(cls.presets)}.")
        known = asdict(cls.presets[preset])
        if unknown := sorted(set(switches) - set(known)):
            raise LGDError(f"objective has no switch {unknown[0]!r}; it has {', '.join(known)}.")
        return replace(cls.presets[preset], **switches)

    def forward(self, student: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Embeddings [B, D] of student and teacher, before L2 normalisation -> `loss` and its named parts, float32 scalars."""
        s, t = self.unit_rows(student, target)
        with torch.autocast(s.device.type, enabled=False):
            return self.score(s, t)

    def score(self, s: Tensor, t: Tensor) -> dict[str, Tensor]:
        """The same of float32 unit rows [B, D], of which the student's have a gradient; autocast is off."""
        raise NotImplementedError

    def update(self, teacher: Tensor) -> None:
        """Take the batch's teacher embeddings [B, D] into the state. Called once a step, on every rank."""

    def check(self, who: str, embeddings: Tensor) -> None:
        """Raises: LGDError for embeddings that do not fit the text bank."""
        expected = self.text_bank.shape[1]
        if embeddings.ndim != 2 or embeddings.shape[1] != expected:
            raise LGDError(
                f"{who} embeddings have shape {list(embeddings.shape)}; the text bank asks for [B, {expected}]."
            )

    def unit_rows(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both as float32 unit rows [B, D], the teacher's without a gradient. Raises: LGDError where they do not fit."""
        self.check("student", student)
        self.check("teacher", teacher)
        if len(student) != len(teacher):
            raise LGDError(
                f"{len(student)} student embeddings stand beside {len(teacher)} of the teacher; both must be of the same images."
            )
        with torch.autocast(student.device.type, enabled=False):  # temperatures of 0.01 need float32
            return normalize(student.float(), dim=1), normalize(teacher.detach().float(), dim=1)

    def random_rows(self, count: int) -> Tensor:
        """Random unit rows [count, D], the same for the same seed on any machine, beside the text bank."""
        rows = torch.randn(count, self.text_bank.shape[1], generator=torch.Generator().manual_seed(self.seed))
        return normalize(rows.to(self.text_bank.device), dim=1)

    def extra_repr(self) -> str:
        return f"names={len(self.text_bank)}, dim={self.text_bank.shape[1]}, {self.config}"


def above_zero(config: Any, *names: str) -> None:
    """Raises: LGDError for a field that is given and not above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise LGDError(f"objective.{name} = {value} must be above 0.")


def between(config: Any, low: float, high: float, *names: str) -> None:
    """Raises: LGDError for a field outside [low, high]."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            raise LGDError(f"objective.{name} = {value} is outside [{low:g}, {high:g}].")


def one_of(config: Any, name: str, *choices: str) -> None:
    """Raises: LGDError for a field that is none of the choices."""
    if getattr(config, name) not in choices:
        raise LGDError(f"objective.{name} = {getattr(config, name)!r} is unknown; choose {' or '.join(choices)}.")


def _check_bank(bank: Tensor) -> None:
    if bank.ndim != 2 or len(bank) < 2:
        raise LGDError(f"The text bank has shape {list(bank.shape)}; it must be [C, D] with at least two names.")
    norms = bank.float().norm(dim=1)
    if not torch.allclose(norms, torch.ones_like(norms), atol=1e-3):
        raise LGDError(
            f"The text bank's rows have lengths {norms.min():.3f} to {norms.max():.3f}; they must be unit vectors."
        )
