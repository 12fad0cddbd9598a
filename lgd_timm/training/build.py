"""Build a distillation from its recipe: everything is checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config.reader import read_mapping, read_recipe
from ..config.recipe import Recipe
from ..data import Views, open_shards
from ..data.dataset import BadSamples, ShardDataset
from ..data.in_memory import in_memory
from ..data.index import ShardSet
from ..data.loader import color_device
from ..data.samplers import EpochSampler
from ..data.vocabulary import Vocabulary, class_order, load_vocabulary
from ..errors import RecipeError, ShardError, VocabularyError
from ..evaluate.zero_shot import ClassCountError, check_labels, match_classes
from ..objectives import create_objective
from ..students.model import check_name, create_student
from ..students.small_conv import speed_up_small_convs
from ..task import LGDTask
from ..teachers import Stored
from ..teachers.prepare import PreparedTeacher, prepare_teacher
from ..utils.device import pick_device
from ..utils.distributed import Ranks, init_distributed
from .optim import build_optimizer, build_scheduler, check_optimizer
from .state import Run, Validation
from .step import Skipped


def build(recipe: Recipe, out: Path) -> Run:
    """Check the recipe against shards, names and teacher, and build everything, without writing.

    Raises:
        LGDError: the recipe can't be run.
    """
    device, ranks = torch.device(init_distributed(pick_device(recipe.machine.device))), Ranks.join()
    check_batch_size(recipe, ranks.world_size)
    check_settings(recipe)
    shards = open_shards(recipe.data.shards, split=recipe.data.train_split)
    vocabulary = recipe.vocabulary.load()
    labels = open_labels(recipe, vocabulary) if recipe.data.val_split else None  # before a teacher is loaded
    if isinstance(recipe.teacher, Stored):
        recipe = replace(recipe, teacher=open_embeddings(recipe, recipe.teacher, shards))
    teaching, bank_of = prepare_teacher(recipe.teacher, vocabulary=vocabulary, views=recipe.views)
    validation = prepare_validation(recipe, labels, teaching, bank_of) if labels else None
    # Pixels that are kept in memory are kept with their colours done.
    photometry = color_device(recipe.machine.photometry, torch.device("cpu") if recipe.data.in_memory else device)
    dataset = ShardDataset(shards, views=teaching.views, stored=teaching.stored, photometry=photometry)
    if recipe.data.in_memory:
        dataset = in_memory(dataset)
    plan = EpochSampler(
        shards.lengths,
        batch_size=recipe.data.batch_size // ranks.world_size,
        views=teaching.views.count,
        seed=recipe.machine.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        window=recipe.data.window,
    )
    task = build_task(recipe, teaching, device)
    if recipe.machine.accumulate > 1 and not task.objective.per_image:
        raise RecipeError(
            f"The loss of {type(task.objective).__name__} looks at a whole batch, or fills its bank before it, "
            f"so run.accumulate = "
            f"{recipe.machine.accumulate} would change it. Set run.accumulate 1."
        )
    if task.objective.needs_labels:
        if class_order(teaching.vocabulary.names, shards.class_names):
            raise RecipeError(
                f"The vocabulary's names are the classes of {shards.root} ({shards.split}) in another order, and the "
                f"loss of {type(task.objective).__name__} learns from labels. Give the names in the labels' order."
            )
        check_labels(dataset[(0, 0)], teaching.vocabulary.names, dataset)
    if teaching.stored is not None:
        task.objective.fit(all_embeddings(teaching, shards, ranks))
    optimizer = task_optimizer(recipe, task)
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
        scheduler=task_scheduler(recipe, optimizer, steps_per_epoch=plan.steps_per_epoch),
        scaler=torch.amp.GradScaler(device.type, enabled=recipe.machine.amp == "float16"),
        bad=BadSamples(recipe.data.max_bad, size=len(shards)),
        skipped=Skipped(recipe.machine.max_skipped),
    )


def all_embeddings(teaching: PreparedTeacher, shards: ShardSet, ranks: Ranks) -> Iterator[Tensor]:
    """Yield the stored embeddings [B, D] of this rank's share of the shards, of every view that the student sees."""
    assert teaching.stored is not None
    views = 1 if teaching.stored.per_image else teaching.views.count
    share = ranks.share(range(len(shards.filenames)))
    return map(torch.from_numpy, teaching.stored.batches(shards, views=views, numbers=share))


def open_embeddings(recipe: Recipe, teacher: Stored, shards: ShardSet) -> Stored:
    """Find stored embeddings and check that they are of these shards and views, before any tower is loaded.

    Raises:
        TeacherError: they are not there, or do not fit.
    """
    found = teacher.found_beside(recipe.data.shards, split=recipe.data.train_split, views=recipe.views)
    stored = found.open()
    stored.check(shards, recipe.views or stored.views)
    return found


def check_settings(recipe: Recipe) -> None:
    """Check what needs no model, before any is loaded.

    Raises:
        LGDError: student or optimizer are unknown to timm, or the warm-up is as long as the run.
    """
    check_name(recipe.student.model)
    check_optimizer(recipe.optimizer.name)
    schedule = recipe.schedule
    if schedule.warmup_epochs >= schedule.epochs:
        raise RecipeError(
            f"schedule.warmup_epochs = {schedule.warmup_epochs:g} must be below schedule.epochs = {schedule.epochs}."
        )


