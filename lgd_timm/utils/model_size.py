"""Check what foreign folders hold: a model far larger than its weights, weights that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import WeightsError

LARGEST_FRESH = 8 << 30  # bytes of a model without weights
SPARE = 1 << 29  # bytes that a model may have beside its weights, such as tables of positions


def check_model_size(
    make: Callable[[], nn.Module], *, name: object, weights: Path | None = None, unbuilt: tuple[type[Exception], ...]
) -> nn.Module | None:
    """Refuse a configuration whose model is far larger than its weights.

    Args:
        make: builds the model; it is called on the meta device, where tensors have shapes and no numbers.
        name: of the configuration or architecture, for the message.
        weights: file of the weights; None: there are none, and the model has random ones.
        unbuilt: what `make` raises for a configuration that can't be built; it is passed over, as whoever builds the
            model says why.

    Returns:
        The model on the meta device; None where it can't be built.

    Raises:
        WeightsError: says how large both are.
    """
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = make()
    except unbuilt:
        return None
    needed = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    stored = None if weights is None else weights.stat().st_size
    if needed > (LARGEST_FRESH if stored is None else 4 * stored + SPARE):
        why = "is more than is built without weights" if stored is None else f"{weights} has {stored / 1e6:.0f} MB"
        raise WeightsError(
            f"{name} describes a model of {needed / 1e9:.1f} GB, and {why}. Don't use this folder, or mend it."
        )
    return model


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that hold NaN or infinity, whose answers mean nothing.

    Args:
        state: tensors by key.
        path: their file, for the message.

    Raises:
        WeightsError: names the first of them.
    """
    if wrong := [key for key, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]:
        raise WeightsError(
            f"{path}: {len(wrong)} tensors hold values that are not finite, first {wrong[0]!r}. The training diverged, "
            "or the file is damaged: take an earlier checkpoint."
        )
