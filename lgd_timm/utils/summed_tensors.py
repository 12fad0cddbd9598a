"""Safetensors files with a sum of their content, so that what a disk damaged is noticed and not used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import atomic_file, explain_full_disk

SUM = "sha256"  # key of the metadata


class Damaged(ValueError):
    """A file that can't be read, or is not what was written. The text is the reason, without the file's name."""


def save_summed(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors with their sum, atomically. Raises: OSError, WeightsError for a disk that is full."""
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with atomic_file(path) as temporary, explain_full_disk(path):
        save_file(plain, temporary, metadata={SUM: sum_of(plain)})


def load_summed(path: Path, *, required: bool = True) -> dict[str, Tensor]:
    """Read tensors, and compare them with their sum.

    Args:
        path: what `save_summed` wrote.
        required: refuse a file without a sum, as earlier versions wrote them.

    Raises:
        Damaged: it is another file, or was altered since.
    """
    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get(SUM)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise Damaged(" ".join(str(error).split())[:200]) from error
    if expected is None and required:
        raise Damaged("it has no sha256")
    if expected is not None and expected != sum_of(tensors):
        raise Damaged("its sha256 is another one")
    return tensors


def sum_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and numbers of tensors on the CPU, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(repr((key, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
