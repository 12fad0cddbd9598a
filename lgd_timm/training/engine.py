"""The one training loop: for distillation, detection, segmentation, and whatever else is `Trainable`.

Which samples a step sees, and what is drawn at random in it, depends on the seed and the step's number alone. So a run
can be stopped after any step and resumed: on a CPU it ends with the same weights, bit for bit, as one that was not
stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import RecipeError
from ..utils.checkpoint import (
    all_checkpoints,
    checkpoint_at,
    drop_old,
    drop_unfinished,
    load_checkpoint,
    note_score,
    read_score,
    save_checkpoint,
)
from ..utils.distributed import Bad, Ranks, StepSync
from ..utils.files import check_renames, hold_folder
from ..utils.logger import Progress
from ..utils.signals import StopRequest, stopped_by
from .step import Skipped, TrainStep

log = logging.getLogger(__name__)


class Machine(Protocol):
    """The settings of a recipe that say how a run is carried out."""

    @property
    def seed(self) -> int: ...
    @property
    def amp(self) -> str: ...  # none, float16 or bfloat16
    @property
    def checkpoint_every(self) -> int: ...  # epochs
    @property
    def checkpoint_minutes(self) -> float: ...
    @property
    def keep_checkpoints(self) -> int: ...  # the last so many; the best is kept, too
    @property
    def evaluate_every(self) -> int: ...  # epochs
    @property
    def log_every(self) -> int: ...  # steps


class Trainable(Protocol):
    """What `fit` trains. A class inherits from it, sets the attributes, and implements what has no default.

    Attributes:
        title: what the progress bar is called.
        out: the run's folder.
        device: where the model is.
        ranks: the processes that train together.
        machine: how the run is carried out.
        epochs: how many epochs the run has.
        steps_per_epoch: how many steps an epoch has.
        batch_size: samples of a step, all ranks together.
        clip_grad: the norm to which gradients are clipped; None: they are not.
        model: the module that is put into training mode, and whose parameters are trained.
        optimizer: of the model's parameters.
        scaler: enabled for float16 alone.
        skipped: counts the steps that were left out.
        step: how many steps were taken; `fit` counts it up.
    """

    title: str
    out: Path
    device: torch.device
    ranks: Ranks
    machine: Machine
    epochs: int
    steps_per_epoch: int
    batch_size: int
    clip_grad: float | None
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    skipped: Skipped
    step: int

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Everything that a step may change, and a checkpoint keeps, by file name."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the numbers, and must not change when a run is resumed (JSON)."""

    @property
    def counts(self) -> dict[str, Any]:
        """What a resumed run goes on counting (JSON)."""
        return {"skipped": self.skipped.total}

    def load_counts(self, counts: Mapping[str, Any]) -> None:
        """Take up `counts` of a checkpoint."""
        self.skipped.total = counts.get("skipped", 0)

    @property
    def lr(self) -> float:
        """The learning rate that is logged."""
        return float(self.optimizer.param_groups[0]["lr"])

    def batches(self) -> Iterator[Any]:
        """This rank's batches from step `step` to the last, on the device.

        Each has `keys`, the names of its samples.
        """

    def bad_samples(self, batch: Any) -> Bad:
        """What could not be read while the batch was made."""
        return ()

    def count_bad(self, bad: Bad) -> None:
        """Count the bad samples of all ranks. Raises: LGDError for too many."""
        assert not bad, "a run whose batches can have bad samples counts them"

    def set_rates(self) -> None:
        """Set the optimizer's learning rates for step `step`."""

    def statistics(self) -> Iterable[Tensor]:
        """The buffers that a forward pass changes, such as batch statistics."""
        return self.model.buffers()

    def passes(self, batch: Any) -> Sequence[tuple[Any, float]]:
        """The parts of a batch whose gradients are computed one after the other, each with its share of the batch."""
        return [(batch, 1.0)]

    def no_sync(self) -> AbstractContextManager[Any]:
        """A context in which ranks do not reduce their gradients: for all passes but the last."""
        return nullcontext()

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Losses of one pass by name, scalars; `loss` is minimised, the others are logged."""

    def after_step(self) -> None:
        """Update banks and averages after the optimizer's step.

        It must not change anything that is not in `modules`.
        """

    def evaluates(self, epoch: int) -> bool:
        """Whether the model is evaluated after so many epochs."""

    def evaluate(self) -> Mapping[str, float]:
        """Evaluate on all ranks. The first score, the greater the better, says which checkpoint is best."""


class ScoredTrainable(Trainable):
    """A run whose model is scored by one function, and trained by torch's DistributedDataParallel on several ranks.

    Attributes:
        scores: evaluates the model on all ranks, in percent; the first score says which checkpoint is best. None:
            nothing is evaluated.
    """

    scores: Callable[[], Mapping[str, float]] | None

    def evaluates(self, epoch: int) -> bool:
        if self.scores is None or epoch == 0:
            return False
        return epoch % self.machine.evaluate_every == 0 or epoch == self.epochs

    def evaluate(self) -> Mapping[str, float]:
        assert self.scores is not None
        if self.ranks.world_size > 1:
            for buffer in self.statistics():  # in which ranks differ by their last step
                torch.distributed.broadcast(buffer, 0)
        self.model.eval()
        with torch.no_grad():
            return self.scores()

    @cached_property
    def distributed_model(self) -> nn.Module:
        """The model, whose gradients are averaged over the ranks."""
        if self.ranks.world_size == 1:
            return self.model
        devices = [self.device] if self.device.type == "cuda" else None
        changing = any(True for _ in self.statistics())
        return DistributedDataParallel(self.model, device_ids=devices, broadcast_buffers=changing)


def check_output(out: Path, *, resume: bool) -> None:
    """Refuse a folder that is in use.

    Raises:
        RecipeError: the folder holds something, and nothing is resumed.
    """
    if not resume and out.exists() and any(out.iterdir()):
        raise RecipeError(f"{out} is not empty. Go on with --resume, or choose another --output.")


def load(run: Trainable, checkpoint: Path) -> None:
    """Restore a run's state from a checkpoint.

    Raises:
        WeightsError: the checkpoint is damaged, or another run's.
    """
    progress = load_checkpoint(
        checkpoint, modules=run.modules, optimizer=run.optimizer, scaler=run.scaler, identity=run.identity
    )
    run.step = progress.step
    run.load_counts(progress.counts)


def start(run: Trainable, *, recipe: str, resume: bool) -> None:
    """Make the run's folder, or load the last checkpoint in it.

    Args:
        run: what will be trained.
        recipe: YAML text, for `recipe.yaml` in the folder.
        resume: whether to load a checkpoint, if there is one.

    Raises:
        WeightsError: the checkpoint is damaged, or another run's; or another process trains in this folder.
    """
    checkpoints = run.out / "checkpoints"
    if run.ranks.first:
        hold_folder(run.out)
    if resume and (found := all_checkpoints(checkpoints)):
        load(run, found[-1])
        log.info("resumed %s at step %d", found[-1], run.step)
    run.ranks.wait()  # until all have read it: from here on the first rank writes
    if run.ranks.first:
        run.out.mkdir(parents=True, exist_ok=True)
        check_renames(run.out)
        drop_unfinished(checkpoints)
        (run.out / "recipe.yaml").write_text(recipe, encoding="utf-8")


def fit(run: Trainable) -> dict[str, float]:
    """Train from step `run.step` to the last one, save every so many minutes and epochs, and evaluate.

    Returns:
        The scores of the last evaluation; none if there was none.

    Raises:
        LGDError: too many bad samples, or steps that could not be taken.
        Stopped: the process got SIGTERM; the run is saved.
        KeyboardInterrupt: Ctrl-C; the run is saved.
    """
    total, per_epoch = run.epochs * run.steps_per_epoch, run.steps_per_epoch
    sync, step = StepSync(run.ranks), TrainStep(run)
    scores: dict[str, float] = {}
    run.model.train()
    with (
        StopRequest() as request,
        Progress(
            run.out if run.ranks.first else None,
            total=total,
            start=run.step,
            batch_size=run.batch_size,
            title=run.title,
        ) as progress,
    ):
        saver = _Saver(run, step, progress)
        if _lacks_scores(run):
            with _interruptible(run, request):
                scores = _evaluate(run, progress)
        for batch in run.batches():
            messages = sync.exchange(stop=request.signal, bad=run.bad_samples(batch))
            run.count_bad(messages.bad)
            if messages.stop:
                saver.save()
                run.ranks.wait()  # torchrun ends all ranks when the first one ends
                raise stopped_by(messages.stop, f"at step {run.step} of {total}, and saved in {run.out}.")
            run.set_rates()
            losses = step.take(batch).losses
            run.step += 1
            progress.step(losses, run.lr, every=run.machine.log_every)
            epoch, rest = divmod(run.step, per_epoch)
            at_end = rest == 0 and (epoch % run.machine.checkpoint_every == 0 or run.step == total)
            if at_end or saver.due:
                saver.save()  # before an evaluation, in which the run may be stopped
            if rest == 0 and run.evaluates(epoch):
                step.settle()
                with _interruptible(run, request):
                    scores = _evaluate(run, progress)
        step.settle()
        run.count_bad(sync.flush().bad)
    return scores


class _Saver:
    """Write checkpoints on the first rank, which holds all that there is to save."""

    def __init__(self, run: Trainable, step: TrainStep, progress: Progress) -> None:
        self._run, self._step, self._progress = run, step, progress
        self._saved_step, self._clock = run.step, time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is older than it may be."""
        return time.monotonic() - self._clock > 60 * self._run.machine.checkpoint_minutes

    def save(self) -> None:
        run = self._run
        self._step.settle()  # on every rank, as it may end the run
        if run.ranks.first and run.step != self._saved_step:
            self._progress.flush()  # so that the log of a run that is resumed here is complete
            save_checkpoint(
                run.out / "checkpoints",
                step=run.step,
                modules=run.modules,
                optimizer=run.optimizer,
                scaler=run.scaler,
                identity=run.identity,
                counts=run.counts,
                keep=run.machine.keep_checkpoints,
            )
        self._saved_step, self._clock = run.step, time.monotonic()


