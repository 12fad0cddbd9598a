"""Fine-tuning: colours are learned, the model that was given stays as it was, the same seed gives the same numbers."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2

from lgd_timm.data import Views, open_shards
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.subset import keys_by_class
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import LGDError, RecipeError, ShardError
from lgd_timm.evaluate import FeatureSplits, FineTuned, FineTuning, Model, draw_labels, find_model, fine_tune
from lgd_timm.evaluate.fine_tune import Classifier
from lgd_timm.publish.folder import load

QUICK = FineTuning(epochs=4, batch_size=12, lr=2e-3, head_lr=1e-2)


@pytest.fixture
def model() -> Model:
    return find_model("test_resnet", pretrained=False, image_size=32)


def tuned(network: Any, folder: Path, settings: FineTuning = QUICK, **options: Any) -> FineTuned:
    test = ShardDataset(open_shards(folder, split="val"), views=Views(size=32, augmentation="none"), allow_empty=True)
    return fine_tune(network, shards=open_shards(folder, split="train"), test=test, settings=settings, **options)


def test_colours_are_learned_and_the_given_model_is_left_alone(model: Model, shard_folder: Path) -> None:
    before = {key: tensor.clone() for key, tensor in model.network.state_dict().items()}
    random = torch.get_rng_state()
    score = tuned(model.network, shard_folder)
    assert score.top1 > 60  # chance is a third
    assert (score.chance, score.train, score.test, score.steps) == (pytest.approx(100 / 3), 48, 12, 16)
    assert score.settings["epochs"] == 4
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_seed_decides(model: Model, shard_folder: Path) -> None:
    short = replace(QUICK, epochs=2)
    assert tuned(model.network, shard_folder, short) == tuned(model.network, shard_folder, short)


def test_each_epoch_sees_other_views_of_the_subset_alone(
    model: Model, shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = keys_by_class(open_shards(shard_folder, split="train"))
    keys = [key for keys in classes.values() for key in keys]
    subset = draw_labels(keys, torch.tensor([label for label, keys in classes.items() for _ in keys]), per_class=2)
    shown: list[tuple[tuple[str, ...], torch.Tensor]] = []
    original = ShardDataset.__getitems__

    def spying(self: ShardDataset, items: Any) -> Any:
        batch = original(self, items)
        if self.shards.split == "train":
            shown.append((tuple(batch.keys), batch.images))
        return batch

    monkeypatch.setattr(ShardDataset, "__getitems__", spying)
    score = tuned(model.network, shard_folder, subset=subset)
    assert (score.train, score.subset, score.subset_fingerprint) == (6, "2 of each class, seed 0", subset.fingerprint)
    assert len(shown) == 4  # epochs of one batch, which is no larger than the subset
    assert all(set(keys) == subset.keys for keys, _ in shown)
    views = [images[keys.index(min(keys))] for keys, images in shown]
    assert len({view.numpy().tobytes() for view in views}) == 4


def test_backbone_and_head_learn_at_their_own_rates(model: Model) -> None:
    classifier = Classifier(model.network, 3)
    body, head = classifier.groups(FineTuning(lr=0.1, head_lr=1.0))
    assert (body["lr"], head["lr"]) == (0.1, 1.0)
    assert [tuple(parameter.shape) for parameter in head["params"]] == [(3, classifier.model.num_features), (3,)]
    assert len(body["params"]) + 2 == len(list(classifier.model.parameters()))


@pytest.mark.parametrize(
    ("name", "stem", "first", "last"),
    [
        ("lgd_resnet18", "conv1.weight", "layer1.0.conv1.weight", "layer4.1.conv1.weight"),
        ("lgd_mobilenetv2", "conv_stem.weight", "blocks.0.0.conv_dw.weight", "conv_head.weight"),
        ("lgd_efficientnet_b0", "conv_stem.weight", "blocks.0.0.conv_dw.weight", "conv_head.weight"),
    ],
)
def test_with_layer_decay_each_layer_learns_at_a_share_of_the_next_ones_rate(
    name: str, stem: str, first: str, last: str
) -> None:
    classifier = Classifier(find_model(name, pretrained=False).network, 3)
    names = {id(parameter): key for key, parameter in classifier.model.named_parameters()}
    groups = classifier.groups(FineTuning(lr=0.1, head_lr=1.0, layer_decay=0.5))
    share = {
        names[id(parameter)]: group.get("lr_scale", 1) * group["lr"]
        for group in groups
        for parameter in group["params"]
    }
    assert share.keys() == set(names.values())  # each parameter once
    assert sum(len(group["params"]) for group in groups) == len(names)
    head = [f"{classifier.model.pretrained_cfg['classifier']}.{part}" for part in ("weight", "bias")]
    assert [share[key] for key in head] == [1.0, 1.0]
    assert share[last] == pytest.approx(0.1 * 0.5)
    assert share[first] == pytest.approx(2 * share[stem])
    rates = sorted(set(share.values()) - {1.0})
    assert [high / low for low, high in pairwise(rates)] == pytest.approx([2.0] * (len(rates) - 1))


def test_the_optimizer_keeps_the_layers_shares(
    model: Model, shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []

    def spying(*arguments: Any, **options: Any) -> torch.optim.Optimizer:
        made.append(create_optimizer_v2(*arguments, **options))
        return made[0]

    monkeypatch.setattr(import_module("lgd_timm.evaluate.fine_tune"), "create_optimizer_v2", spying)
    tuned(model.network, shard_folder, replace(QUICK, layer_decay=0.5))
    *layers, head = made[0].param_groups  # as the schedule left them
    assert [layer["lr"] / head["lr"] for layer in layers] == pytest.approx(
        [layer["lr_scale"] * 2e-3 / 1e-2 for layer in layers]
    )
    assert len({layer["lr_scale"] for layer in layers}) > 2


def test_a_student_can_be_tuned_too(published_folder: Path, shard_folder: Path) -> None:
    score = tuned(load(published_folder).student, shard_folder, replace(QUICK, optimizer="sgd", epochs=2))
    assert (score.test, score.settings["optimizer"]) == (12, "sgd")


def test_refusals(model: Model, shard_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"epochs": 1}, r"epochs = 1 must be above warmup_epochs = 1"),
        ({"batch_size": 0}, "batch_size = 0 at least 1"),
        ({"layer_decay": 0.0}, "layer_decay = 0 is a share"),
        ({"lr": -1.0}, "lr = -1, .* must not be below 0"),
        ({"optimizer": "sdg"}, "optimizer 'sdg' is unknown to timm"),
    ):
        with pytest.raises(LGDError, match=message):
            FineTuning(**options)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="augmentation 'heavy' is unknown"):
        tuned(model.network, shard_folder, replace(QUICK, augmentation="heavy"))
    with pytest.raises(LGDError, match="The loss is not finite"):
        tuned(model.network, shard_folder, replace(QUICK, optimizer="sgd", lr=1e30, head_lr=1e30, epochs=2))
    write_shards(image_folder, tmp_path / "bare", split="train", labels=False)
    write_shards(image_folder, tmp_path / "bare", split="val", labels=False)
    splits = FeatureSplits(model, tmp_path / "bare", device="cpu")
    with pytest.raises((LGDError, ShardError), match="does not name its classes"):
        fine_tune(
            model.network,
            shards=open_shards(tmp_path / "bare", split="train"),
            test=splits.dataset("val"),
            settings=QUICK,
        )
