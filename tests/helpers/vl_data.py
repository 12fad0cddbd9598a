"""Scenes of two coloured rectangles as JSON lines, and recipes that learn them in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from lgd_timm.utils.schema import build
from lgd_timm.vision_language.recipe import VLRecipe
from tests.helpers.runs import merge

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
SIZE = 32  # pixels of a side; two squares stand beside each other

Dict = dict[str, Any]


def write_scenes(folder: Path, *, count: int = 12, seed: int = 0) -> Path:
    """`folder/scenes.jsonl` with captions, questions, boxes and tags, and its images."""
    folder.mkdir(parents=True)
    draw, lines = np.random.default_rng(seed), []
    for number in range(count):
        left, right = (list(COLOURS)[draw.integers(3)] for _ in range(2))
        pixels = np.concatenate([_square(draw, left), _square(draw, right)], 1)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        captions = [f"a {left} square beside a {right} square", f"{left} at the left and {right} at the right"]
        side, colour = (("left", left), ("right", right))[draw.integers(2)]
        lines.append(
            {
                "image": f"{number}.png",
                "captions": captions,
                "question": f"what is at the {side} ?",
                "answers": {colour: 1.0},
                "boxes": [[0, 0, SIZE, SIZE], [SIZE, 0, 2 * SIZE, SIZE]],
                "tags": ["square"],
            }
        )
    path = folder / "scenes.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _square(draw: np.random.Generator, colour: str) -> Any:
    noise = draw.integers(-20, 20, (SIZE, SIZE, 3))
    return (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)


def tiny(scenes: Path, **changes: Any) -> Dict:
    """A recipe of 2 epochs of 3 steps of 4 samples. A part with a `kind` is replaced, others are changed."""
    source = {"kind": "json_lines", "path": str(scenes)}
    recipe: Dict = {
        "name": "tiny",
        "task": {"kind": "captions", "predict": "next", "words": 8},
        "data": {"train": source, "batch_size": 4, "variants": 2},
        "text": {"tokenizer": "words", "length": 12, "tags": 3},
        "regions": {"kind": "data", "count": 2},
        "backbone": {"model": "test_efficientnet", "pretrained": False, "level": 2, "image_size": 64},
        "model": {"layers": 2, "width": 24, "heads": 2, "inner": 48},
        "optimizer": {"lr": 2e-3},
        "schedule": {"epochs": 2},
        "run": {"device": "cpu", "workers": 0, "log_every": 1},
    }
    whole = {part: values for part, values in changes.items() if isinstance(values, dict) and "kind" in values}
    return {**merge(recipe, changes), **whole}


def recipe(scenes: Path, **changes: Any) -> VLRecipe:
    made: VLRecipe = build(VLRecipe, tiny(scenes, **changes), where="")
    return made


def raise_a_weight(file: Path) -> None:
    """Make one number of a model's last matrix larger than float16's largest, 65504."""
    state = load_file(file)
    next(tensor for key, tensor in sorted(state.items(), reverse=True) if tensor.ndim == 2).view(-1)[0] = 1e5
    save_file(state, file, {"format": "pt"})
