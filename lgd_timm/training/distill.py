"""Distil from a recipe to a published folder: build, train or resume, evaluate, publish."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch

from .. import __version__
from ..config.reader import read_recipe, recipe_from_dict
from ..config.recipe import Recipe, VocabularyRecipe
from ..config.sandbox import relative
from ..data.loader import loader
from ..errors import WeightsError
from ..evaluate.zero_shot import ZeroShot, stored_classifier, warn_of_weak_teacher, with_stored_embeddings
from ..objectives import LGD
from ..publish.card import weight_name
from ..publish.folder import Banks, round_weights, save
from ..publish.open_clip import check_open_clip
from ..publish.training_curve import Row, read_log, training_curve, training_seconds
from ..teachers import Stored, spec_from_dict
from ..utils.checkpoint import all_checkpoints, best_checkpoint, checkpoint_at, note_score
from ..utils.distributed import Ranks
from .build import build
from .engine import check_output, fit, load, start
from .provenance import compare
from .state import Run

log = logging.getLogger(__name__)


def distill(recipe: Recipe, *, out: str | Path, resume: bool = False, source: str | Path | None = None) -> Path:
    """Run a recipe. It leaves `out/{recipe.yaml,log.jsonl,checkpoints,published}`.

    Args:
        recipe: what is distilled.
        out: the run's folder, which is made.
        resume: whether to go on from the last checkpoint in `out`, if there is one.
        source: file or folder that the recipe was read from. If it is a published folder, the log says whether the run
            repeats it.

    Returns:
        The published folder.

    Raises:
        LGDError: bad input, before anything is written.
        WeightsError: `out` holds another run.
        Stopped: SIGTERM ended the run, which is saved.
        KeyboardInterrupt: Ctrl-C; it is saved, too.
    """
    out = Path(out)
    check_output(out, resume=resume)
    if resume and (out / "published").exists():
        log.info("%s is finished already", out)
        return out / "published"
    run = build(recipe, out)
    if run.ranks.first and source is not None and (Path(source) / "model.safetensors").is_file():
        origin = {"shards": run.dataset.shards.fingerprint, "teacher": run.teaching.metadata}
        published = read_recipe(Path(source) / "recipe.yaml")
        compare(Path(source), metrics=origin, recipe=publishable_recipe(run).to_dict(), published=published.to_dict())
    start(run, recipe=run.recipe.to_yaml(), resume=resume)  # with the folder of embeddings that were found
    fit(run)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if run.ranks.first:
        return finish(run, out / "published")
    return out / "published"


def evaluate_teacher(run: Run) -> ZeroShot | None:
    """Measure the teacher on the evaluation split, online or by stored embeddings; None without either."""
    assert run.validation is not None
    if run.teaching.image is not None:
        return run.zero_shot(run.teaching.image, ranks=Ranks())
    dataset = run.validation.dataset
    stored = run.teaching.stored
    views = (
        None if stored is not None and stored.per_image else dataset.views
    )  # it saw whole images, at a size of its own
    images = with_stored_embeddings(dataset, views=views, teacher=run.teaching.metadata["fingerprint"])
    return None if images is None else run.score(stored_classifier(run.validation.bank), images, ranks=Ranks())


def finish(run: Run, out: Path, *, open_clip: bool = False) -> Path:
    """Evaluate what will be published, and publish it.

    Args:
        run: a distillation that was trained or loaded.
        out: the published folder.
        open_clip: whether the folder gets the teacher's text tower, so that open_clip loads it.

    Returns:
        The published folder.
    """
    student = round_weights(run.task.best_student).eval()
    teacher = spec_from_dict(run.teaching.metadata["teacher"]) if open_clip else None
    if teacher is not None:
        check_open_clip(student, teacher)  # now, and not after the evaluation
    rows = read_log(run.out / "log.jsonl", until=run.step)
    metrics: dict[str, Any] = {
        "teacher": run.teaching.metadata,
        "shards": run.dataset.shards.fingerprint,
        "training": _training(run, rows),
        **_resized(run),
    }
    if run.validation is not None:
        metrics.update(_scores(run, student, run.validation.names))
        if (checkpoint := checkpoint_at(run.out / "checkpoints", run.step)).is_dir():
            note_score(checkpoint, metrics["zero_shot"]["top1"])
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
        text_fingerprint=run.teaching.metadata["text_fingerprint"],
    )
    return save(
        out,
        student=student,
        banks=banks,
        recipe=publishable_recipe(run),
        metrics=metrics,
        name=weight_name(run.recipe),
        embedding_norm=embedding_norm(student, run),
        curve=training_curve(rows, metrics, epochs=run.step / run.plan.steps_per_epoch),
        open_clip=teacher,
    )


def _training(run: Run, rows: Sequence[Row]) -> dict[str, Any]:
    """Describe the training, for `metrics.json`."""
    seconds = training_seconds(rows, images=run.step * run.recipe.data.batch_size)
    device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type
    return {
        "images": len(run.dataset),
        "epochs": run.recipe.schedule.epochs,
        "steps": run.step,
        **({} if seconds is None else {"seconds": seconds}),
        "device": device if run.ranks.world_size == 1 else f"{run.ranks.world_size} x {device}",
        "lgd_timm": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "date": date.today().isoformat(),
    }


def _resized(run: Run) -> dict[str, Any]:
    """Say which splits hold images that were made smaller, for `metrics.json`."""
    datasets = [run.dataset, *([] if run.validation is None else [run.validation.dataset])]
    found = {d.shards.split: asdict(d.shards.resized) for d in datasets if d.shards.resized is not None}
    return {"resized": found} if found else {}


def _scores(run: Run, student: torch.nn.Module, names: Sequence[str]) -> dict[str, Any]:
    """Evaluate student and teacher, for `metrics.json`; with the split's names, where they are not the student's."""
    own, teacher = run.zero_shot(student, ranks=Ranks()), evaluate_teacher(run)
    log.info("student: %s", own)
    log.info("teacher: %s", teacher or "not measured: no online teacher, no stored embeddings of the evaluation split")
    warn_of_weak_teacher(teacher)
    others = {} if names == run.teaching.vocabulary.names else {"names": list(names)}
    return {
        "zero_shot": {**own.to_dict(), **others},
        "teacher_zero_shot": {**teacher.to_dict(), **others} if teacher else None,
        "summary": {
            "zero_shot_top1": round(own.top1, 2),
            "teacher_zero_shot_top1": round(teacher.top1, 2) if teacher else None,
        },
    }


def publishable_recipe(run: Run) -> Recipe:
    """The recipe as it travels: complete, and of nothing that is here only.

    Names stand in place of their sources; run for other names, it is scored on the same ones. Stored embeddings are
    accompanied by who taught and on which views, so that they can be made again. Paths into the working directory are
    relative.
    """
    vocabulary, teacher = run.teaching.vocabulary, run.recipe.teacher
    val_names = None if run.validation is None else list(run.validation.names)
    if isinstance(teacher, Stored):
        facts = run.teaching.metadata
        assert run.teaching.stored is not None
        taught_on = run.teaching.stored.views if teacher.target == "image" else None
        teacher = replace(
            teacher, taught_by=spec_from_dict(facts["teacher"]), dtype=facts["dtype"], taught_on=taught_on
        )
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
    """Compute the mean norm of the student's embeddings of one training batch."""
    plan = replace(run.plan, start=0, stop=1)
    batch = next(iter(loader(run.dataset, plan)))
    return float(student(batch.to(run.device).images).norm(dim=1).mean())


def save_run(folder: str | Path, *, out: str | Path, open_clip: bool = False, best: bool = False) -> Path:
    """Make a published folder from a checkpoint of a run.

    Args:
        folder: of the run.
        out: the published folder.
        open_clip: whether the folder gets the teacher's text tower, so that open_clip loads it.
        best: whether to take the checkpoint of the best score; else the last.

    Returns:
        The published folder.

    Raises:
        WeightsError: there is no such checkpoint, or no open_clip text tower for it.
    """
    folder = Path(folder)
    checkpoints = all_checkpoints(folder / "checkpoints")
    if not checkpoints:
        raise WeightsError(
            f"{folder} holds no checkpoint. Give the run folder of a finished or stopped lgd-timm distill."
        )
    checkpoint = best_checkpoint(folder / "checkpoints") if best else checkpoints[-1]
    if checkpoint is None:
        raise WeightsError(
            f"{folder} holds no checkpoint that was scored, so there is no best. "
            "Give a run with data.val_split, or leave out best."
        )
    run = build(read_recipe(folder / "recipe.yaml"), folder)  # the user's own, which may name any path
    load(run, checkpoint)
    return finish(run, Path(out), open_clip=open_clip)
