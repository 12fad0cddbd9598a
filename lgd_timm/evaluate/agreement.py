"""Measure how closely a student's zero-shot predictions follow its teacher's: answers, errors, KL divergence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div, normalize

from ..errors import LGDError


@dataclass(frozen=True)
class Agreement:
    """Agreement of a student with its teacher. Shares are in percent.

    Attributes:
        top1: share of images for which both answer with the same name.
        top1_teacher_right: the same over images on which the teacher is right; None without such an image, or labels.
        top1_teacher_wrong: the same over images on which it is wrong, so the student makes the same error; None
            likewise.
        kl: mean KL(teacher || student) of their distributions over the names, in nats.
        cosine: mean cosine of their embeddings of an image.
        student_temperature: of the student's distribution.
        teacher_temperature: of the teacher's distribution.
        samples: images that were compared.
    """

    top1: float
    top1_teacher_right: float | None
    top1_teacher_wrong: float | None
    kl: float
    cosine: float
    student_temperature: float
    teacher_temperature: float
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Give the attributes as plain data, as metrics.json holds them."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"same answer on {self.top1:.2f} % of {self.samples} images"]
        parts += [
            f"{share:.2f} % where the teacher is {verdict}"
            for share, verdict in ((self.top1_teacher_right, "right"), (self.top1_teacher_wrong, "wrong"))
            if share is not None
        ]
        return f"{', '.join(parts)}; KL {self.kl:.3f}, mean cosine {self.cosine:.3f}"


def agreement(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    labels: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Agreement:
    """Compare the embeddings of a student and its teacher.

    Args:
        student: embeddings [N, D].
        teacher: embeddings [N, D] of the same images.
        bank: the names' text embeddings [C, D], of length 1.
        labels: int64 [N], -1 where an image has none.
        student_temperature: divides the student's cosines.
        teacher_temperature: divides the teacher's cosines.

    Returns:
        The agreement.

    Raises:
        LGDError: shapes do not fit, or a temperature is not above 0.
    """
    if (
        student.shape != teacher.shape
        or not len(student)
        or len(labels) != len(student)
        or bank.shape[1] != student.shape[1]
    ):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (student, teacher, bank, labels))
        raise LGDError(
            f"Student, teacher, bank and labels of shapes {shapes} do not fit one another: [N, D], [N, D], [C, D], [N]."
        )
    if min(student_temperature, teacher_temperature) <= 0:
        raise LGDError(f"temperatures ({student_temperature:g}, {teacher_temperature:g}) must be above 0.")
    ours, theirs = (normalize(embeddings.float(), dim=1) @ bank.T for embeddings in (student, teacher))
    same, right = ours.argmax(1) == theirs.argmax(1), theirs.argmax(1) == labels
    kl = kl_div(
        (ours / student_temperature).log_softmax(1),
        (theirs / teacher_temperature).log_softmax(1),
        log_target=True,
        reduction="batchmean",
    )
    return Agreement(
        top1=100 * float(same.float().mean()),
        top1_teacher_right=_share(same, right & (labels >= 0)),
        top1_teacher_wrong=_share(same, ~right & (labels >= 0)),
        kl=float(kl),
        cosine=float(cosine_similarity(student.float(), teacher.float()).mean()),
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        samples=len(student),
    )


def _share(same: Tensor, where: Tensor) -> float | None:
    return 100 * float(same[where].float().mean()) if torch.any(where) else None
