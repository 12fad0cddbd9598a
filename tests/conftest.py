"""A small world for the tests: coloured images, their shards, a tiny open_clip teacher with random weights, a recipe.

Random teachers prove wiring only. What claims accuracy runs on real images with the real teacher (`-m slow`).
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lgd_timm.config.reader import recipe_from_dict
from lgd_timm.config.recipe import TeachRecipe
from lgd_timm.data import Views
from lgd_timm.data.index import ShardSet
from lgd_timm.data.writer import write_shards
from lgd_timm.teachers import OpenCLIP
from tests.helpers.images import CLASSES, draw_images

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # bit-equal runs, and no fight with the workers


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes of 16 images, 32 px. Read only."""
    return draw_images(tmp_path_factory.mktemp("images") / "train", per_class=16)


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """Splits train (48 images, 3 shards) and val (12 images, 1 shard). Read only: copy it to change it."""
    out = tmp_path_factory.mktemp("shards") / "colours"
    write_shards(image_folder, out, split="train", samples_per_shard=16)
    write_shards(draw_images(out.parent / "val", per_class=4, seed=1), out, split="val")
    return out


@pytest.fixture(scope="session")
def train_shards(shard_folder: Path) -> ShardSet:
    from lgd_timm.data import open_shards

    return open_shards(shard_folder, split="train")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip folder (`local-dir:`) with random weights, 32 px, 16 dimensions."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("teachers") / "tiny_clip"
    folder.mkdir()
    statistics = {
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": statistics}))
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY_CLIP)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(shard_folder: Path, tiny_clip: Path) -> dict[str, Any]:
    """A recipe with an online teacher that runs in seconds: 3 epochs of 3 steps. Read only."""
    return {
        "name": "tiny",
        "teacher": {"kind": "open_clip", "model": f"local-dir:{tiny_clip}"},
        "vocabulary": {"source": sorted(CLASSES)},
        "data": {"shards": str(shard_folder), "val_split": "val", "batch_size": 16, "max_bad": 0.0},
        "views": {"size": 32, "augmentation": "light", "count": 3},
        "student": {"model": "test_resnet"},
        "objective": {"preset": "paper"},
        "optimizer": {"name": "sgd", "lr": 0.05},
        "schedule": {"epochs": 3, "warmup_epochs": 0},
        "run": {"device": "cpu", "log_every": 1},
    }


@pytest.fixture
def recipe_dict(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    """A copy of that recipe. Change it freely."""
    return copy.deepcopy(tiny_recipe)


@pytest.fixture(scope="session")
def taught_folder(tmp_path_factory: pytest.TempPathFactory, shard_folder: Path, tiny_clip: Path) -> Path:
    """The shards with the tiny teacher's embeddings beside them: 3 light views of train, 1 plain view of val.

    Read only.
    """
    from lgd_timm.training.teach import teach_recipe

    folder = Path(shutil.copytree(shard_folder, tmp_path_factory.mktemp("taught") / "colours"))
    for split, views in (
        ("train", Views(size=32, augmentation="light", count=3)),
        ("val", Views(size=32, augmentation="none")),
    ):
        teach_recipe(TeachRecipe(OpenCLIP(f"local-dir:{tiny_clip}"), views, str(folder), split=split, device="cpu"))
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, taught_folder: Path) -> Path:
    """A finished run of test_resnet on the stored embeddings, with its `published` folder. Read only."""
    from lgd_timm.training.distill import distill

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    recipe = {
        "name": "tiny",
        "teacher": {"kind": "stored", "embeddings": str(next(taught_folder.glob("*-light-*")))},
        "vocabulary": {"source": sorted(CLASSES)},
        "data": {"shards": str(taught_folder), "val_split": "val", "batch_size": 16, "max_bad": 0.0},
        "student": {"model": "test_resnet"},
        "objective": {"preset": "paper"},
        "optimizer": {"lr": 0.05},
        "schedule": {"epochs": 3, "warmup_epochs": 0},
        "run": {"device": "cpu", "log_every": 1},
    }
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LGD_TIMM_CACHE", str(folder.parent / "cache"))
        distill(recipe_from_dict(recipe), out=folder)
    return folder


@pytest.fixture(scope="session")
def published_folder(run_folder: Path) -> Path:
    """What that run published. Read only: copy it to change it."""
    return run_folder / "published"


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory, run_folder: Path) -> Path:
    """The same, saved again with the two files that open_clip loads. Read only: copy it to change it."""
    from lgd_timm.training.distill import save_run

    out = tmp_path_factory.mktemp("open_clip") / "tiny"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LGD_TIMM_CACHE", str(run_folder.parent / "cache"))
        return save_run(run_folder, out=out, open_clip=True)
