"""The training loop: short, because timm supplies optimizer, scheduler, EMA, mixed precision and distributed set-up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import dispatch_clip_grad
from torch import Tensor

from . import __version__
from .card import weight_name
from .checkpoint import all_checkpoints, load_checkpoint, save_checkpoint
from .curve import Row, read_log, training_curve, training_seconds
from .errors import RecipeError, WeightsError
from .evaluate.zero_shot import ZeroShot, stored_classifier, taught, zero_shot, zero_shot_classifier
from .export.open_clip import check_open_clip
from .objectives import LGD
from .progress import Progress
from .publish import Banks, round_weights, save
from .reach import relative
from .recipe import Recipe, VocabularyRecipe, read_recipe, recipe_from_dict
from .repeat import compare
from .run import Run, build
from .shards.read import Batch, ShardDataset, loader, on_device
from .teachers import Stored, spec_from_dict

log = logging.getLogger(__name__)


def distill(recipe: Recipe, *, out: str | Path, resume: bool = False, source: str | Path | None = None) -> Path:
    """Run a recipe. Leaves `out/{recipe.yaml,log.jsonl,checkpoints,published}`; returns the published folder.

    `source` is what the recipe was read from. If that is a published folder, a line of the log says whether the run repeats it.
    Raises: LGDError for any bad input, before anything is written; WeightsError when `out` holds another run.
    """
    out = Path(out)
    if not resume and out.exists() and any(out.iterdir()):
        raise RecipeError(f"{out} is not empty. Go on with --resume, or choose another --output.")
    if resume and (out / "published").exists():
        log.info("%s is finished already", out)
        return out / "published"
    run = build(recipe, out)
    if run.rank == 0 and source is not None and (Path(source) / "model.safetensors").is_file():
        origin = {"shards": run.dataset.shards.fingerprint, "teacher": run.teaching.facts}
        published = read_recipe(Path(source) / "recipe.yaml")
        compare(Path(source), metrics=origin, recipe=spelled_out(run).to_dict(), published=published.to_dict())
    if resume and (checkpoints := all_checkpoints(out / "checkpoints")):
        run.step = load_checkpoint(checkpoints[-1], task=run.task, optimizer=run.optimizer, scaler=run.scaler, facts=run.facts)
        log.info("resumed %s at step %d", checkpoints[-1], run.step)
    if run.rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    train(run)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if run.rank == 0:
        return finish(run, out / "published")
    return out / "published"


def train(run: Run) -> None:
    """Walk from run.step to the last step: schedule, step, bank, log; evaluate and save at epoch ends."""
    per_epoch = run.plan.steps_per_epoch
    total = run.recipe.schedule.epochs * per_epoch
    run.task.train()
    with Progress(run.out if run.rank == 0 else None, total=total, start=run.step, batch_size=run.recipe.data.batch_size) as progress:
        for batch in _batches(run, total):
            if run.step % per_epoch == 0:
                run.scheduler.step(run.step // per_epoch)
            run.scheduler.step_update(run.step)
            losses = train_step(run, batch)
            run.step += 1
            progress.step(losses, run.optimizer.param_groups[0]["lr"], every=run.recipe.run.log_every)
            if run.step % per_epoch == 0 and run.rank == 0:
                _end_of_epoch(run, run.step // per_epoch, progress)


def train_step(run: Run, batch: Batch) -> dict[str, Tensor]:
    """One optimizer step and one bank step. Returns the losses, on the device: reading them is the caller's to delay."""
    amp = run.recipe.run.amp
    dtype = torch.float16 if amp == "float16" else torch.bfloat16
    with torch.autocast(run.device.type, dtype=dtype, enabled=amp != "none"):
        result = run.task(batch.images, None if batch.embeddings is None else batch.embeddings.float(), labels=batch.labels)
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(result["loss"]).backward()
    if (clip := run.recipe.optimizer.clip_grad) is not None:
        run.scaler.unscale_(run.optimizer)
        dispatch_clip_grad(run.task.student.parameters(), clip)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.task.update(result["teacher"])
    run.task.update_ema(step=run.step)
    return {key: value.detach() for key, value in result.items() if key.startswith("loss")}


