"""Compute a teacher's embeddings of a stream of batches."""

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
    """Yield each batch with its embeddings, unit rows float32 [B, D].

    It is one batch ahead of the caller, so that the device works on the next batch while the caller writes.

    Args:
        teacher: is moved to the device. batches: of images. size: images of one forward pass at most. device: where the
        teacher works. compile: whether the teacher is compiled; then all its passes are of one size, as it is compiled
        anew for each size.

    Raises:
        TeacherError: an embedding is zero or not finite.
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
    """Embed images uint8 [B, 3, S, S] as unit rows float32 [B, D]."""
    rows = [torch.empty(0, teacher.embed_dim, device=images.device)]
    for part in images.split(size) if len(images) else ():
        full = pad(part, (0, 0) * 3 + (0, size - len(part))) if fill else part
        rows.append(teacher(full)[: len(part)])
    return normalize(torch.cat(rows), dim=1)


def _on_host(teacher: ImageTeacher, embeddings: Tensor) -> Callable[[], np.ndarray]:
    """Start the copy to the host; the function returned waits for it and checks the rows."""
    copied = None
    if embeddings.is_cuda:  # into pinned memory, while the host goes on
        stream = torch.cuda.current_stream(embeddings.device)
        embeddings = embeddings.to("cpu", non_blocking=True)
        copied = stream.record_event()

    def finish() -> np.ndarray:
        if copied is not None:
            copied.synchronize()
        rows = embeddings.cpu().numpy()
        good = np.abs(np.linalg.norm(rows, axis=1) - 1) < 0.01  # nan is not
        if not good.all():
            raise TeacherError(
                f"The teacher {teacher.name} gave embeddings that are not finite, or zero: "
                f"{int((~good).sum())} of {len(rows)} in a batch. "
                "Check its weights and precision, and start again: finished shards stay."
            )
        return rows

    return finish