def _lacks_scores(run: Trainable) -> bool:
    """Whether the run was killed between the checkpoint of an epoch and its evaluation, or at its end."""
    epoch, rest = divmod(run.step, run.steps_per_epoch)
    if rest or not run.evaluates(epoch):
        return False
    return epoch == run.epochs or read_score(checkpoint_at(run.out / "checkpoints", run.step)) is None


def _interruptible(run: Trainable, request: StopRequest) -> AbstractContextManager[None]:
    """Let Ctrl-C end an evaluation at once where this very step is saved: a resumed run evaluates again."""
    saved = run.step == 0 or checkpoint_at(run.out / "checkpoints", run.step).is_dir()
    return request.interruptible() if saved and run.ranks.world_size == 1 else nullcontext()


def _evaluate(run: Trainable, progress: Progress) -> dict[str, float]:
    """Evaluate the model as it is, log its scores and note them in its checkpoint; the best checkpoint is kept."""
    scores = dict(run.evaluate())
    run.model.train()
    progress.note({"epoch": run.step // run.steps_per_epoch, **scores})
    checkpoints = run.out / "checkpoints"
    if run.ranks.first and (checkpoint := checkpoint_at(checkpoints, run.step)).is_dir():
        name, score = next(iter(scores.items()))
        note_score(checkpoint, score, name=name)
        drop_old(checkpoints, keep=run.machine.keep_checkpoints)
    return scores
