"""Log a long run: a progress bar with images/s and time left, JSON lines, and TensorBoard when it is installed."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from .progress import progress_bar

log = logging.getLogger(__name__)


class Progress:
    """Log the losses and rates of a training run.

    Args:
        out: folder of `log.jsonl` and `tensorboard/`; None: nothing is shown or written, as on all ranks but the first.
        total: steps of the whole run.
        start: the step at which it starts or is resumed.
        batch_size: images of a step, all ranks together.
        title: text before the progress bar.
    """

    def __init__(self, out: Path | None, *, total: int, start: int, batch_size: int, title: str = "distill") -> None:
        self._out, self._batch_size, self._step = out, batch_size, start
        self._bar = progress_bar(
            total=total * batch_size,
            initial=start * batch_size,
            unit="img",
            unit_scale=True,
            desc=title,
            disable=out is None,
        )
        self._total = total
        self._shown: dict[str, str] = {}  # beside the bar: the last loss, the last scores
        self._pending: tuple[int, float, float, dict[str, Tensor]] | None = None
        self._clock, self._clock_step = time.perf_counter(), start
        self._board = _tensorboard(out, start)
        _end_line(out)
        if out is not None:
            log.info("log: %s", out / "log.jsonl")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._bar.close()
            if self._board is not None:
                self._board.close()

    def step(self, losses: dict[str, Tensor], lr: float, *, every: int) -> None:
        """Count a step, and log it if its number divides by `every`.

        Args:
            losses: scalars by name, on any device. They are read one log later, so that nothing waits for the device.
            lr: the learning rate.
            every: how many steps lie between two logs.
        """
        self._step += 1
        self._bar.update(self._batch_size)
        if self._step % every == 0:
            self.flush()
            self._pending = (self._step, self._rate(), lr, losses)

    def note(self, values: dict[str, Any]) -> None:
        """Log values of the current step, such as the scores of an evaluation."""
        self.flush()
        self._write({"step": self._step, **values})
        self._show({name: f"{value:.4g}" for name, value in values.items() if isinstance(value, float)})
        self._bar.refresh()
        self._clock, self._clock_step = time.perf_counter(), self._step  # evaluation is not training time

    def _rate(self) -> float:
        """Return the images per second since the last log."""
        now = time.perf_counter()
        rate = (self._step - self._clock_step) * self._batch_size / max(now - self._clock, 1e-9)
        self._clock, self._clock_step = now, self._step
        return rate

    def flush(self) -> None:
        """Log what `step` was given last.

        A loss that is not finite belongs to a step that was left out, and is not logged.
        """
        if self._pending is None:
            return
        step, rate, lr, losses = self._pending
        self._pending = None
        values = {name: float(value) for name, value in losses.items()}
        if not all(math.isfinite(value) for value in values.values()):
            return
        self._write({"step": step, **values, "lr": lr, "images_per_second": round(rate, 1)})
        self._show({"step": f"{step} of {self._total}", "loss": f"{values['loss']:.3f}", "lr": f"{lr:.2g}"})

    def _show(self, values: dict[str, str]) -> None:
        """Write values beside the bar, which shows them when it moves next."""
        self._shown.update(values)
        self._bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in self._shown.items()), refresh=False)

    def _write(self, values: dict[str, Any]) -> None:
        if self._out is None:
            return
        with (self._out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if name != "step":
                    self._board.add_scalar(name, value, values["step"])


def _end_line(out: Path | None) -> None:
    """End the last line of the log: a run that was killed may have left it incomplete."""
    if out is None or not (log := out / "log.jsonl").is_file():
        return
    with log.open("rb+") as file:
        if file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n":
            file.write(b"\n")


def _tensorboard(out: Path | None, start: int) -> Any:
    """Return a TensorBoard writer; None where it is not installed, as it is optional."""
    if out is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)  # later values are of a run that was killed
