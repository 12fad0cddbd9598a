"""One distillation, built from its recipe: everything is checked against the world before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor

from .banks import text_bank
from .checkpoint import load_checkpoint
from .devices import pick_device
from .errors import RecipeError
from .evaluate.zero_shot import check_class_count, check_labels
from .meeting import meet
from .objectives import create_objective
from .recipe import Recipe
from .shards import Views, open_shards
from .shards.memory import in_memory
from .shards.ranks import Ranks
from .shards.read import BadSamples, EpochPlan, ShardDataset, place_photometry
from .shards.stored import StoredEmbeddings
from .small_maps import small_maps_fast
from .step import Skipped
from .student import create_student
from .task import LGDTask
from .teachers import ImageTeacher, Stored, spec_from_dict
from .vocabulary import Vocabulary, load_vocabulary


@dataclass
class Teaching:
    """Where the teacher's embeddings and the names' bank come from."""

    facts: dict[str, Any]  # name, fingerprints, spec: what the published folder says of the teacher
    views: Views
    bank: Tensor
    vocabulary: Vocabulary
    stored: StoredEmbeddings | None = None
    image: ImageTeacher | None = None


@dataclass(frozen=True)
class Validation:
    """What encoders are scored on: labelled images, the names of their labels, and these names' bank [C, D]."""

    dataset: ShardDataset
    names: tuple[str, ...]
    bank: Tensor


@dataclass
class Run:
    """One distillation: what was built, and where it stands."""

    recipe: Recipe
    out: Path
    teaching: Teaching
    validation: Validation | None
    device: torch.device
    ranks: Ranks
    dataset: ShardDataset
    plan: EpochPlan
    task: LGDTask
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    bad: BadSamples
    skipped: Skipped
    step: int = 0

    @property
    def counts(self) -> dict[str, Any]:
        """What a resumed run goes on counting."""
        return {"bad": self.bad.reasons, "skipped": self.skipped.total}

    def go_on(self, checkpoint: Path) -> None:
        """Take up everything where a checkpoint left it. Raises: as `load_checkpoint`."""
        place = load_checkpoint(checkpoint, modules=self.task.kept, optimizer=self.optimizer, scaler=self.scaler, facts=self.facts)
        self.step = place.step
        self.bad.reasons.update(place.counts.get("bad", {}))
        self.skipped.total = place.counts.get("skipped", 0)

    @property
    def facts(self) -> dict[str, Any]:
        """What a resumed run must agree on: all that decides the numbers, but not how the machine makes them."""
        recipe, stored = self.recipe.to_dict(), self.teaching.stored
        return {
            **{key: recipe[key] for key in ("student", "objective", "optimizer", "schedule")},
            "batch_size": self.recipe.data.batch_size,
            "seed": self.recipe.run.seed,
            "amp": self.recipe.run.amp,
            "ema_decay": self.recipe.run.ema_decay,
            "shards": self.dataset.shards.fingerprint,
            "views": [self.teaching.views.fingerprint, self.teaching.views.count],
            "names": self.teaching.vocabulary.fingerprint,
            "teacher": self.teaching.facts["fingerprint"] + (" (of images)" if stored is not None and stored.per_image else ""),
        }


