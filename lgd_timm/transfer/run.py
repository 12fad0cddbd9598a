"""Train a transfer from its recipe, open its model again, predict with it, and compare backbones.

OUT/   recipe.yaml  log.jsonl  checkpoints/  model.safetensors  metrics.json
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

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
from ..hub.safe_weights import BUILD_ERRORS
from ..training.engine import check_output, fit, start
from ..utils.device import pick_device
from ..utils.distributed import Ranks, init_distributed
from ..utils.files import atomic_file, atomic_folder, explain_full_disk, write_json
from ..utils.model_size import check_finite, check_model_size
from ..utils.typed_json import JSONError, read_json
from .backbone import blank_backbone, find_backbone
from .job import Job
from .recipe import TransferRecipe, read_transfer
from .tasks import TASKS, Task, find_task

log = logging.getLogger(__name__)

WEIGHTS, METRICS = "model.safetensors", "metrics.json"


class TransferRun(NamedTuple):
    """A finished run: its task, recipe, classes, and the model in eval mode."""

    task: Task
    recipe: TransferRecipe
    classes: tuple[str, ...]
    model: nn.Module


class Process(NamedTuple):
    """This process's device, and the ranks that it trains with."""

    device: torch.device
    ranks: Ranks


def join_ranks(recipe: TransferRecipe) -> Process:
    """Initialise torch.distributed, if torchrun started several processes; once a process. Raises: LGDError."""
    return Process(torch.device(init_distributed(pick_device(recipe.machine.device))), Ranks.join())


def transfer(
    task: str, recipe: TransferRecipe, *, out: str | Path, resume: bool = False, process: Process | None = None
) -> dict[str, Any]:
    """Train one model on the recipe's data, and save it with its scores.

    Args:
        task: one of `tasks.TASKS`.
        recipe: the task's.
        out: the run's folder, which is made.
        resume: whether to go on from the last checkpoint in `out`, if there is one.
        process: device and ranks, if torch.distributed is initialised already.

    Returns:
        The content of `out/metrics.json`.

    Raises:
        LGDError: bad input, before anything is written.
        Stopped: SIGTERM ended the run, which is saved.
        KeyboardInterrupt: Ctrl-C; it is saved, too.
    """
    out = Path(out)
    if resume and (out / METRICS).is_file():
        log.info("%s is finished already", out)
        return _read_metrics(out)
    check_output(out, resume=resume)
    device, ranks = process or join_ranks(recipe)
    job = find_task(task).prepare(recipe, out=out, device=device, ranks=ranks)
    start(job, recipe=recipe.to_yaml(), resume=resume)
    scores = fit(job)
    metrics = _metrics(task, job, scores)
    if ranks.first:
        with atomic_file(out / WEIGHTS) as file, explain_full_disk(out / WEIGHTS):
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in job.model.state_dict().items()}, file)
        write_json(out / METRICS, metrics)
    ranks.wait()
    return metrics


class _BackboneFacts(TypedDict):
    architecture: str
    mean: list[float]
    std: list[float]


class _Metrics(TypedDict):
    task: str
    scores: dict[str, Any]  # NaN where nothing was measured
    classes: list[str]
    backbone: _BackboneFacts


def _read_metrics(folder: Path) -> dict[str, Any]:
    """Read what `transfer` wrote. Raises: WeightsError."""
    try:
        metrics: dict[str, Any] = read_json(folder / METRICS, _Metrics)
    except (OSError, JSONError) as error:
        raise WeightsError(
            f"{folder}/{METRICS} is not what lgd-timm transfer wrote ({error}). Run it again."
        ) from error
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


def open_run(folder: str | Path, *, device: torch.device | str = "cpu") -> TransferRun:
    """Open the model of a finished run. Raises: WeightsError for a folder that is none."""
    folder = Path(folder)
    if missing := [name for name in (METRICS, WEIGHTS, "recipe.yaml") if not (folder / name).is_file()]:
        raise WeightsError(f"{folder} lacks {', '.join(missing)}. Give the folder of a finished lgd-timm transfer.")
    try:
        metrics = _read_metrics(folder)
        task, classes, facts = metrics["task"], tuple(metrics["classes"]), metrics["backbone"]
        if task not in TASKS:
            raise KeyError(f"task {task!r}")
        found = find_task(task)
        recipe = read_transfer(found.RECIPE, folder / "recipe.yaml")
        mean, std = (tuple(facts[name]) for name in ("mean", "std"))

        def create() -> nn.Module:
            blank = blank_backbone(facts["architecture"], mean=mean, std=std)
            return found.create(recipe, backbone=blank, classes=classes)

        check_model_size(create, name=folder / METRICS, weights=folder / WEIGHTS, unbuilt=BUILD_ERRORS)
        model = create()
    except WeightsError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(
            f"{folder}/{METRICS} is not what lgd-timm transfer wrote ({error}). Run it again."
        ) from error
    try:
        state = load_file(folder / WEIGHTS)
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{folder}/{WEIGHTS} does not fit the run's recipe ({reason}). Run it again.") from error
    check_finite(state, folder / WEIGHTS)
    return TransferRun(found, recipe, classes, model.to(device).eval())


def predict(folder: str | Path, pictures: str | Path, *, out: str | Path, device: str = "auto") -> list[Path]:
    """Draw a model's predictions into copies of images.

    Args:
        folder: of a finished run.
        pictures: an image file, or a folder of them.
        out: folder of the new images, which must be empty.
        device: auto, cpu, cuda or mps.

    Returns:
        The new files, PNG.

    Raises:
        WeightsError: `folder` is no finished run.
        LGDError: images are missing or can't be read.
    """
    picked, pictures, out = pick_device(device), Path(pictures), Path(out)
    files = [pictures] if pictures.is_file() else sorted(path for path in pictures.glob("*") if is_image(path.name))
    if not files:
        raise LGDError(f"{pictures} holds no pictures ({', '.join(IMAGE_SUFFIXES)}). Give a file or a folder of them.")
    if len({file.stem for file in files}) < len(files):
        raise LGDError(
            f"{pictures} holds pictures whose names differ by their endings alone, and all become PNG. Rename them."
        )
    if out.exists() and any(out.iterdir()):
        raise LGDError(f"{out} is not empty. Choose another folder.")
    run = open_run(folder, device=picked)
    with atomic_folder(out) as temporary, torch.inference_mode():
        for file in files:
            try:
                picture = Image.fromarray(read_image(file).permute(1, 2, 0).numpy())
            except ShardError as error:
                raise LGDError(f"{file} can't be read as a picture ({error}). Remove it.") from error
            drawn = run.task.draw(
                run.model, picture, classes=run.classes, recipe=run.recipe, device=torch.device(picked)
            )
            drawn.save(temporary / f"{file.stem}.png")
    return [out / f"{file.stem}.png" for file in files]


def compare(task: str, recipe: TransferRecipe, *, out: str | Path, resume: bool = False) -> dict[str, dict[str, Any]]:
    """Train the recipe's backbone, its stock architecture with timm's weights, and from scratch, in `out/<name>`.

    Returns:
        The scores of each run by its name; where timm's weights can't be had, the reason.

    Raises:
        LGDError: as `transfer`.
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
    process = join_ranks(recipe)
    results = {
        name: transfer(task, replace(recipe, backbone=backbone), out=out / name, resume=resume, process=process)[
            "scores"
        ]
        for name, backbone in variants.items()
    }
    return {**results, **unreachable}