def _batches(run: Run, total: int) -> Iterator[Batch]:
    plan = replace(run.plan, start=run.step, stop=total)
    yield from on_device(_counted(run, loader(run.dataset, plan, workers=run.recipe.data.workers)), run.device)


def _counted(run: Run, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches, their bad samples counted and named."""
    for batch in batches:
        for line in run.bad.add(batch.bad):
            log.warning(line)
        yield batch


def _end_of_epoch(run: Run, epoch: int, progress: Progress) -> None:
    settings, last = run.recipe.run, epoch == run.recipe.schedule.epochs
    if run.validation is not None and (epoch % settings.evaluate_every == 0 and not last):
        score = evaluate(run, run.task.best_student)
        progress.note({"epoch": epoch, "zero_shot_top1": score.top1, "zero_shot_top5": score.top5})
        run.task.train()
    if epoch % settings.checkpoint_every == 0 or last:
        progress.flush()  # a loss that is not finite stops the run before its weights are saved
        save_checkpoint(
            run.out / "checkpoints",
            step=run.step,
            task=run.task,
            optimizer=run.optimizer,
            scaler=run.scaler,
            facts=run.facts,
        )


def evaluate(run: Run, encoder: torch.nn.Module) -> ZeroShot:
    """Zero-shot score of an encoder on the recipe's evaluation split, which there must be."""
    assert run.validation is not None
    return _score(run, zero_shot_classifier(encoder.eval(), run.validation.bank), run.validation.dataset)


def evaluate_teacher(run: Run) -> ZeroShot | None:
    """The teacher's own score on the same images: online, or from stored embeddings of unaugmented views; None without either."""
    assert run.validation is not None
    if run.teaching.image is not None:
        return evaluate(run, run.teaching.image)
    dataset = run.validation.dataset
    images = taught(dataset, views=dataset.views, teacher=run.teaching.facts["fingerprint"])
    return None if images is None else _score(run, stored_classifier(run.validation.bank), images)


def _score(run: Run, classify: Callable[[Batch], Tensor], dataset: ShardDataset) -> ZeroShot:
    assert run.validation is not None
    data = run.recipe.data
    return zero_shot(classify, dataset, names=run.validation.names, workers=data.workers, device=run.device, max_bad=data.max_bad)


def finish(run: Run, out: Path, *, open_clip: bool = False) -> Path:
    """Evaluate what will be published, and publish it to folder `out`; with `open_clip`, the teacher's text tower goes along."""
    student = round_weights(run.task.best_student).eval()
    teacher = spec_from_dict(run.teaching.facts["teacher"]) if open_clip else None
    if teacher is not None:
        check_open_clip(student, teacher)  # now, and not after the evaluation
    rows = read_log(run.out / "log.jsonl", until=run.step)
    metrics: dict[str, Any] = {
        "teacher": run.teaching.facts,
        "shards": run.dataset.shards.fingerprint,
        "training": _training(run, rows),
    }
    if run.validation is not None:
        metrics.update(_scores(run, student, run.validation.names))
    preprocess = student.preprocess
    metrics["input"] = {
        "size": preprocess.size,
        "mean": [round(v, 4) for v in preprocess.mean.flatten().tolist()],
        "std": [round(v, 4) for v in preprocess.std.flatten().tolist()],
    }
    objective = run.task.objective
    banks = Banks(
        names=run.teaching.vocabulary.names,
        templates=run.teaching.vocabulary.templates,
        text=run.teaching.bank,
        visual=objective.visual_bank if isinstance(objective, LGD) else None,
        seen=objective.seen if isinstance(objective, LGD) else None,
        text_fingerprint=run.teaching.facts["text_fingerprint"],
    )
    return save(
        out,
        student=student,
        banks=banks,
        recipe=spelled_out(run),
        metrics=metrics,
        name=weight_name(run.recipe),
        embedding_norm=embedding_norm(student, run),
        curve=training_curve(rows, metrics, epochs=run.step / run.plan.steps_per_epoch),
        open_clip=teacher,
    )


def _training(run: Run, rows: Sequence[Row]) -> dict[str, Any]:
    """What `metrics.json` says of the training."""
    seconds = training_seconds(rows, images=run.step * run.recipe.data.batch_size)
    device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type
    return {
        "images": len(run.dataset),
        "epochs": run.recipe.schedule.epochs,
        "steps": run.step,
        **({} if seconds is None else {"seconds": seconds}),
        "device": device if run.world_size == 1 else f"{run.world_size} x {device}",
        "lgd_timm": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "date": date.today().isoformat(),
    }


def _scores(run: Run, student: torch.nn.Module, names: Sequence[str]) -> dict[str, Any]:
    """What `metrics.json` says of student and teacher on the evaluation split; with its names, where they are not the student's."""
    score, teacher = evaluate(run, student), evaluate_teacher(run)
    log.info("student: %s", score)
    log.info("teacher: %s", teacher or "not measured: no online teacher, no stored embeddings of the evaluation split")
    others = {} if names == run.teaching.vocabulary.names else {"names": list(names)}
    return {
        "zero_shot": {**score.to_dict(), **others},
        "teacher_zero_shot": {**teacher.to_dict(), **others} if teacher else None,
        "summary": {
            "zero_shot_top1": round(score.top1, 2),
            "teacher_zero_shot_top1": round(teacher.top1, 2) if teacher else None,
        },
    }


def spelled_out(run: Run) -> Recipe:
    """The recipe as it travels: complete, and of nothing that is here only.

    Names stand in place of their sources; run for other names, it is scored on the same ones. Stored embeddings are accompanied
    by who taught and on which views, so that they can be made again. Paths into the working directory are relative.
    """
    vocabulary, teacher = run.teaching.vocabulary, run.recipe.teacher
    val_names = None if run.validation is None else list(run.validation.names)
    if isinstance(teacher, Stored):
        facts = run.teaching.facts
        assert run.teaching.stored is not None
        taught_on = run.teaching.stored.views if teacher.target == "image" else None
        teacher = replace(teacher, taught_by=spec_from_dict(facts["teacher"]), dtype=facts["dtype"], taught_on=taught_on)
    recipe = replace(
        run.recipe,
        teacher=teacher,
        views=run.teaching.views,
        vocabulary=VocabularyRecipe(list(vocabulary.names), list(vocabulary.templates)),
        data=replace(run.recipe.data, val_vocabulary=val_names),
    )
    return recipe_from_dict(relative(recipe.to_dict()))


@torch.no_grad()
def embedding_norm(student: torch.nn.Module, run: Run) -> float:
    """Mean length of the student's embeddings over one training batch."""
    plan = replace(run.plan, start=0, stop=1)
    batch = next(iter(loader(run.dataset, plan)))
    return float(student(batch.to(run.device).images).norm(dim=1).mean())


def save_run(folder: str | Path, *, out: str | Path, open_clip: bool = False) -> Path:
    """Make a published folder from a run's last checkpoint; with `open_clip`, one that open_clip loads too.

    Raises: WeightsError when there is no checkpoint, or no open_clip text tower for it.
    """
    folder = Path(folder)
    checkpoints = all_checkpoints(folder / "checkpoints")
    if not checkpoints:
        raise WeightsError(f"{folder} holds no checkpoint. Give the run folder of a finished or stopped lgd-timm distill.")
    run = build(read_recipe(folder / "recipe.yaml"), folder)  # the user's own, which may name any path
    run.step = load_checkpoint(checkpoints[-1], task=run.task, optimizer=run.optimizer, scaler=run.scaler, facts=run.facts)
    return finish(run, Path(out), open_clip=open_clip)
