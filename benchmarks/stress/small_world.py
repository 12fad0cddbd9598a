"""Prepare what long trials work on: 1,000 real images as files, a random teacher, recipes to teach and to distil.

Wiring, not accuracy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from lgd_timm.data import Views, open_shards
from lgd_timm.data.dataset import ShardDataset

SOURCE = Path("recipes/cifar10_small")
CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def prepare(
    home: Path, *, epochs: int, run: Mapping[str, Any], data: Mapping[str, Any] | None = None, taught: str | None = None
) -> None:
    """Leaves home/{images,clip,teach.yaml,distill.yaml}: for shards in home/shards, taught into home/taught.

    `run` and `data` are fields of the recipe to distil; `taught` is where it finds the embeddings, if not there.
    """
    import open_clip

    dataset = ShardDataset(open_shards(SOURCE, split="val"), views=Views(size=32, augmentation="none"))
    (home / "images").mkdir()
    for position in range(len(dataset)):
        batch = dataset[(position, 0)]
        Image.fromarray(batch.images[0].permute(1, 2, 0).numpy()).save(
            home / "images" / f"{batch.keys[0].replace('/', '_')}.png"
        )
    (home / "clip").mkdir()
    statistics = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (home / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": statistics}))
    torch.manual_seed(0)
    weights = {key: value.contiguous() for key, value in open_clip.CLIP(**CLIP).state_dict().items()}
    save_file(weights, home / "clip" / "open_clip_model.safetensors")
    teacher = {"kind": "open_clip", "model": f"local-dir:{home / 'clip'}"}
    views = {"size": 32, "augmentation": "light", "count": 2}
    (home / "teach.yaml").write_text(
        yaml.safe_dump({"teacher": teacher, "views": views, "shards": str(home / "shards"), "device": "cpu"})
    )
    recipe = {
        "name": "trial",
        "teacher": {"kind": "stored", "embeddings": taught or str(home / "taught")},
        "vocabulary": {"source": ["cat", "dog", "ship"]},
        "data": {"shards": str(home / "shards"), "batch_size": 32, **(data or {})},
        "student": {"model": "test_resnet", "drop_rate": 0.1},
        "objective": {"preset": "paper"},
        "optimizer": {"lr": 0.05},
        "schedule": {"epochs": epochs, "warmup_epochs": 1},
        "run": {"device": "cpu", "ema_decay": 0.9, **run},
    }
    (home / "distill.yaml").write_text(yaml.safe_dump(recipe))
