"""Take one training step, or leave it out completely where a gradient is not finite.

On an accelerator the host does not wait for a step: it enqueues the update, lets the device take it back where a
gradient was not finite, and reads whether that happened one step later. On a CPU, where there is nothing to wait for,
and with float16, whose `GradScaler` reads such a flag itself, the host decides before the update. The results are equal
bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from ..errors import LGDError
from ..utils.batch_norm import explain_batch_of_one
from ..utils.distributed import Ranks
from .snapshot import Rollback, Snapshot

log = logging.getLogger(__name__)


@dataclass
class Skipped:
    """Count the steps that were left out; more than `allowed` in a row are an error.

    With float16 some are normal, while the scaler searches for its scale.

    Args:
        allowed: how many steps in a row may be left out.
        total: steps left out so far, which a checkpoint keeps.
    """

    allowed: int
    total: int = 0
    in_row: int = 0

    def ok(self) -> None:
        """A step was taken."""
        self.in_row = 0

    def add(self, keys: Sequence[str], *, step: int) -> str:
        """Count a step that was left out.

        Args:
            keys: names of the step's images.
            step: its number, from 0.

        Returns:
            A line for the log.

        Raises:
            LGDError: more than `allowed` steps in a row were left out.
        """
        self.total += 1
        self.in_row += 1
        text = f"step {step + 1}: a gradient is not finite"
        if self.in_row > self.allowed:
            raise LGDError(
                f"{text}, like those of the {self.allowed} steps before. Lower optimizer.lr, set optimizer.clip_grad, "
                f"or look at the images of this batch: {', '.join(keys)}."
            )
        return f"{text}, so it was left out (of images {', '.join(keys[:4])}, ...)"


def step_seed(seed: int, *, step: int, rank: int = 0) -> int:
    """The seed of a step's random numbers: a resumed run draws the same ones as a run that was not interrupted.

    Returns:
        An integer in [0, 2**63).
    """
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


class Steppable(Protocol):
    """What a step needs of a run; `engine.Trainable` explains each name."""

    device: torch.device
    ranks: Ranks
    machine: Any
    clip_grad: float | None
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    skipped: Skipped
    step: int

    @property
    def modules(self) -> Mapping[str, nn.Module]: ...
    def statistics(self) -> Iterable[Tensor]: ...
    def passes(self, batch: Any) -> Sequence[tuple[Any, float]]: ...
    def no_sync(self) -> AbstractContextManager[Any]: ...
    def losses(self, batch: Any) -> dict[str, Tensor]: ...
    def after_step(self) -> None: ...


class StepResult(NamedTuple):
    """The losses by name (scalars, on the device), and whether the step was taken (bool [], on the device)."""

    losses: dict[str, Tensor]
    taken: Tensor


class TrainStep:
    """Take a run's steps one after the other.

    Args:
        run: what is trained. on_device: whether the device takes back what should not have been done, so that the host
        never waits for it. Default: on an
            accelerator, unless the precision is float16.
    """

    def __init__(self, run: Steppable, *, on_device: bool | None = None) -> None:
        if on_device is None:
            on_device = run.device.type != "cpu" and run.machine.amp != "float16"
        self.run = run
        self._decide: _DecideOnHost | _DecideOnDevice = _DecideOnDevice(run) if on_device else _DecideOnHost(run)

    def take(self, batch: Any) -> StepResult:
        """Compute gradients and update weights, banks and averages; leave all as it was if a gradient is not finite.

        Every rank decides alike, as they share their gradients. A step that was left out is counted and logged, on an
        accelerator during the next step.

        Args:
            batch: what `run.losses` takes, with `keys`, the names of its images.

        Raises:
            LGDError: too many steps in a row were left out.
        """
        run = self.run
        torch.manual_seed(step_seed(run.machine.seed, step=run.step, rank=run.ranks.rank))
        self._decide.before_forward()
        losses = self._gradients(batch)
        run.scaler.unscale_(run.optimizer)
        finite = self._gradient_norm().isfinite()
        self._decide.update(finite, keys=batch.keys)
        return StepResult(losses, finite)

    def settle(self) -> None:
        """Wait until it is known of every step whether it was taken; before a checkpoint, an evaluation and the end.

        Raises:
            LGDError: too many steps in a row were left out.
        """
        self._decide.settle()

    def _gradients(self, batch: Any) -> dict[str, Tensor]:
        """Compute the gradients of the batch's mean loss, in as many passes as the run wants. Returns the losses."""
        run, amp = self.run, self.run.machine.amp
        dtype = torch.float16 if amp == "float16" else torch.bfloat16
        parts = run.passes(batch)
        losses: dict[str, Tensor] = {}
        run.optimizer.zero_grad(set_to_none=True)
        for number, (part, share) in enumerate(parts, start=1):
            # Ranks reduce their gradients once, during the last pass.
            with nullcontext() if number == len(parts) else run.no_sync():
                with torch.autocast(run.device.type, dtype=dtype, enabled=amp != "none"), explain_batch_of_one():
                    result = run.losses(part)
                run.scaler.scale(result["loss"] * share).backward()
            for name, value in result.items():
                losses[name] = losses.get(name, 0) + share * value.detach()
        return losses

    def _gradient_norm(self) -> Tensor:
        """The norm of all gradients together, float [], which are clipped to `clip_grad` if that is given."""
        parameters = [parameter for parameter in self.run.model.parameters() if parameter.grad is not None]
        if self.run.clip_grad is not None:
            return clip_grad_norm_(parameters, self.run.clip_grad)
        return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


class _DecideOnHost:
    """Read the flag, then update or don't."""

    def __init__(self, run: Steppable) -> None:
        self._run, self._statistics = run, Snapshot(run.statistics())

    def before_forward(self) -> None:
        self._statistics.save()

    def update(self, finite: Tensor, *, keys: Sequence[str]) -> None:
        run, taken = self._run, bool(finite)
        if taken:
            run.scaler.step(run.optimizer)
            run.after_step()
        else:
            self._statistics.restore()
        run.scaler.update()
        _count(run.skipped, taken=taken, keys=keys, step=run.step)

    def settle(self) -> None:
        """Nothing is open."""


class _DecideOnDevice:
    """Update, let the device take it back, and read the flag during the next step."""

    def __init__(self, run: Steppable) -> None:
        self._run = run
        self._rollback = Rollback(run.modules.values(), run.optimizer, device=run.device)
        self._open: tuple[_Flag, Sequence[str], int] | None = None

    def before_forward(self) -> None:
        self._rollback.save()

    def update(self, finite: Tensor, *, keys: Sequence[str]) -> None:
        run = self._run
        self.settle()  # the device works on this step's passes in the meantime
        self._rollback.save_host()
        run.optimizer.step()
        run.after_step()
        self._rollback.restore_unless(finite)
        self._open = _Flag(finite), keys, run.step

    def settle(self) -> None:
        if self._open is None:
            return
        (flag, keys, step), self._open = self._open, None
        if not (taken := flag.read()):
            self._rollback.undo()
        _count(self._run.skipped, taken=taken, keys=keys, step=step)


class _Flag:
    """A bool [] of a device, on its way to the host."""

    def __init__(self, value: Tensor) -> None:
        self._value, self._event = value, None
        if value.is_cuda:
            self._value = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> bool:
        """Wait for the device to have come as far as the flag."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._value.tolist())


def _count(skipped: Skipped, *, taken: bool, keys: Sequence[str], step: int) -> None:
    if taken:
        skipped.ok()
    else:
        log.warning(skipped.add(keys, step=step))
