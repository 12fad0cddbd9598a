"""From a recipe to a run's folder, and from the folder back to its model; several runs side by side.

OUT/   recipe.yaml  log.jsonl  checkpoints/  model.safetensors  metrics.json
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .. import __version__
from ..data.decode import read_image
from ..data.image_folder import IMAGE_SUFFIXES, is_image
from ..errors import LGDError, ShardError, WeightsError
from ..training.engine import check_output, fit, start
from ..utils.device import pick_device
from ..utils.distributed import Ranks, init_distributed
from ..utils.files import atomic_file, atomic_folder, explain_full_disk, write_json
from .backbone import blank_backbone, find_backbone
from .job import Job
from .recipe import TransferRecipe, read_transfer
from .tasks import TASKS, Task, find_task

log = logging.getLogger(__name__)

WEIGHTS, METRICS = "model.safetensors", "metrics.json"


class Run(NamedTuple):
    """A finished run: its task, and the model, in eval mode."""

    task: Task
    recipe: TransferRecipe
    classes: tuple[str, ...]
    model: nn.Module


class Place(NamedTuple):
    """Where this process works, and beside whom."""

    device: torch.device
    ranks: Ranks


def meet_ranks(recipe: TransferRecipe) -> Place:
    """This process's device, after all that torchrun started have met; once a process. Raises: LGDError."""
    return Place(torch.device(init_distributed(pick_device(recipe.machine.device))), Ranks.join())


def transfer(
    task: str, recipe: TransferRecipe, *, out: str | Path, resume: bool = False, place: Place | None = None
) -> dict[str, Any]:
    """Train one model on the recipe's data. Returns what `out/metrics.json` says. `place`: of ranks that have met already.

    Raises: LGDError for any bad input, before anything is written; Stopped when SIGTERM ended it, after it was saved.
    """
    out = Path(out)
    if resume and (out / METRICS).is_file():
        log.info("%s is finished already", out)
        metrics: dict[str, Any] = json.loads((out / METRICS).read_text(encoding="utf-8"))
        return metrics
    device, ranks = place or meet_ranks(recipe)
    job = find_task(task).prepare(recipe, out=out, device=device, ranks=ranks)
    check_output(out, resume=resume)
    start(job, recipe=recipe.to_yaml(), resume=resume)
    scores = fit(job)
    metrics = _metrics(task, job, scores)
    if ranks.first:
        with atomic_file(out / WEIGHTS) as file, explain_full_disk(out / WEIGHTS):
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in job.model.state_dict().items()}, file)
        write_json(out / METRICS, metrics)
    ranks.wait()
    return metrics


def _metrics(task: str, job: Job, scores: Mapping[str, float]) -> dict[str, Any]:
    source = job.source
    return {
        "task": task,
        "scores": {name: round(value, 3) for name, value in scores.items()},
        "classes": list(job.classes),
        "backbone": {"architecture": source.architecture, "mean": list(source.mean), "std": list(source.std)},
        "images": len(job.pictures),
        "steps": job.step,
        "lgd_timm": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def open_run(folder: str | Path, *, device: torch.device | str = "cpu") -> Run:
    """The model of a finished run. Raises: WeightsError for a folder that is none."""
    folder = Path(folder)
    if missing := [name for name in (METRICS, WEIGHTS, "recipe.yaml") if not (folder / name).is_file()]:
        raise WeightsError(f"{folder} lacks {', '.join(missing)}. Give the folder of a finished lgd-timm transfer.")
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        task, classes, facts = metrics["task"], tuple(metrics["classes"]), metrics["backbone"]
        if task not in TASKS:
            raise KeyError(f"task {task!r}")
        backbone = blank_backbone(facts["architecture"], mean=tuple(facts["mean"]), std=tuple(facts["std"]))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(
            f"{folder}/{METRICS} is not what lgd-timm transfer wrote ({error}). Run it again."
        ) from error
    found = find_task(task)
    recipe = read_transfer(found.RECIPE, folder / "recipe.yaml")
    model = found.create(recipe, backbone=backbone, classes=classes)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{folder}/{WEIGHTS} does not fit the run's recipe ({reason}). Run it again.") from error
    return Run(found, recipe, classes, model.to(device).eval())


def predict(folder: str | Path, pictures: str | Path, *, out: str | Path, device: str = "auto") -> list[Path]:
    """Draw what a run's model sees into copies of the pictures, a file or a folder of them. Returns the new files, PNG.

    Raises: WeightsError for a folder that is no run; LGDError for pictures that are not there or can't be read.
    """
    place, pictures, out = pick_device(device), Path(pictures), Path(out)
    files = [pictures] if pictures.is_file() else sorted(path for path in pictures.glob("*") if is_image(path.name))
    if not files:
        raise LGDError(f"{pictures} holds no pictures ({', '.join(IMAGE_SUFFIXES)}). Give a file or a folder of them.")
    if len({file.stem for file in files}) < len(files):
        raise LGDError(
            f"{pictures} holds pictures whose names differ by their endings alone, and all become PNG. Rename them."
        )
    if out.exists() and any(out.iterdir()):
        raise LGDError(f"{out} is not empty. Choose another folder.")
    run = open_run(folder, device=place)
    with atomic_folder(out) as temporary, torch.inference_mode():
        for file in files:
            try:
                picture = Image.fromarray(read_image(file).permute(1, 2, 0).numpy())
            except ShardError as error:
                raise LGDError(f"{file} can't be read as a picture ({error}). Remove it.") from error
            drawn = run.task.draw(
                run.model, picture, classes=run.classes, recipe=run.recipe, device=torch.device(place)
            )
            drawn.save(temporary / f"{file.stem}.png")
    return [out / f"{file.stem}.png" for file in files]


def compare(task: str, recipe: TransferRecipe, *, out: str | Path, resume: bool = False) -> dict[str, dict[str, Any]]:
    """The recipe's backbone beside its stock architecture with timm's weights, and from scratch: one run each, in `out/<name>`.

    Returns scores by name; where timm's weights can't be had, the reason. Raises: as `transfer`.
    """
    out = Path(out)
    stock = find_backbone(recipe.backbone).architecture
    variants = {
        "lgd": recipe.backbone,
        "stock": replace(recipe.backbone, model=stock),
        "scratch": replace(recipe.backbone, model=stock, pretrained=False, norms="trained"),
    }
    try:
        find_backbone(variants["stock"])
    except WeightsError as error:
        unreachable = {
            "stock": {"unreachable": str(error.__cause__ or error)}
        }  # without advice that is another command's
        del variants["stock"]
    else:
        unreachable = {}
    place = meet_ranks(recipe)
    results = {
        name: transfer(task, replace(recipe, backbone=backbone), out=out / name, resume=resume, place=place)["scores"]
        for name, backbone in variants.items()
    }
    return {**results, **unreachable}
