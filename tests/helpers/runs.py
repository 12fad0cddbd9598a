"""Short distillations, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lgd_timm.config.reader import recipe_from_dict
from lgd_timm.data import open_shards
from lgd_timm.data.tar import IndexedTar
from lgd_timm.training.distill import distill
from lgd_timm.utils.checkpoint import all_checkpoints

Dict = dict[str, Any]


def merge(data: Mapping[str, Any], changes: Mapping[str, Any]) -> Dict:
    """`data` with each part of `changes` laid over its part."""
    return {
        **data,
        **{key: {**data.get(key, {}), **value} if isinstance(value, dict) else value for key, value in changes.items()},
    }


def run(recipe: Mapping[str, Any], out: Path, *, resume: bool = False, **changes: Any) -> Path:
    return distill(recipe_from_dict(merge(recipe, changes)), out=out, resume=resume)


def losses(out: Path) -> list[float]:
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def last_checkpoint(out: Path) -> dict[str, Tensor]:
    """Every tensor of the last checkpoint, by file and key."""
    path = all_checkpoints(out / "checkpoints")[-1]
    return {
        f"{file.stem}/{key}": tensor for file in path.glob("*.safetensors") for key, tensor in load_file(file).items()
    }


def assert_bit_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def damage_first_image(shards: Path) -> str:
    """Overwrite one image of the training split with zeros; returns how it is named."""
    filename = open_shards(shards, split="train").filenames[0]
    tar = IndexedTar(shards / filename)
    key, fields = next(iter(tar.samples.items()))
    offset, size = next(fields[field] for field in fields if field in ("jpg", "png"))
    content = bytearray((shards / filename).read_bytes())
    content[offset : offset + size] = bytes(size)
    (shards / filename).write_bytes(content)
    return f"{filename}/{key}"
