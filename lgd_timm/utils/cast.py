"""Convert weights to the type in which they are saved."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import WeightsError


def cast_weights(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Convert a state dict to a type; integers stay as they are.

    Args:
        state: tensors by key, on any device.
        dtype: of the floating-point tensors that are returned.

    Returns:
        Contiguous tensors on the CPU, which share memory with those of `state` where nothing is converted.

    Raises:
        WeightsError: names the first tensor that is not finite, or has a number that is too large for `dtype`.
    """
    return {key: _cast(key, tensor.detach(), dtype) for key, tensor in state.items()}


def _cast(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.cpu().contiguous()
    cast = tensor.to(dtype)
    if not cast.isfinite().all():
        if tensor.isfinite().all():
            raise WeightsError(f"{key} does not fit {dtype}: save with dtype=torch.float32.")
        raise WeightsError(
            f"{key} holds values that are not finite. The training diverged: take an earlier checkpoint."
        )
    return cast.cpu().contiguous()
