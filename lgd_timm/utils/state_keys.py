"""Keys and shapes of foreign state dicts, and the prefixes that training frameworks put before a model's own keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]


def stored_shapes(path: Path) -> Shapes:
    """Read key and shape of every tensor of a safetensors file, not the tensors themselves.

    Raises:
        WeightsError: the file can't be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} does not open as safetensors ({error}). Write it again.") from error


def differing_keys(found: Shapes, wanted: Shapes) -> list[str]:
    """List the keys that only one of both has, or that have another shape, sorted."""
    return sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of every tensor by its key."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def key_prefixes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Find the prefixes under which a file holds all of a model's tensors.

    Lightning writes `model.`, DDP `module.`, torch.compile `_orig_mod.`, self-supervised code `backbone.` or
    `encoder.`; several of them may follow each other.

    Args:
        state: the file's tensors.
        wanted: the model's, whose keys and shapes count.

    Returns:
        The prefixes, without the empty one; several where the file holds several such models.
    """
    first = next(iter(wanted), None)
    if first is None or all(key in state for key in wanted):
        return []
    found = sorted(key.removesuffix(first) for key in state if key.endswith(f".{first}"))
    return [prefix for prefix in found if all(_fits(state, prefix + key, wanted[key]) for key in wanted)]


def without_prefix(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix of a model's keys, where the file holds all its tensors under one, and nothing without it.

    Args:
        state: the file's tensors.
        wanted: the model's, whose keys and shapes count.

    Returns:
        What stands under the prefix, without it; all of `state` where there is no such prefix, or more than one.
    """
    prefixes = key_prefixes(state, wanted)
    if len(prefixes) != 1:
        return dict(state)
    return {key.removeprefix(prefixes[0]): tensor for key, tensor in state.items() if key.startswith(prefixes[0])}


def prefix_advice(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Say in a sentence how the keys of a file begin that does not fit a model."""
    prefixes = key_prefixes(state, wanted)
    if len(prefixes) > 1:
        return f" It holds the model several times, as {', '.join(prefixes)}. Save one of them alone."
    strange = sorted({f"{key.partition('.')[0]}." for key in state if key not in wanted})
    return f" Its other keys begin with {', '.join(strange[:5])}." if strange else ""


def _fits(state: Mapping[str, Tensor], key: str, tensor: Tensor) -> bool:
    return key in state and state[key].shape == tensor.shape
