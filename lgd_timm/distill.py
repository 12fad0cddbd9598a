"""The training loop: short, because timm supplies optimizer, scheduler, EMA, mixed precision and distributed set-up."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils import dispatch_clip_grad
from timm.utils.distributed import init_distributed_device_so
from torch import Tensor

from .banks import text_bank
from .checkpoint import all_checkpoints, load_checkpoint, save_checkpoint
from .devices import pick_device
from .errors import RecipeError, WeightsError
from .evaluate.zero_shot import ZeroShot, stored_classifier, zero_shot, zero_shot_classifier
from .objectives import LGD
from .progress import Progress
from .publish import Banks, round_weights, save
from .recipe import Recipe, read_recipe
from .shards import Views, open_shards
from .shards.read import BadSamples, Batch, EpochPlan, ShardDataset, loader
from .shards.stored import StoredEmbeddings, find_stored
from .student import create_student
from .task import LGDTask
from .teachers import ImageTeacher, Stored, TextTeacher, spec_from_dict
from .vocabulary import Vocabulary, load_vocabulary

log = logging.getLogger(__name__)


@dataclass
class Teaching:
    """Where the teacher's embeddings and the names' bank come from."""

    facts: dict[str, Any]  # name, fingerprints, spec: what the published folder says of the teacher
    views: Views
    bank: Tensor
    vocabulary: Vocabulary
    stored: StoredEmbeddings | None = None
    image: ImageTeacher | None = None


@dataclass
class Run:
    """One distillation: what was built, and where it stands."""

    recipe: Recipe
    out: Path
    teaching: Teaching
    device: torch.device
    rank: int
    world_size: int
    dataset: ShardDataset
    plan: EpochPlan
    task: LGDTask
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    bad: BadSamples
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, Any]:
        """What a resumed run must agree on: all that decides the numbers, but not how the machine makes them."""
        recipe = self.recipe.to_dict()
        return {
            **{key: recipe[key] for key in ("student", "objective", "optimizer", "schedule")},
            "batch_size": self.recipe.data.batch_size,
            "seed": self.recipe.run.seed,
            "amp": self.recipe.run.amp,
            "ema_decay": self.recipe.run.ema_decay,
            "shards": self.dataset.shards.fingerprint,
            "views": [self.teaching.views.fingerprint, self.teaching.views.count],
            "names": self.teaching.vocabulary.fingerprint,
            "teacher": self.teaching.facts["fingerprint"],
        }


def distill(recipe: Recipe, *, out: str | Path, resume: bool = False) -> Path:
    """Run a recipe. Leaves `out/{recipe.yaml,log.jsonl,checkpoints,published}`; returns the published folder.

    Raises: LGDError for any bad input, before anything is written; WeightsError when `out` holds another run.
    """
    out = Path(out)
    if not resume and out.exists() and any(out.iterdir()):
        raise RecipeError(f"{out} is not empty. Go on with --resume, or choose another --output.")
    run = build(recipe, out)
    if resume and (checkpoints := all_checkpoints(out / "checkpoints")):
        run.step = load_checkpoint(checkpoints[-1], task=run.task, optimizer=run.optimizer, scaler=run.scaler, facts=run.facts)
        log.info("resumed %s at step %d", checkpoints[-1], run.step)
    if run.rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    train(run)
    if run.rank == 0:
        return finish(run, out / "published")
    return out / "published"


def build(recipe: Recipe, out: Path) -> Run:
    """Check the recipe against the world and build everything, writing nothing."""
    place = init_distributed_device_so(pick_device(recipe.run.device))
    device = torch.device(place["device"])
    rank, world_size = int(place["global_rank"]), int(place["world_size"])
    if recipe.data.batch_size % world_size:
        raise RecipeError(f"data.batch_size = {recipe.data.batch_size} is global and must divide by {world_size} ranks.")
    torch.manual_seed(recipe.run.seed)
    shards = open_shards(recipe.data.shards, split=recipe.data.train_split)
    teaching = prepare_teaching(recipe)
    if teaching.stored is not None:
        teaching.stored.check(shards, teaching.views)
    dataset = ShardDataset(shards, views=teaching.views, stored=teaching.stored)
    plan = EpochPlan(
        shards.lengths,
        batch_size=recipe.data.batch_size // world_size,
        views=teaching.views.count,
        seed=recipe.run.seed,
        rank=rank,
        world_size=world_size,
    )
    task = build_task(recipe, teaching, device)
    optimizer, scheduler = build_optimizer(recipe, task, plan.steps_per_epoch)
    return Run(
        recipe=recipe,
        out=out,
        teaching=teaching,
        device=device,
        rank=rank,
        world_size=world_size,
        dataset=dataset,
        plan=plan,
        task=task,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(device.type, enabled=recipe.run.amp == "float16"),
        bad=BadSamples(recipe.data.max_bad, size=len(shards)),
    )


def prepare_teaching(recipe: Recipe) -> Teaching:
    """Names, bank and teacher. With stored embeddings the image tower is not built, and the text tower only for new names."""
    vocabulary = load_vocabulary(recipe.vocabulary.source, templates=recipe.vocabulary.templates)
    if isinstance(recipe.teacher, Stored):
        stored = recipe.teacher.open()
        text_fingerprint, folders = stored.facts["text_fingerprint"], [stored.root / "text"]

        def text() -> TextTeacher:
            return spec_from_dict(stored.facts["teacher"]).text()

        bank = text_bank(vocabulary, text_fingerprint=text_fingerprint, text=text, folders=folders)
        return Teaching(stored.facts, recipe.views or stored.views, bank, vocabulary, stored=stored)
    if recipe.views is None:
        raise RecipeError("The recipe lacks `views` (size, augmentation), which an online teacher needs.")
    image, tower = recipe.teacher.image(), recipe.teacher.text()
    bank = text_bank(vocabulary, text_fingerprint=tower.fingerprint, text=lambda: tower)
    facts = {
        "teacher": recipe.to_dict()["teacher"],
        "name": image.name,
        "fingerprint": image.fingerprint,
        "text_fingerprint": tower.fingerprint,
        "embed_dim": image.embed_dim,
    }
    return Teaching(facts, recipe.views, bank, vocabulary, image=image)


def build_task(recipe: Recipe, teaching: Teaching, device: torch.device) -> LGDTask:
    student = create_student(
        embed_dim=teaching.bank.shape[1],
        **{**asdict(recipe.student), "image_size": recipe.student.image_size or teaching.views.size},
    )
    if recipe.run.channels_last:
        student = student.to(memory_format=torch.channels_last)
    objective = LGD(teaching.bank, seed=recipe.run.seed, **recipe.objective)
    task = LGDTask(student, objective, teaching.image, device=device)
    if recipe.run.ema_decay is not None:
        task.setup_ema(decay=recipe.run.ema_decay)
    if recipe.run.compile:
        task.compile()
    if torch.distributed.is_initialized():
        task.prepare_distributed(device_ids=[device] if device.type == "cuda" else None)
    return task


def build_optimizer(recipe: Recipe, task: LGDTask, steps_per_epoch: int) -> tuple[torch.optim.Optimizer, Any]:
    settings, schedule = recipe.optimizer, recipe.schedule
    if settings.name not in list_optimizers():
        raise RecipeError(f"optimizer.name {settings.name!r} is unknown to timm. See timm.optim.list_optimizers().")
    lr = settings.lr if settings.lr is not None else settings.lr_base * recipe.data.batch_size / settings.lr_base_size
    options: dict[str, Any] = {"betas": settings.betas} if settings.betas else {}
    optimizer = create_optimizer_v2(
        task.student,
        opt=settings.name,
        lr=lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        filter_bias_and_bn=not settings.weight_decay_all,
        **options,
    )
    if schedule.warmup_epochs >= schedule.epochs:
        raise RecipeError(f"schedule.warmup_epochs = {schedule.warmup_epochs:g} must be below schedule.epochs = {schedule.epochs}.")
    warmup: Any = schedule.warmup_epochs  # a fraction of an epoch is fine, whatever timm's annotation says
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=schedule.name,
        num_epochs=schedule.epochs,
        warmup_epochs=warmup,
        warmup_lr=schedule.warmup_lr,
        min_lr=schedule.min_lr,
        step_on_epochs=not schedule.per_step,
        updates_per_epoch=steps_per_epoch,
    )
    return optimizer, scheduler


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
        result = run.task(batch.images, None if batch.embeddings is None else batch.embeddings.float())
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
    plan = EpochPlan(**{**run.plan.__dict__, "start": run.step, "stop": total})
    for batch in loader(run.dataset, plan, workers=run.recipe.data.workers):
        for line in run.bad.add(batch.bad):
            log.warning(line)
        yield batch.to(run.device)


def _end_of_epoch(run: Run, epoch: int, progress: Progress) -> None:
    settings, last = run.recipe.run, epoch == run.recipe.schedule.epochs
    if run.recipe.data.val_split and (epoch % settings.evaluate_every == 0 and not last):
        score = evaluate(run, run.task.best_student)
        progress.note({"epoch": epoch, "zero_shot_top1": score.top1, "zero_shot_top5": score.top5})
        run.task.train()
    if epoch % settings.checkpoint_every == 0 or last:
        save_checkpoint(
            run.out / "checkpoints",
            step=run.step,
            task=run.task,
            optimizer=run.optimizer,
            scaler=run.scaler,
            facts=run.facts,
        )


def evaluate(run: Run, encoder: torch.nn.Module) -> ZeroShot:
    """Zero-shot score of an encoder on the recipe's evaluation split."""
    return zero_shot(
        zero_shot_classifier(encoder.eval(), run.teaching.bank),
        _validation(run),
        names=run.teaching.vocabulary.names,
        workers=run.recipe.data.workers,
        device=run.device,
        max_bad=run.recipe.data.max_bad,
    )


