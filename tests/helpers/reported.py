"""Runs to report on: copies of the one that the suite trains, with another seed, preset or score."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lgd_timm.config.reader import read_recipe, recipe_from_dict
from lgd_timm.publish.folder import load
from lgd_timm.publish.lgd_safetensors import write_lgd

NASTY = ("<script>alert(1)</script>", "a \"b\" & 'c'", "$x^$ {{ 7 * 7 }} y")
Make = Callable[..., Path]


@contextmanager
def own_cache(factory: pytest.TempPathFactory) -> Iterator[None]:
    """For what is made once: the suite's own fixture gives each test its cache, and comes later."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LGD_TIMM_CACHE", str(factory.mktemp("cache")))
        yield


def copy_run(
    run: Path,
    folder: Path,
    name: str,
    *,
    top1: float | None = None,
    metrics: dict[str, Any] | None = None,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """A run with another seed, score, metrics, or parts of its recipe."""
    out = Path(shutil.copytree(run, folder / name))
    for path in (out / "recipe.yaml", out / "published" / "recipe.yaml"):
        data = {**read_recipe(path).to_dict(), **changes}
        data["run"]["seed"] = seed
        path.write_text(recipe_from_dict(data).to_yaml(), encoding="utf-8")
    path = out / "published" / "metrics.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    if top1 is not None:
        facts["zero_shot"]["top1"] = top1
    path.write_text(json.dumps({**facts, **(metrics or {})}), encoding="utf-8")
    return out


def nasty_run(run: Path, folder: Path) -> Path:
    out = copy_run(run, folder, "nasty")
    published = load(out / "published")
    banks = replace(published.banks, names=NASTY, seen=torch.tensor([True, True, False]))
    write_lgd(out / "published" / "lgd.safetensors", student=published.student, banks=banks, dtype=torch.float32)
    config = json.loads((out / "published" / "config.json").read_text(encoding="utf-8"))
    (out / "published" / "config.json").write_text(json.dumps({**config, "label_names": NASTY}), encoding="utf-8")
    metrics = json.loads((out / "published" / "metrics.json").read_text(encoding="utf-8"))
    del metrics["sha256"]  # of the files before they were altered
    (out / "published" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    data = published.recipe.to_dict()
    data["vocabulary"]["source"] = data["data"]["val_vocabulary"] = list(NASTY)
    (out / "published" / "recipe.yaml").write_text(recipe_from_dict(data).to_yaml(), encoding="utf-8")
    return out
