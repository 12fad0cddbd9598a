"""LGDTask: a distillation as timm's TrainingTask, with student, projector, objective and teacher."""

from __future__ import annotations

from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from .errors import LGDError
from .objectives import Assigned, Objective
from .students.model import Student
from .teachers import ImageTeacher


class LGDTask(TrainingTask):
    """Student and teacher embed the same images, and the objective compares their embeddings.

    Args:
        student: backbone and projector.
        objective: maps (student [B, D], teacher [B, D]) to a loss; owns banks and queues.
        teacher: an online teacher, or None when embeddings are stored and arrive as `target`.

    `forward(input, target)`: `input` are raw pixels, uint8 [B, 3, H, W] or float in 0..1, since teacher and student
    differ in statistics and size and each prepares its own; `target` are stored teacher embeddings [B, D], or None.
    The teacher is frozen, in eval and inference mode, and in no state_dict.
    """

    trainable_module: nn.Module

    def __init__(
        self,
        student: Student,
        objective: Objective,
        teacher: ImageTeacher | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.trainable_module = student.to(self.device)
        self.objective = objective.to(self.device)
        # In a list, so that the teacher is no submodule: not in checkpoints, not in .train(), not among the parameters.
        self._teacher = [] if teacher is None else [teacher.freeze().to(self.device)]

    @property
    def student(self) -> Student:
        module = unwrap_model(self.trainable_module)
        assert isinstance(module, Student)
        return module

    @property
    def ema_student(self) -> Student:
        """The moving average of the student; `setup_ema` must have been called."""
        module: Any = self.get_trainable_module(ema=True)
        return module.module

    @property
    def best_student(self) -> Student:
        """What is evaluated and published: the average if there is one."""
        return self.ema_student if self.has_ema() else self.student

    @property
    def state_modules(self) -> dict[str, nn.Module]:
        """The modules that a checkpoint saves, by file name."""
        average = {"ema": self.ema_student} if self.has_ema() else {}
        return {"student": self.student, **average, "objective": self.objective}

    @property
    def teacher(self) -> ImageTeacher | None:
        return self._teacher[0] if self._teacher else None

    def forward(self, input: Tensor, target: Tensor | None = None, *, labels: Tensor | None = None) -> dict[str, Any]:
        """Compute the losses of a batch.

        Args:
            input: pixels, uint8 [B, 3, H, W] or float in 0..1.
            target: the teacher's stored embeddings [B, D]; None: the online teacher computes them.
            labels: int64 [B], for an objective that needs them.

        Returns:
            What the objective returns (`loss`, its parts, maybe `assigned`), `output`, the student's embeddings [B, D],
            and `teacher`, the teacher's [B, D].

        Raises:
            LGDError: labels or embeddings are missing, or do not fit.
        """
        embeddings = self.teach(input) if target is None else target
        output = self.trainable_module(input)
        if self.objective.needs_labels and labels is None:
            raise LGDError(
                f"{type(self.objective).__name__} learns from labels and was given none. Pass labels=, int64 [B]."
            )
        return {
            **self.objective(output, labels if self.objective.needs_labels else embeddings),
            "output": output,
            "teacher": embeddings,
        }

    def teach(self, input: Tensor) -> Tensor:
        """Compute the online teacher's embeddings [B, D] of pixels. Raises: LGDError where there is none."""
        if self.teacher is None:
            raise LGDError(
                "The task has no teacher and was given no stored embeddings. Pass `target`, or build it with a teacher."
            )
        return self.teacher(input).clone()  # a clone leaves inference mode, so that autograd accepts it

    def update(self, teacher: Tensor, *, assigned: Assigned | None = None) -> None:
        """Update the objective's banks, after the optimizer's step.

        Args:
            teacher: `teacher` of `forward`'s result [B, D].
            assigned: `assigned` of it, if the objective gives one; saves a product with the text bank.
        """
        self.objective.update(teacher, assigned=assigned)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> LGDTask:
        result = super()._apply(fn, *args, **kwargs)
        for teacher in self._teacher:
            teacher._apply(fn, *args, **kwargs)
        return result

    def compile(  # type: ignore[override]  # timm's signature, which differs from Module's
        self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module | None:
        """Compile student and objective in place, without a wrapper: the keys of checkpoints stay the same."""
        for module in (self.trainable_module, self.objective):
            module.compile(backend=backend, mode=mode, **compile_kwargs)
        return self.trainable_module

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> LGDTask:
        """Wrap the student in DDP. Banks need no wrapping: they start equal and are updated by an all-reduce."""
        from torch.nn.parallel import DistributedDataParallel

        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return the objective's state, for timm's checkpoints."""
        return {"objective": self.objective.state_dict()}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        if state is not None:
            self.objective.load_state_dict(state["objective"], strict=strict)
        elif strict:
            raise LGDError(
                "The checkpoint has no objective state (banks). Load it with strict=False to start with fresh banks."
            )
