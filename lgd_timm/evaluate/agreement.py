"""How faithful a student is to its teacher on images that neither was scored for: the same answers, the same errors, the same doubts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div, normalize

from ..errors import LGDError


@dataclass(frozen=True)
class Agreement:
    """Of `samples` images. Shares in percent; those that need labels are None without, or where there is no such image."""

    top1: float  # student and teacher answer with the same name
    top1_teacher_right: float | None  # of the images on which the teacher is right
    top1_teacher_wrong: float | None  # of those on which it is wrong: the student makes the very same error
    kl: float  # mean KL(teacher || student) of their distributions over the names, nats
    cosine: float  # mean cosine of their embeddings of an image
    student_temperature: float
    teacher_temperature: float
    samples: int

    def to_dict(self) -> dict[str, Any]:
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
    """Embeddings [N, D] of both on the same images, the names' bank [C, D], labels int64 [N] (-1: none).

    Raises: LGDError for embeddings of other shapes, and temperatures that are not above 0.
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
