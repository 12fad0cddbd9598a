"""The base class of all objectives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..errors import LGDError


class Assigned(NamedTuple):
    """Which name a batch's teacher embeddings are nearest to: found by the loss, used again by the bank's update."""

    nearest: Tensor  # index of the name, int64 [B]
    confidence: Tensor  # the teacher's probability of that name, float32 [B]


def join_assigned(parts: Sequence[Assigned | None]) -> Assigned | None:
    """Join the assignments of a batch that was taken in several passes; None if a pass has none."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        return None
    if len(known) == 1:
        return known[0]
    return Assigned(torch.cat([part.nearest for part in known]), torch.cat([part.confidence for part in known]))


class Objective(nn.Module):
    """Score a batch of student embeddings against the teacher's. State lives in buffers, so it goes into checkpoints.

    Args:
        text_bank: unit rows [C, D], one a category name.
        preset: one of the class's `presets`; the first if None.
        seed: of whatever starts at random, so that every rank starts with the same.
        switches: fields of the preset that are set otherwise.

    Buffers: `text_bank` float32 [C, D], and whatever a subclass has.

    Raises:
        LGDError: the bank is no [C, D] matrix of unit rows, the preset or a switch is unknown.
    """

    presets: ClassVar[Mapping[str, Any]]  # name -> frozen dataclass of switches, `student_temperature` among them
    method: ClassVar[str]  # what it is called, with its source, in Markdown
    # Whether the loss is a mean over images that do not depend on one another and does not change the state:
    # only then can a batch be taken in several passes.
    per_image: bool = True
    needs_labels: ClassVar[bool] = False  # whether `forward` takes labels, int64 [B], in place of teacher embeddings
    text_bank: Tensor

    def __init__(self, text_bank: Tensor, *, preset: str | None = None, seed: int = 0, **switches: Any) -> None:
        super().__init__()
        _check_bank(text_bank)
        self.config = self.configure(preset, **switches)
        self.seed = seed
        self.register_buffer("text_bank", text_bank.detach().float().clone())

    @classmethod
    def configure(cls, preset: str | None = None, **switches: Any) -> Any:
        """Return a preset with some switches changed. Raises: LGDError for unknown presets, switches or values."""
        if preset is None:
            preset = next(iter(cls.presets))
        if preset not in cls.presets:
            raise LGDError(f"objective.preset {preset!r} is unknown; choose one of {', '.join(cls.presets)}.")
        known = asdict(cls.presets[preset])
        if unknown := sorted(set(switches) - set(known)):
            raise LGDError(f"objective has no switch {unknown[0]!r}; it has {', '.join(known)}.")
        return replace(cls.presets[preset], **switches)

    def forward(self, student: Tensor, target: Tensor) -> dict[str, Any]:
        """Compute the losses of a batch.

        Args:
            student: the student's embeddings before L2 normalisation [B, D].
            target: the teacher's embeddings before L2 normalisation [B, D]; labels, int64 [B], with `needs_labels`.

        Returns:
            `loss`, which is minimised, and its parts, `loss_*`: float32 scalars. An entry whose name does not begin
            with "loss" is not a loss: `assigned` is for `update`.

        Raises:
            LGDError: the embeddings do not fit the text bank or one another.
        """
        s, t = self.unit_rows(student, target)
        with torch.autocast(s.device.type, enabled=False):
            return self.score(s, t)

    def score(self, s: Tensor, t: Tensor) -> dict[str, Any]:
        """Compute what `forward` returns, from float32 unit rows [B, D] and with autocast off."""
        raise NotImplementedError

    def update(self, teacher: Tensor, *, assigned: Assigned | None = None) -> None:
        """Update banks and queues by the batch's teacher embeddings [B, D]. Called once a step, on every rank.

        Args:
            teacher: embeddings before L2 normalisation [B, D].
            assigned: `assigned` of the loss's result, if it has one; whoever needs it computes it anew if None.
        """

    def fit(self, embeddings: Iterable[Tensor]) -> None:
        """Take all of the teacher's embeddings, batches [B, D], before the first step; only where they are stored.

        Every rank calls it, with its share of the shards. An objective that needs none does not look at them.
        """

    def check(self, who: str, embeddings: Tensor) -> None:
        """Refuse embeddings that do not fit the text bank. Raises: LGDError."""
        expected = self.text_bank.shape[1]
        if embeddings.ndim != 2 or embeddings.shape[1] != expected:
            raise LGDError(
                f"{who} embeddings have shape {list(embeddings.shape)}; the text bank asks for [B, {expected}]."
            )

    def unit_rows(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise both to float32 unit rows [B, D], the teacher's without a gradient. Raises: LGDError."""
        self.check("student", student)
        self.check("teacher", teacher)
        if len(student) != len(teacher):
            raise LGDError(
                f"{len(student)} student embeddings stand beside {len(teacher)} of the teacher; "
                "both must be of the same images."
            )
        with torch.autocast(student.device.type, enabled=False):  # temperatures of 0.01 need float32
            return normalize(student.float(), dim=1), normalize(teacher.detach().float(), dim=1)

    def random_rows(self, count: int) -> Tensor:
        """Draw unit rows [count, D] on the text bank's device, the same for the same seed on any machine."""
        rows = torch.randn(count, self.text_bank.shape[1], generator=torch.Generator().manual_seed(self.seed))
        return normalize(rows.to(self.text_bank.device), dim=1)

    def extra_repr(self) -> str:
        return f"names={len(self.text_bank)}, dim={self.text_bank.shape[1]}, {self.config}"


def above_zero(config: Any, *names: str) -> None:
    """Refuse a field that is given and not above 0. Raises: LGDError."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise LGDError(f"objective.{name} = {value} must be above 0.")


def between(config: Any, low: float, high: float, *names: str) -> None:
    """Refuse a field outside [low, high]. Raises: LGDError."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            raise LGDError(f"objective.{name} = {value} is outside [{low:g}, {high:g}].")


def one_of(config: Any, name: str, *choices: str) -> None:
    """Refuse a field that is none of the choices. Raises: LGDError."""
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
