"""One step: gradients, then optimizer, bank and average; or nothing at all, where a gradient is not finite."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from ..data.dataset import Batch
from ..objectives import Assigned, join_assigned
from .engine import step_seed

if TYPE_CHECKING:
    from .state import Run


def train_step(run: Run, batch: Batch) -> tuple[dict[str, Tensor], bool]:
    """One optimizer step and one bank step. Returns the losses, on the device, and whether the step was taken.

    It is left out where a gradient is not finite, on every rank alike as they share it: weights, batch statistics, banks and
    averages are then as they were. Reading the losses is the caller's to delay.
    """
    torch.manual_seed(step_seed(run.recipe.machine.seed, step=run.step, rank=run.ranks.rank))
    statistics = list(run.task.student.buffers())  # which a forward pass moves
    before = [buffer.clone() for buffer in statistics]
    losses, teacher, assigned = _gradients(run, batch)
    run.scaler.unscale_(run.optimizer)
    finite = bool(_norm(run).isfinite())
    if finite:
        run.scaler.step(run.optimizer)
        run.task.update(teacher, assigned=assigned)
        run.task.update_ema(step=run.step)
    else:
        for buffer, value in zip(statistics, before, strict=True):
            buffer.copy_(value)
    run.scaler.update()
    return losses, finite


def _gradients(run: Run, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Assigned | None]:
    """Gradients of the batch's mean loss, in as many passes as the recipe says.

    Returns the losses, the teacher's embeddings [B, D], and the names that they are nearest to, if the loss knows them.
    """
    amp, parts = run.recipe.machine.amp, batch.split(run.recipe.machine.accumulate)
    dtype = torch.float16 if amp == "float16" else torch.bfloat16
    losses: dict[str, Tensor] = {}
    teachers: list[Tensor] = []
    assigned: list[Assigned | None] = []
    run.optimizer.zero_grad(set_to_none=True)
    for number, part in enumerate(parts, start=1):
        share = len(part.keys) / len(batch.keys)
        with (
            nullcontext() if number == len(parts) else run.task.no_sync()
        ):  # ranks reduce once, with the last part's pass
            with torch.autocast(run.device.type, dtype=dtype, enabled=amp != "none"):
                result: dict[str, Any] = run.task(
                    part.images, None if part.embeddings is None else part.embeddings.float(), labels=part.labels
                )
            run.scaler.scale(result["loss"] * share).backward()
        for name in (name for name in result if name.startswith("loss")):
            losses[name] = losses.get(name, 0) + share * result[name].detach()
        teachers.append(result["teacher"])
        assigned.append(result.get("assigned"))
    return losses, teachers[0] if len(teachers) == 1 else torch.cat(teachers), join_assigned(assigned)


def _norm(run: Run) -> Tensor:
    """Length of all gradients together, which are then clipped if the recipe says so."""
    parameters, clip = list(run.task.student.parameters()), run.recipe.optimizer.clip_grad
    if clip is not None:
        return clip_grad_norm_(parameters, clip)
    return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
