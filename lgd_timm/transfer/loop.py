"""From step to step: schedule, gradients, update, log; evaluated and saved at epoch ends, and at any step when it has to stop.

Which pictures a step sees, and what is drawn at random in it, depends on the seed and its number alone: on a CPU a resumed run ends with
the same weights as one that was not stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.utils.data import DataLoader, Sampler

from ..errors import RecipeError
from ..training.engine import step_seed
from ..utils.checkpoint import all_checkpoints, checkpoint_at, drop_old, drop_unfinished, note_score, save_checkpoint
from ..utils.distributed import StepSync
from ..utils.logger import Progress
from ..utils.signals import Stopped, StopRequest
from .job import Item, Job

log = logging.getLogger(__name__)


def fit(job: Job, *, resume: bool = False) -> dict[str, float]:
    """Train to the end, or go on from the last checkpoint. Returns the scores of the end, none where nothing is evaluated.

    Leaves `out/{recipe.yaml,log.jsonl,checkpoints}`. Raises: RecipeError for a folder that is in use, WeightsError for a checkpoint of
    another run, LGDError for steps that can't be taken, Stopped after SIGTERM, when the run is saved.
    """
    _open(job, resume=resume)
    model: nn.Module = job.model
    if job.ranks.world_size > 1:
        model = DistributedDataParallel(model, device_ids=[job.device] if job.device.type == "cuda" else None)
    every, saver = job.recipe.machine, _Saver(job)
    pulse, scores = StepSync(job.ranks), dict[str, float]()
    progress = Progress(
        job.out if job.ranks.first else None,
        total=job.total,
        start=job.step,
        batch_size=job.batch_size,
        what=job.recipe.name,
    )
    job.model.train()
    with StopRequest() as request, progress:
        if job.step == job.total:  # it was killed after the last step, before the scores
            scores = _evaluate(job, progress)
        for batch in _batches(job):
            if pulse.beat(stop=request.asked).stop:
                saver.save(progress)
                job.ranks.wait()  # torchrun ends all when the first one ends
                raise Stopped(
                    f"stopped by SIGTERM at step {job.step} of {job.total}, and saved in {job.out}. Go on with --resume."
                )
            job.set_rates()
            losses, taken = _step(job, model, batch)
            if taken:
                job.skipped.in_row = 0
            else:
                log.warning(job.skipped.add(batch.keys, step=job.step))
            job.step += 1
            progress.step(losses, job.optimizer.param_groups[-1]["lr"], every=every.log_every)
            epoch, rest = divmod(job.step, job.steps_per_epoch)
            last = job.step == job.total
            if (rest == 0 and (epoch % every.checkpoint_every == 0 or last)) or saver.due:
                saver.save(progress)
            if rest == 0 and (epoch % every.evaluate_every == 0 or last):
                scores = _evaluate(job, progress)
        pulse.rest()
    return scores


def _open(job: Job, *, resume: bool) -> None:
    """The run's folder: a new one, or one to go on in."""
    out, checkpoints = job.out, job.out / "checkpoints"
    if not resume and out.exists() and any(out.iterdir()):
        raise RecipeError(f"{out} is not empty. Go on with --resume, or choose another --output.")
    if resume and (there := all_checkpoints(checkpoints)):
        job.go_on(there[-1])
        log.info("resumed %s at step %d", there[-1], job.step)
    job.ranks.wait()  # until all have read it: from here on the first one writes
    if job.ranks.first:
        out.mkdir(parents=True, exist_ok=True)
        drop_unfinished(checkpoints)
        (out / "recipe.yaml").write_text(job.recipe.to_yaml(), encoding="utf-8")


