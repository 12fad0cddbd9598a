"""The training loop: short, because timm supplies optimizer, scheduler, average, mixed precision and distributed set-up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..data.dataset import Batch, ShardDataset
from ..data.loader import loader, on_device
from ..evaluate.zero_shot import ZeroShot, zero_shot, zero_shot_classifier
from ..utils.checkpoint import checkpoint_at, drop_old, note_score, save_checkpoint
from ..utils.distributed import Bad, Ranks, StepSync
from ..utils.logger import Progress
from ..utils.signals import Stopped, StopRequest
from .state import Run
from .step import train_step

log = logging.getLogger(__name__)


def train(run: Run) -> None:
    """Walk from run.step to the last step: schedule, step, bank, log. Save every so many minutes and at epoch ends, and evaluate there.

    Raises: LGDError for too many bad samples or steps that can't be taken; Stopped after SIGTERM, when the run is saved.
    """
    per_epoch = run.plan.steps_per_epoch
    total = run.recipe.schedule.epochs * per_epoch
    pulse = StepSync(run.ranks)
    run.task.train()
    with (
        StopRequest() as request,
        Progress(
            run.out if run.ranks.first else None, total=total, start=run.step, batch_size=run.recipe.data.batch_size
        ) as progress,
    ):
        saver = _Saver(run, progress)
        if run.step % per_epoch == 0:  # a run that was killed at an epoch's end may not have been evaluated there
            _evaluate_epoch(run, run.step // per_epoch, progress)
        for batch in batches(run, total):
            heard = pulse.beat(stop=request.asked, bad=batch.bad)
            _count(run, heard.bad)
            if heard.stop:
                saver.save()
                run.ranks.wait()  # torchrun ends all when the first one ends
                raise Stopped(
                    f"stopped by SIGTERM at step {run.step} of {total}, and saved in {run.out}. Go on with --resume."
                )
            if run.step % per_epoch == 0:
                run.scheduler.step(run.step // per_epoch)
            run.scheduler.step_update(run.step)
            losses, taken = train_step(run, batch)
            if taken:
                run.skipped.in_row = 0
            else:
                log.warning(run.skipped.add(batch.keys, step=run.step))
            run.step += 1
            progress.step(losses, run.optimizer.param_groups[0]["lr"], every=run.recipe.machine.log_every)
            if run.step % per_epoch == 0:
                _end_of_epoch(run, run.step // per_epoch, progress, saver)
            elif saver.due:
                saver.save()
        _count(run, pulse.rest().bad)


def batches(run: Run, total: int) -> Iterator[Batch]:
    """The run's batches up to step `total`, on its device, all of one size."""
    plan = replace(run.plan, start=run.step, stop=total)
    yield from on_device(
        _filled(loader(run.dataset, plan, workers=run.recipe.data.workers), plan.batch_size), run.device
    )


def _filled(source: Iterable[Batch], size: int) -> Iterator[Batch]:
    for batch in source:
        yield batch.filled(size)


def _count(run: Run, bad: Bad) -> None:
    for line in run.bad.add(bad):
        log.warning(line)


class _Saver:
    """Writes checkpoints, on the first rank, which holds all that there is to save."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self._run, self._progress = run, progress
        self._step, self._clock = run.step, time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last one is older than it may be."""
        return time.monotonic() - self._clock > 60 * self._run.recipe.machine.checkpoint_minutes

    def save(self) -> None:
        run = self._run
        if run.ranks.first and run.step != self._step:
            self._progress.flush()  # the log of a run that goes on here is complete
            save_checkpoint(
                run.out / "checkpoints",
                step=run.step,
                modules=run.task.kept,
                optimizer=run.optimizer,
                scaler=run.scaler,
                facts=run.facts,
                counts=run.counts,
                keep=run.recipe.machine.keep_checkpoints,
            )
        self._step, self._clock = run.step, time.monotonic()


def _end_of_epoch(run: Run, epoch: int, progress: Progress, saver: _Saver) -> None:
    if epoch % run.recipe.machine.checkpoint_every == 0 or epoch == run.recipe.schedule.epochs:
        saver.save()  # before the evaluation, in which the run may be stopped
    _evaluate_epoch(run, epoch, progress)


def _evaluate_epoch(run: Run, epoch: int, progress: Progress) -> None:
    """Evaluate where it is due; not at the end, where what is published will be."""
    settings = run.recipe.machine
    if run.validation is None or not 0 < epoch < run.recipe.schedule.epochs or epoch % settings.evaluate_every:
        return
    result = evaluate(run, run.task.best_student, ranks=run.ranks)
    progress.note({"epoch": epoch, "zero_shot_top1": result.top1, "zero_shot_top5": result.top5})
    checkpoints = run.out / "checkpoints"
    if run.ranks.first and (checkpoint := checkpoint_at(checkpoints, run.step)).is_dir():
        note_score(checkpoint, result.top1)
        drop_old(checkpoints, keep=settings.keep_checkpoints)
    run.task.train()


def evaluate(run: Run, encoder: nn.Module, *, ranks: Ranks) -> ZeroShot:
    """Zero-shot score of an encoder on the recipe's evaluation split, which there must be, shared out over `ranks`."""
    assert run.validation is not None
    if ranks.world_size > 1:
        for buffer in encoder.buffers():  # batch statistics, in which ranks differ by their last step
            torch.distributed.broadcast(buffer, 0)
    return score(run, zero_shot_classifier(encoder.eval(), run.validation.bank), run.validation.dataset, ranks=ranks)


def score(run: Run, classify: Callable[[Batch], Tensor], dataset: ShardDataset, *, ranks: Ranks) -> ZeroShot:
    """Of a classifier on the evaluation split or its stored embeddings."""
    assert run.validation is not None
    data = run.recipe.data
    return zero_shot(
        classify,
        dataset,
        names=run.validation.names,
        workers=data.workers,
        device=run.device,
        max_bad=data.max_bad,
        ranks=ranks,
    )