def evaluate_teacher(run: Run) -> ZeroShot | None:
    """The teacher's own score on the same images: online, or from stored embeddings of unaugmented views; None without either."""
    dataset = _validation(run)
    if run.teaching.image is not None:
        classify = zero_shot_classifier(run.teaching.image, run.teaching.bank)
    else:
        stored = find_stored(dataset.shards, views=dataset.views, teacher=run.teaching.facts["fingerprint"])
        if stored is None:
            return None
        dataset, classify = (
            ShardDataset(dataset.shards, views=dataset.views, stored=stored),
            stored_classifier(run.teaching.bank),
        )
    names = run.teaching.vocabulary.names
    return zero_shot(
        classify,
        dataset,
        names=names,
        workers=run.recipe.data.workers,
        device=run.device,
        max_bad=run.recipe.data.max_bad,
    )


def _validation(run: Run) -> ShardDataset:
    shards = open_shards(run.recipe.data.shards, split=run.recipe.data.val_split or "")
    return ShardDataset(
        shards,
        views=Views(size=run.teaching.views.size, augmentation="none", interpolation=run.teaching.views.interpolation),
    )


def finish(run: Run, out: Path) -> Path:
    """Evaluate what will be published, and publish it to folder `out`."""
    student = round_weights(run.task.best_student).eval()
    metrics: dict[str, Any] = {"teacher": run.teaching.facts, "shards": run.dataset.shards.fingerprint}
    if run.recipe.data.val_split:
        score, teacher = evaluate(run, student), evaluate_teacher(run)
        metrics["zero_shot"] = score.to_dict()
        metrics["teacher_zero_shot"] = teacher.to_dict() if teacher else None
        metrics["summary"] = {
            "zero_shot_top1": round(score.top1, 2),
            "teacher_zero_shot_top1": round(teacher.top1, 2) if teacher else None,
        }
        log.info("student: %s", score)
        log.info("teacher: %s", teacher or "not measured: no online teacher, no stored embeddings of the evaluation split")
    preprocess = student.preprocess
    metrics["input"] = {
        "size": preprocess.size,
        "mean": [round(v, 4) for v in preprocess.mean.flatten().tolist()],
        "std": [round(v, 4) for v in preprocess.std.flatten().tolist()],
    }
    objective: Any = run.task.objective
    banks = Banks(
        names=run.teaching.vocabulary.names,
        templates=run.teaching.vocabulary.templates,
        text=run.teaching.bank,
        visual=objective.visual_bank,
        seen=objective.seen,
        text_fingerprint=run.teaching.facts["text_fingerprint"],
    )
    name = f"{run.recipe.student.model}.{run.recipe.name}"
    norm = embedding_norm(student, run)
    return save(
        out,
        student=student,
        banks=banks,
        recipe=run.recipe,
        metrics=metrics,
        name=name,
        embedding_norm=norm,
    )


@torch.no_grad()
def embedding_norm(student: torch.nn.Module, run: Run) -> float:
    """Mean length of the student's embeddings over one training batch."""
    plan = EpochPlan(**{**run.plan.__dict__, "start": 0, "stop": 1})
    batch = next(iter(loader(run.dataset, plan)))
    return float(student(batch.to(run.device).images).norm(dim=1).mean())


def save_run(folder: str | Path, *, out: str | Path) -> Path:
    """Make a published folder from a run's last checkpoint. Raises: WeightsError when it has none."""
    folder = Path(folder)
    checkpoints = all_checkpoints(folder / "checkpoints")
    if not checkpoints:
        raise WeightsError(f"{folder} holds no checkpoint. Give the run folder of a finished or stopped lgd-timm distill.")
    run = build(read_recipe(folder), folder)
    load_checkpoint(checkpoints[-1], task=run.task, optimizer=run.optimizer, scaler=run.scaler, facts=run.facts)
    return finish(run, Path(out))
