"""Fine-tune a whole model with a new head on labels; a model with random weights is trained from scratch."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler

from ..data import Views
from ..data.dataset import BadSamples, Batch, ShardDataset
from ..data.index import ShardSet
from ..data.loader import loader, on_device
from ..data.samplers import EpochSampler, Item, SequentialSampler
from ..data.subset import Subset, positions
from ..errors import LGDError
from ..students.model import Student
from ..students.small_conv import speed_up_small_convs
from ..utils.batch_norm import explain_batch_of_one
from ..utils.progress import progress_bar
from .models import Backbone
from .zero_shot import Tally, ZeroShot, accuracies, check_labels, progress


@dataclass(frozen=True)
class FineTuning:
    """Settings of fine-tuning.

    Both learning rates follow one cosine; the head's is higher, as it starts from random weights.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step.
        optimizer: one of `timm.optim.list_optimizers()`.
        lr: learning rate of the backbone.
        head_lr: learning rate of the head.
        layer_decay: each layer's learning rate as a share of the next one's (timm's group_matcher); None: all have
            `lr`.
        weight_decay: of all parameters.
        warmup_epochs: epochs of linear warm-up.
        augmentation: of the training views, drawn anew in each epoch.
        seed: of the head's weights, the order of images, and augmentation.
    """

    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 5e-4
    head_lr: float = 5e-3
    layer_decay: float | None = None
    weight_decay: float = 0.05
    warmup_epochs: int = 1
    augmentation: str = "light"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs <= self.warmup_epochs or self.warmup_epochs < 0 or self.batch_size < 1:
            raise LGDError(
                f"epochs = {self.epochs} must be above warmup_epochs = {self.warmup_epochs}, and batch_size = "
                f"{self.batch_size} at least 1."
            )
        if min(self.lr, self.head_lr, self.weight_decay) < 0:
            raise LGDError(
                f"lr = {self.lr:g}, head_lr = {self.head_lr:g} and weight_decay = {self.weight_decay:g} must not be "
                "below 0."
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise LGDError(
                f"layer_decay = {self.layer_decay:g} is a share of a learning rate: give one above 0 and up to 1, "
                "such as 0.75."
            )
        if self.optimizer not in list_optimizers():
            raise LGDError(f"optimizer {self.optimizer!r} is unknown to timm. See timm.optim.list_optimizers().")


@dataclass(frozen=True)
class FineTuned:
    """Accuracies of a fine-tuned model in percent.

    Attributes:
        top1: share of test images whose label is the first answer.
        top5: share of test images whose label is among the first five answers.
        chance: 100 / number of classes.
        train: labelled training images.
        test: images that were scored.
        steps: optimizer steps.
        settings: those of `FineTuning`, as plain data.
        subset: which of the labels were used, in words; None: all.
        subset_fingerprint: names the subset.
    """

    top1: float
    top5: float
    chance: float
    train: int
    test: int
    steps: int
    settings: dict[str, Any]
    subset: str | None = None
    subset_fingerprint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the attributes as plain data, as metrics.json holds them."""
        return asdict(self)

    def __str__(self) -> str:
        how = f"{self.train} labels, {self.settings['epochs']} epochs"
        return f"{accuracies(self.top1, self.top5, chance=self.chance)} of {self.test} images ({how})"


class Classifier(nn.Module):
    """A copy of a network's backbone with its preprocessing and a new head.

    Args:
        network: is copied, and stays as it is.
        classes: outputs of the head.
    """

    def __init__(self, network: Backbone | Student, classes: int) -> None:
        super().__init__()
        self.preprocess = deepcopy(network.preprocess)
        self.model: Any = deepcopy(network.backbone)
        self.model.reset_classifier(classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images uint8 [B, 3, H, W]: logits [B, C]."""
        return self.model(self.preprocess(images))

    def groups(self, how: FineTuning) -> list[dict[str, Any]]:
        """Group parameters by learning rate: the backbone (layer by layer with layer decay), then the head."""
        head = {id(parameter) for parameter in self.model.get_classifier().parameters()}
        if how.layer_decay is None:
            layers = [{"params": list(self.model.parameters())}]
        else:
            layers = param_groups_layer_decay(
                self.model, layer_decay=how.layer_decay, weight_decay=how.weight_decay, weight_decay_exclude_1d=False
            )
        groups = []
        for layer in layers:
            body = [parameter for parameter in layer["params"] if id(parameter) not in head]
            groups += [{**layer, "params": body, "lr": how.lr}] if body else []
        return [*groups, {"params": list(self.model.get_classifier().parameters()), "lr": how.head_lr}]


@dataclass(frozen=True)
class _SubsetSampler(Sampler[list[Item]]):
    """An epoch plan over some positions of a split: index i of the plan is position `positions[i]`."""

    plan: EpochSampler
    positions: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[Item]]:
        for items in self.plan:
            yield [(self.positions[index], view) for index, view in items]


def fine_tune(
    network: Backbone | Student,
    *,
    shards: ShardSet,
    test: ShardDataset,
    subset: Subset | None = None,
    settings: FineTuning | None = None,
    workers: int = 0,
    device: torch.device | str = "cpu",
    max_bad: float = 0.001,
) -> FineTuned:
    """Train a copy of a network with a new head on labels, and score it.

    Args:
        network: its backbone is copied and stays as it is; a student's projector is not used.
        shards: labelled training images; their views have the size of `test`'s.
        test: labelled images that are scored.
        subset: labels that may be used; None: all of `shards`.
        settings: None: the defaults of `FineTuning`.
        workers: processes that load images; 0: this one.
        device: where it is trained.
        max_bad: share of the images that may be unreadable.

    Returns:
        The accuracies.

    Raises:
        ShardError: images have no labels, too many can't be read, or the subset is of other images.
        LGDError: there are too few images, classes have no names, or the loss is not finite.
    """
    how, device = settings or FineTuning(), torch.device(device)
    indices = tuple(range(len(shards))) if subset is None else tuple(positions(shards, subset))
    if len(indices) < 2:
        raise LGDError(f"{len(indices)} images are too few to train on, as normalisation needs a batch. Take more.")
    names = shards.class_names or test.shards.class_names
    if not names:
        raise LGDError(
            f"{shards.root} does not name its classes, so a head can't be made. Write the shards from class folders."
        )
    views = Views(
        size=test.views.size,
        augmentation=how.augmentation,
        seed=how.seed,
        count=how.epochs,
        interpolation=test.views.interpolation,
    )
    dataset = ShardDataset(shards, views=views, allow_empty=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)  # for the head's weights and dropout
        classifier = Classifier(network, len(names)).to(device).to(memory_format=torch.channels_last)
        if device.type == "cpu":
            speed_up_small_convs(classifier)
        steps = _train(classifier, dataset, indices, names, how, workers=workers, device=device, max_bad=max_bad)
    score = _score(classifier, test, names, workers=workers, device=device, max_bad=max_bad)
    return FineTuned(
        top1=score.top1,
        top5=score.top5,
        chance=score.chance,
        train=len(indices),
        test=score.samples,
        steps=steps,
        settings=asdict(how),
        subset=None if subset is None else subset.rule,
        subset_fingerprint=None if subset is None else subset.fingerprint,
    )


def _train(
    classifier: Classifier,
    dataset: ShardDataset,
    indices: tuple[int, ...],
    names: tuple[str, ...],
    how: FineTuning,
    *,
    workers: int,
    device: torch.device,
    max_bad: float,
) -> int:
    """Train for all epochs. Returns the number of steps."""
    plan = EpochSampler((len(indices),), batch_size=min(how.batch_size, len(indices)), views=how.epochs, seed=how.seed)
    optimizer = create_optimizer_v2(
        classifier.model,
        opt=how.optimizer,
        lr=how.lr,
        weight_decay=how.weight_decay,
        param_group_fn=lambda _: classifier.groups(how),
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=how.epochs,
        warmup_epochs=how.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=plan.steps_per_epoch,
    )
    assert scheduler is not None
    total = how.epochs * plan.steps_per_epoch
    bad = BadSamples(max_bad, size=len(indices))
    classifier.train()
    batches = loader(dataset, _SubsetSampler(replace(plan, stop=total), indices), workers=workers)
    for step, batch in enumerate(
        progress_bar(on_device(_labelled(batches, names, dataset, bad), device), total=total, desc="fine-tune")
    ):
        scheduler.step_update(step)
        optimizer.zero_grad(set_to_none=True)
        with explain_batch_of_one():
            loss = cross_entropy(classifier(batch.images), batch.labels)
        loss.backward()
        optimizer.step()
    if not loss.isfinite():
        raise LGDError(
            f"The loss is not finite after {total} steps. Lower lr = {how.lr:g} and head_lr = {how.head_lr:g}."
        )
    return total


def _labelled(batches: Any, names: tuple[str, ...], dataset: ShardDataset, bad: BadSamples) -> Iterator[Batch]:
    for batch in batches:
        bad.add(batch.bad)
        check_labels(batch, names, dataset)
        if batch.keys:
            yield batch


@torch.no_grad()
def _score(
    classifier: Classifier,
    test: ShardDataset,
    names: tuple[str, ...],
    *,
    workers: int,
    device: torch.device,
    max_bad: float,
) -> ZeroShot:
    classifier.eval()
    tally, bad = Tally(names, device=device), BadSamples(max_bad, size=len(test))
    batches = loader(test, SequentialSampler(range(len(test)), 256), workers=workers)
    for batch in progress(_labelled(batches, names, test, bad), "fine-tuned", len(test)):
        there = batch.to(device)
        tally.add(classifier(there.images), there.labels)
    return tally.score(bad=len(bad.reasons))