def check_names(source: str | Path) -> None:
    """Check a recipe's names against its evaluation split, which costs less than hours of teaching for them.

    Args:
        source: recipe of a distillation or of `teach`. Only a file is looked into, as it is the user's own.

    Raises:
        RecipeError: there are more or fewer names than classes.
    """
    if not Path(source).is_file() or "data" not in read_mapping(source):
        return
    recipe = read_recipe(source)
    if recipe.data.val_split:
        with suppress(ShardError, VocabularyError):  # `teach` needs neither the split nor the names, but to distil
            open_labels(recipe, recipe.vocabulary.load())


def check_batch_size(recipe: Recipe, world_size: int) -> None:
    """Check that ranks share the batch evenly, and passes a rank's part. Raises: RecipeError."""
    size, passes = recipe.data.batch_size, recipe.machine.accumulate
    if size % world_size:
        raise RecipeError(f"data.batch_size = {size} is global and must divide by {world_size} ranks.")
    if size // world_size % passes:
        raise RecipeError(f"run.accumulate = {passes} passes can't share {size // world_size} images of a rank evenly.")


class Labels(NamedTuple):
    """The evaluation split, and its names.

    Attributes:
        shards: the split.
        vocabulary: of its names, as they were given.
        order: for each class the index of its name, where the names stand in another order; else None.
    """

    shards: ShardSet
    vocabulary: Vocabulary
    order: list[int] | None


def open_labels(recipe: Recipe, vocabulary: Vocabulary) -> Labels:
    """Open the evaluation split and check its names against its classes.

    The student lives in the teacher's space, so it can be asked about names that it was not distilled for.

    Args:
        recipe: with an evaluation split.
        vocabulary: the names that are distilled for, by which the split is evaluated unless the recipe has others.

    Raises:
        RecipeError: there are more or fewer names than classes.
        ShardError: the split is not there.
    """
    data = recipe.data
    if data.val_vocabulary is not None:
        vocabulary = load_vocabulary(data.val_vocabulary, templates=recipe.vocabulary.templates)
    shards = open_shards(data.shards, split=data.val_split or "")
    try:
        return Labels(shards, vocabulary, match_classes(shards, vocabulary.names))
    except ClassCountError as error:
        raise RecipeError(
            f"data.val_split {data.val_split!r} has {error.classes} classes, its vocabulary {error.names} names, so "
            "scores would mean nothing. Set data.val_vocabulary to the names of its labels in their order, or do not "
            "evaluate: --data.val_split null."
        ) from None


def prepare_validation(
    recipe: Recipe, labels: Labels, teaching: PreparedTeacher, bank_of: Callable[[Vocabulary], Tensor]
) -> Validation:
    """Make the evaluation split's dataset and its names' bank [C, D], in the order of its labels.

    Args:
        recipe: with an evaluation split.
        labels: of `open_labels`.
        teaching: the teacher, whose views are shown without augmentation.
        bank_of: makes a vocabulary's bank.

    Raises:
        ShardError: the split has no labels.
        VocabularyError: a label has no name.
    """
    data, names, bank = recipe.data, labels.vocabulary.names, bank_of(labels.vocabulary)
    if labels.order is not None:
        names, bank = tuple(names[number] for number in labels.order), bank[labels.order]
    views = Views(
        size=teaching.views.size, augmentation="none", interpolation=teaching.views.interpolation, crop=data.val_crop
    )
    dataset = ShardDataset(labels.shards, views=views, allow_empty=True)
    check_labels(dataset[(0, 0)], names, dataset)
    return Validation(in_memory(dataset) if data.in_memory else dataset, names, bank)


def build_task(recipe: Recipe, teaching: PreparedTeacher, device: torch.device) -> LGDTask:
    """Build student, objective and their task, with random numbers that depend on the recipe's seed alone."""
    # Here and not before, so that what was built till now does not change the student's first weights.
    torch.manual_seed(recipe.machine.seed)
    student = create_student(
        embed_dim=teaching.bank.shape[1],
        **{**asdict(recipe.student), "image_size": recipe.student.image_size or teaching.views.size},
    )
    if recipe.machine.small_convs is True or (recipe.machine.small_convs == "auto" and device.type == "cpu"):
        speed_up_small_convs(student)
    if recipe.machine.channels_last:
        student = student.to(memory_format=torch.channels_last)
    objective = create_objective(teaching.bank, seed=recipe.machine.seed, **recipe.objective)
    task = LGDTask(student, objective, teaching.image, device=device)
    if recipe.machine.ema_decay is not None:
        task.setup_ema(decay=recipe.machine.ema_decay)
    if recipe.machine.compile:
        task.compile()
    if torch.distributed.is_initialized():
        task.prepare_distributed(device_ids=[device] if device.type == "cuda" else None)
    return task


def task_optimizer(recipe: Recipe, task: LGDTask) -> torch.optim.Optimizer:
    """Build the recipe's optimizer of the student.

    Raises:
        RecipeError: the optimizer can't be built.
    """
    settings = recipe.optimizer
    lr = settings.lr if settings.lr is not None else settings.lr_base * recipe.data.batch_size / settings.lr_base_size
    options: dict[str, Any] = {"betas": settings.betas} if settings.betas else {}
    return build_optimizer(
        task.student,
        name=settings.name,
        lr=lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        filter_bias_and_bn=not settings.weight_decay_all,
        **options,
    )


def task_scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int) -> Any:
    """Build the recipe's schedule."""
    schedule = recipe.schedule
    return build_scheduler(
        optimizer,
        name=schedule.name,
        epochs=schedule.epochs,
        steps_per_epoch=steps_per_epoch,
        per_step=schedule.per_step,
        warmup_epochs=schedule.warmup_epochs,  # a fraction of an epoch is fine, whatever timm's annotation says
        warmup_lr=schedule.warmup_lr,
        min_lr=schedule.min_lr,
    )