def build(recipe: Recipe, out: Path) -> Run:
    """Check the recipe against the world and build everything, writing nothing."""
    device, ranks = torch.device(meet(pick_device(recipe.run.device))), Ranks.join()
    check_batch_size(recipe, ranks.world_size)
    shards = open_shards(recipe.data.shards, split=recipe.data.train_split)
    teaching, bank_of = prepare_teaching(recipe)
    if teaching.stored is not None:
        teaching.stored.check(shards, teaching.views)
    validation = prepare_validation(recipe, teaching, bank_of) if recipe.data.val_split else None
    # Pixels that are kept in memory are kept with their colours done.
    photometry = place_photometry(recipe.run.photometry, torch.device("cpu") if recipe.data.in_memory else device)
    dataset = ShardDataset(shards, views=teaching.views, stored=teaching.stored, photometry=photometry)
    if recipe.data.in_memory:
        dataset = in_memory(dataset)
    plan = EpochPlan(
        shards.lengths,
        batch_size=recipe.data.batch_size // ranks.world_size,
        views=teaching.views.count,
        seed=recipe.run.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    task = build_task(recipe, teaching, device)
    if recipe.run.accumulate > 1 and not task.objective.per_image:
        raise RecipeError(
            f"The loss of {type(task.objective).__name__} looks at a whole batch, or fills its bank before it, so run.accumulate = "
            f"{recipe.run.accumulate} would change it. Set run.accumulate 1."
        )
    if task.objective.needs_labels:
        check_labels(dataset[(0, 0)], teaching.vocabulary.names, dataset)
    optimizer, scheduler = build_optimizer(recipe, task, plan.steps_per_epoch)
    return Run(
        recipe=recipe,
        out=out,
        teaching=teaching,
        validation=validation,
        device=device,
        ranks=ranks,
        dataset=dataset,
        plan=plan,
        task=task,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(device.type, enabled=recipe.run.amp == "float16"),
        bad=BadSamples(recipe.data.max_bad, size=len(shards)),
        skipped=Skipped(recipe.run.max_skipped),
    )


def check_batch_size(recipe: Recipe, world_size: int) -> None:
    """The global batch is shared out over ranks, and a rank's over passes, evenly. Raises: RecipeError."""
    size, passes = recipe.data.batch_size, recipe.run.accumulate
    if size % world_size:
        raise RecipeError(f"data.batch_size = {size} is global and must divide by {world_size} ranks.")
    if size // world_size % passes:
        raise RecipeError(f"run.accumulate = {passes} passes can't share {size // world_size} images of a rank evenly.")


def prepare_teaching(recipe: Recipe) -> tuple[Teaching, Callable[[Vocabulary], Tensor]]:
    """Names, bank and teacher; and the function that makes any vocabulary's bank.

    With stored embeddings the image tower is not built, and the text tower once, only if there are new names.
    """
    vocabulary = load_vocabulary(recipe.vocabulary.source, templates=recipe.vocabulary.templates)
    if isinstance(recipe.teacher, Stored):
        stored = recipe.teacher.open()
        teacher = spec_from_dict(stored.facts.get("teacher"))  # before anything is written: what is published names it
        text = cache(teacher.text)
        bank_of = partial(text_bank, text_fingerprint=stored.facts["text_fingerprint"], text=text, folders=[stored.root / "text"])
        return Teaching(stored.facts, recipe.views or stored.views, bank_of(vocabulary), vocabulary, stored=stored), bank_of
    if recipe.views is None:
        raise RecipeError("The recipe lacks `views` (size, augmentation), which an online teacher needs.")
    image, tower = recipe.teacher.image(), recipe.teacher.text()
    bank_of = partial(text_bank, text_fingerprint=tower.fingerprint, text=lambda: tower)
    facts = {
        "teacher": recipe.to_dict()["teacher"],
        "name": image.name,
        "fingerprint": image.fingerprint,
        "text_fingerprint": tower.fingerprint,
        "embed_dim": image.embed_dim,
    }
    return Teaching(facts, recipe.views, bank_of(vocabulary), vocabulary, image=image), bank_of


def prepare_validation(recipe: Recipe, teaching: Teaching, bank_of: Callable[[Vocabulary], Tensor]) -> Validation:
    """The evaluation split and its names' bank. The split must be there, labelled, and of as many classes as there are names.

    The student lives in the teacher's space, so it can be asked about names that it was not distilled for.
    """
    data, vocabulary = recipe.data, teaching.vocabulary
    if data.val_vocabulary is not None:
        vocabulary = load_vocabulary(data.val_vocabulary, templates=recipe.vocabulary.templates)
    views = Views(size=teaching.views.size, augmentation="none", interpolation=teaching.views.interpolation, crop=data.val_crop)
    dataset = ShardDataset(open_shards(data.shards, split=data.val_split or ""), views=views, allow_empty=True)
    check_class_count(
        dataset,
        vocabulary.names,
        where=f"data.val_split {data.val_split!r}",
        asked="its vocabulary",
        advice="Set data.val_vocabulary to the names of its labels in their order, or do not evaluate: --data.val_split null.",
        error=RecipeError,
    )
    check_labels(dataset[(0, 0)], vocabulary.names, dataset)
    return Validation(in_memory(dataset) if data.in_memory else dataset, vocabulary.names, bank_of(vocabulary))


def build_task(recipe: Recipe, teaching: Teaching, device: torch.device) -> LGDTask:
    torch.manual_seed(recipe.run.seed)  # here and not before: whatever was built till now has no say in the student's start
    student = create_student(
        embed_dim=teaching.bank.shape[1],
        **{**asdict(recipe.student), "image_size": recipe.student.image_size or teaching.views.size},
    )
    if device.type == "cpu":
        small_maps_fast(student)
    if recipe.run.channels_last:
        student = student.to(memory_format=torch.channels_last)
    objective = create_objective(teaching.bank, seed=recipe.run.seed, **recipe.objective)
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
    try:
        optimizer = create_optimizer_v2(
            task.student,
            opt=settings.name,
            lr=lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            filter_bias_and_bn=not settings.weight_decay_all,
            **options,
        )
    except (ValueError, TypeError, RuntimeError, AssertionError, ImportError) as error:  # values that it refuses, libraries that it needs
        raise RecipeError(f"optimizer {settings.name!r} can't be built of lr = {lr:g} and the recipe's other values ({error}).") from error
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