class _Order(Sampler[list[Item]]):
    """This rank's share of each batch from the job's step to its end: every epoch in an order of its own, the rest of it left out."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __len__(self) -> int:
        return self._job.total - self._job.step

    def __iter__(self) -> Iterator[list[Item]]:
        job, size = self._job, self._job.batch_size
        for step in range(job.step, job.total):
            epoch, place = divmod(step, job.steps_per_epoch)
            order = np.random.default_rng((job.recipe.machine.seed, epoch)).permutation(len(job.pictures))
            batch = order[place * size : (place + 1) * size][job.ranks.rank :: job.ranks.world_size]
            yield [(int(index), epoch) for index in batch]


def _batches(job: Job) -> Iterator[Any]:
    workers = job.recipe.machine.workers
    loader: DataLoader[Any] = DataLoader(
        job.pictures,  # type: ignore[arg-type]  # a map of items to samples, which is all that torch asks of a Dataset
        batch_sampler=_Order(job),  # of pairs and not of numbers
        collate_fn=job.collate,
        num_workers=workers,
        pin_memory=False,
        persistent_workers=False,
    )
    for batch in loader:
        yield batch.to(job.device)


def _step(job: Job, model: nn.Module, batch: Any) -> tuple[dict[str, Tensor], bool]:
    """One update. Returns the losses and whether it was taken: it is left out where a gradient is not finite."""
    run, clip = job.recipe.machine, job.recipe.optimizer.clip_grad
    torch.manual_seed(step_seed(run.seed, step=job.step, rank=job.ranks.rank))
    buffers = list(job.model.buffers())
    before = [buffer.clone() for buffer in buffers]
    dtype = torch.float16 if run.amp == "float16" else torch.bfloat16
    job.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(job.device.type, dtype=dtype) if run.amp != "none" else nullcontext():
        losses: dict[str, Tensor] = model(batch)
        loss = torch.stack([part.float() for part in losses.values()]).sum()
    job.scaler.scale(loss).backward()
    job.scaler.unscale_(job.optimizer)
    parameters = [parameter for parameter in job.model.parameters() if parameter.grad is not None]
    norm = (
        clip_grad_norm_(parameters, clip)
        if clip is not None
        else get_total_norm([p.grad for p in parameters if p.grad is not None])
    )
    finite = bool(norm.isfinite())
    if finite:
        job.scaler.step(job.optimizer)
    else:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
    job.scaler.update()
    return {"loss": loss.detach(), **{name: part.detach() for name, part in losses.items()}}, finite


class _Saver:
    """Writes checkpoints, on the first rank."""

    def __init__(self, job: Job) -> None:
        self._job, self._step, self._clock = job, job.step, time.monotonic()

    @property
    def due(self) -> bool:
        return time.monotonic() - self._clock > 60 * self._job.recipe.machine.checkpoint_minutes

    def save(self, progress: Progress) -> None:
        job = self._job
        if job.ranks.first and job.step != self._step:
            progress.flush()  # the log of a run that goes on here is complete
            save_checkpoint(
                job.out / "checkpoints",
                step=job.step,
                modules={"model": job.model},
                optimizer=job.optimizer,
                scaler=job.scaler,
                facts=job.agreed,
                counts={"skipped": job.skipped.total},
                keep=job.recipe.machine.keep_checkpoints,
            )
        self._step, self._clock = job.step, time.monotonic()


def _evaluate(job: Job, progress: Progress) -> dict[str, float]:
    """Scores of the model as it is, in the log; what they were of is kept if it is the best."""
    if job.scores is None:
        return {}
    if job.ranks.world_size > 1:
        for buffer in job.model.buffers():  # batch statistics, in which ranks differ by their last step
            torch.distributed.broadcast(buffer, 0)
    job.model.eval()
    with torch.no_grad():
        scores = dict(job.scores())
    job.model.train()
    progress.note({"epoch": job.step // job.steps_per_epoch, **scores})
    checkpoint: Path = checkpoint_at(job.out / "checkpoints", job.step)
    if job.ranks.first and checkpoint.is_dir():
        name, score = next(iter(scores.items()))
        note_score(checkpoint, score, name=name)
        drop_old(job.out / "checkpoints", keep=job.recipe.machine.keep_checkpoints)
    return scores
