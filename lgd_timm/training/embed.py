"""A teacher over a stream of batches, with the device kept at work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from ..data.dataset import Batch
from ..errors import TeacherError
from ..teachers import ImageTeacher


def embedded(
    teacher: ImageTeacher, batches: Iterable[Batch], *, size: int, device: torch.device, compile: bool = False
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Each batch with its embeddings, unit rows float32 [B, D], at most `size` images going through the teacher at a time.

    It is one batch behind: the device works on the next while the caller writes. With `compile` all forwards are of one size,
    as each other size would be compiled anew. Raises: TeacherError for embeddings that have no direction.
    """
    teacher.to(device).to(memory_format=torch.channels_last)
    if compile:
        teacher.compile_encoder()
    behind: tuple[Batch, Callable[[], np.ndarray]] | None = None
    for batch in batches:
        rows = _embed(teacher, batch.to(device).images, size=size, fill=compile)
        ahead = batch, _on_host(teacher, rows)
        if behind is not None:
            yield behind[0], behind[1]()
        behind = ahead
    if behind is not None:
        yield behind[0], behind[1]()


def _embed(teacher: ImageTeacher, images: Tensor, *, size: int, fill: bool) -> Tensor:
    """uint8 [B, 3, S, S] -> unit rows float32 [B, D]."""
    rows = [torch.empty(0, teacher.embed_dim, device=images.device)]
    for part in images.split(size) if len(images) else ():
        full = pad(part, (0, 0) * 3 + (0, size - len(part))) if fill else part
        rows.append(teacher(full)[: len(part)])
    return normalize(torch.cat(rows), dim=1)


def _on_host(teacher: ImageTeacher, embeddings: Tensor) -> Callable[[], np.ndarray]:
    """Begin the copy; the function returned waits for it and checks the rows."""
    copied = None
    if embeddings.is_cuda:  # into pinned memory, while the host goes on
        stream = torch.cuda.current_stream(embeddings.device)
        embeddings = embeddings.to("cpu", non_blocking=True)
        copied = stream.record_event()

    def land() -> np.ndarray:
        if copied is not None:
            copied.synchronize()
        rows = embeddings.cpu().numpy()
        good = np.abs(np.linalg.norm(rows, axis=1) - 1) < 0.01  # nan is not
        if not good.all():
            raise TeacherError(
                f"The teacher {teacher.name} gave embeddings that are not finite, or zero: {int((~good).sum())} of {len(rows)} in a batch. "
                "Check its weights and precision, and start again: finished shards stay."
            )
        return rows

    return land
