"""Cross-entropy between two embeddings' similarities to a bank of rows: names, prototypes, or past embeddings.

    L = -mean_i sum_k softmax(t_i . b_k / tau_T)_k  log softmax(s_i . b_k / tau_S)_k

A plain implementation keeps several [B, C] matrices for the backward pass. But the gradient has a closed form,

    dL/ds_i = sum_k (softmax(s_i . b / tau_S)_k - softmax(t_i . b / tau_T)_k) b_k / (B tau_S)

so the forward pass computes both, one chunk of rows after the other, and keeps only [B, D]. Liger-Kernel's fused linear
cross-entropy (arXiv 2410.10989) does the same for labels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**22  # elements in a chunk's logits: 16 MiB, and few enough chunks to keep an accelerator busy


class Similarity(NamedTuple):
    """The loss, and for each teacher row the bank row that is most similar to it."""

    loss: Tensor  # float32 scalar
    nearest: Tensor  # index of the bank row, int64 [B]
    confidence: Tensor  # its probability, float32 [B]


def similarity_loss(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    positive: bool = False,
    keep: Tensor | None = None,
    rows: int | None = None,
) -> Similarity:
    """Compute the cross-entropy of the student's distribution over the bank's rows against the teacher's.

    Nothing is copied to the host. The caller has to disable autocast: temperatures of 0.01 need float32.

    Args:
        student: unit rows, float32 [B, D]. It gets a gradient, of first order only.
        teacher: unit rows, float32 [B, D]. It gets none.
        bank: float32 [C, D]. It may change in place before the backward pass, which does not read it.
        student_temperature: divides the student's similarities.
        teacher_temperature: divides the teacher's.
        positive: one more logit beside the bank's: the similarity to the teacher's own row.
        keep: bool [C], the rows that count; the others have probability 0. At least one must count unless `positive`.
        rows: of the batch in a chunk; as many as `CHUNK` holds if None.
    """
    differentiable = torch.is_grad_enabled() and student.requires_grad
    names = len(bank)
    with torch.no_grad():
        gradient = torch.empty_like(student) if differentiable else None
        scale = 1 / (max(len(student), 1) * student_temperature)
        parts = chunks(len(student), names, rows=rows)
        work = _buffers(3, student, parts, names + positive)
        losses, nearest, confidence = [], [], []
        for part in parts:
            s, t = student[part], teacher[part]
            logits, p, log_q = (buffer[: len(s)] for buffer in work)
            _logits(t, t, bank, teacher_temperature, positive=positive, keep=keep, out=logits)
            best = _softmax(logits, names, out=p)
            _logits(s, t, bank, student_temperature, positive=positive, keep=keep, out=logits)
            torch.log_softmax(logits, 1, out=log_q)
            losses.append(torch.mul(p, log_q, out=logits).sum(1))
            nearest.append(best[0])
            confidence.append(best[1])
            if gradient is not None:
                difference = log_q.exp_().sub_(p)
                gradient[part].addmm_(difference[:, :names], bank, beta=0, alpha=scale)
                if positive:
                    gradient[part].addcmul_(difference[:, names:], t, value=scale)
        loss = -torch.cat(losses).mean()
    if gradient is not None:
        loss = _KnownGradient.apply(student, loss, gradient)
    return Similarity(loss, torch.cat(nearest), torch.cat(confidence))


@torch.no_grad()
def nearest_rows(
    teacher: Tensor, bank: Tensor, *, temperature: float, rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Compute `nearest` and `confidence` of `similarity_loss`, without a loss."""
    parts = chunks(len(teacher), len(bank), rows=rows)
    work = _buffers(2, teacher, parts, len(bank))
    best = []
    for part in parts:
        logits, p = (buffer[: len(teacher[part])] for buffer in work)
        _logits(teacher[part], teacher[part], bank, temperature, positive=False, keep=None, out=logits)
        best.append(_softmax(logits, len(bank), out=p))
    nearest, confidence = zip(*best, strict=True)
    return torch.cat(nearest), torch.cat(confidence)


def chunks(batch: int, names: int, *, rows: int | None = None) -> list[slice]:
    """Slice a batch into chunks of `rows`, or of so many that [rows, names] holds about `CHUNK` elements."""
    rows = rows or max(1, CHUNK // names)
    return [slice(start, start + rows) for start in range(0, max(batch, 1), rows)]


def _buffers(count: int, like: Tensor, parts: list[slice], width: int) -> list[Tensor]:
    # The chunks share them: new memory for each operation takes time and fragments the pool.
    return [like.new_empty(min(parts[0].stop, len(like)), width) for _ in range(count)]


def _logits(
    embeddings: Tensor,
    teacher: Tensor,
    bank: Tensor,
    temperature: float,
    *,
    positive: bool,
    keep: Tensor | None,
    out: Tensor,
) -> None:
    """Fill `out` [b, C], or [b, C + 1] with the positive last: in place, as a concatenation would copy all."""
    names = out[:, : len(bank)]
    names.addmm_(embeddings, bank.T, beta=0, alpha=1 / temperature)
    if keep is not None:
        # The least finite number, after the temperature was applied: minus infinity times a probability of 0 is NaN.
        names.masked_fill_(~keep, torch.finfo(out.dtype).min)
    if positive:
        out[:, -1] = (embeddings * teacher).sum(1) / temperature


def _softmax(logits: Tensor, names: int, *, out: Tensor) -> tuple[Tensor, Tensor]:
    """Write the softmax of [b, C] or [b, C + 1] logits to `out`; return the likeliest names and probabilities [b]."""
    nearest = logits[:, :names].argmax(1)
    torch.softmax(logits, 1, out=out)
    return nearest, out.gather(1, nearest[:, None])[:, 0]


class _KnownGradient(torch.autograd.Function):
    """Attach to a loss the gradient with respect to the student that was computed along with it."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * incoming, None, None
