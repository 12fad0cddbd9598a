"""Copy the tensors that a training step changes, and put them back: at once, or where a flag on the device says so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Container = dict[str, Any]

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


class Snapshot:
    """Copies of some tensors. The memory for them is allocated once; one call copies all tensors of a type.

    Args:
        tensors: distinct tensors of any devices and dtypes. They are changed in place by `restore`.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = list(tensors)
        groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for tensor in self.tensors:
            # As whole numbers, a product with 0 is 0 whatever the bits mean: not a number, infinity, or -0.
            bits = tensor.detach().view(BITS[tensor.element_size()])
            groups.setdefault((bits.device, bits.dtype), []).append(bits)
        self._groups = [(live, [torch.empty_like(bits) for bits in live]) for live in groups.values()]

    def save(self) -> None:
        """Copy the tensors as they are now."""
        for live, saved in self._groups:
            torch._foreach_copy_(saved, live)

    def restore(self) -> None:
        """Set the tensors to what `save` copied last."""
        for live, saved in self._groups:
            torch._foreach_copy_(live, saved)

    def restore_unless(self, keep: Tensor) -> None:
        """Restore, bit for bit, if `keep` (bool []) is False, without reading it on the host. Uses the copies up."""
        for live, saved in self._groups:
            flag = keep.to(live[0].dtype)
            torch._foreach_mul_(live, flag)
            torch._foreach_mul_(saved, 1 - flag)
            torch._foreach_add_(live, saved)


class Rollback:
    """Take an update of modules and optimizer back on the device, if a flag there says so.

    Tensors on the device are restored there, without waiting for it. What an optimizer keeps on the host, such as a
    count of steps, is restored by `undo`, once the flag was read, which must happen before the next update.

    Args:
        modules: all of their parameters and buffers may be changed by a step.
        optimizer: any optimizer whose state is tensors and numbers.
        device: where the flag is computed.
    """

    def __init__(self, modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer, *, device: torch.device) -> None:
        self._optimizer, self._device = optimizer, device
        tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
        self._fixed = list({id(tensor): tensor for tensor in tensors}.values())
        self._snapshot, self._host = Snapshot(self._fixed), Snapshot([])
        self._before: list[_Saved] = []
        self._numbers: list[tuple[Container, str, float]] = []
        self._changed: list[tuple[Container, str, float]] = []

    def save(self) -> None:
        """Copy all tensors on the device; to be called before the forward pass, which changes buffers."""
        self._before = [_Saved(container, dict(container)) for container in self._containers()]
        self._snapshot = _same_or_new(self._snapshot, [*self._fixed, *self._tensors(on_device=True)])
        self._snapshot.save()

    def save_host(self) -> None:
        """Copy what the optimizer keeps on the host; to be called before the update, when no earlier flag is unread."""
        self._numbers = [
            (container, key, value)
            for container in (vars(self._optimizer), *self._containers())
            for key, value in container.items()
            if isinstance(value, int | float)
        ]
        self._host = _same_or_new(self._host, self._tensors(on_device=False))
        self._host.save()

    def restore_unless(self, keep: Tensor) -> None:
        """Restore what is on the device if `keep` (bool []) is False; to be called after the update.

        Where the optimizer made new tensors, as in its first step, `keep` is read: the host has to know whether they
        stay.
        """
        if self._made_tensors() and not bool(keep):
            self._drop_new_tensors()
            self._snapshot.restore()
        else:
            self._snapshot.restore_unless(keep)
        self._changed = [entry for entry in self._numbers if entry[0].get(entry[1]) != entry[2]]

    def undo(self) -> None:
        """Restore what the optimizer keeps on the host: `keep` was read, and is False."""
        for container, key, value in self._changed:
            container[key] = value
        self._host.restore()

    def _containers(self) -> list[Container]:
        """Return the dictionaries in which an optimizer keeps numbers and tensors: its groups and its state."""
        return [*self._optimizer.param_groups, *self._optimizer.state.values()]

    def _tensors(self, *, on_device: bool) -> list[Tensor]:
        values = (value for container in self._containers() for value in container.values())
        return [value for value in values if isinstance(value, Tensor) and (value.device == self._device) == on_device]

    def _made_tensors(self) -> bool:
        before = {id(saved.container): saved.values for saved in self._before}
        return any(
            isinstance(value, Tensor) and value is not before.get(id(container), {}).get(name)
            for container in self._containers()
            for name, value in container.items()
        )

    def _drop_new_tensors(self) -> None:
        known = {id(saved.container) for saved in self._before}
        state = self._optimizer.state
        for parameter in [parameter for parameter, values in state.items() if id(values) not in known]:
            del state[parameter]
        for container, values in self._before:
            for name in [name for name in container if name not in values]:
                del container[name]
            container.update({name: value for name, value in values.items() if isinstance(value, Tensor)})


class _Saved(NamedTuple):
    """A dictionary, and what was in it."""

    container: Container
    values: Container


def _same_or_new(snapshot: Snapshot, tensors: list[Tensor]) -> Snapshot:
    """The snapshot if it is of these tensors, else a new one."""
    before = snapshot.tensors
    same = len(before) == len(tensors) and all(ours is theirs for ours, theirs in zip(before, tensors, strict=True))
    return snapshot if same else Snapshot(tensors)
