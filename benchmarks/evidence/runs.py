"""One run of a table: distil, evaluate, note. What is noted already for the same recipe is not run again."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lgd_timm.distill import distill
from lgd_timm.files import fingerprint
from lgd_timm.recipe import Recipe, read_recipe

from ..settings import cores
from .measures import measure


def recipe_of(base: Path, overrides: Mapping[str, Any], seed: int) -> Recipe:
    """The base recipe with a row's changes."""
    return read_recipe(base, overrides={**overrides, "run.seed": seed})


def identity(recipe: Recipe) -> str:
    """Names what decides a run's numbers; the machine's part in it is left out."""
    facts = recipe.to_dict()
    for field in ("device", "compile", "photometry", "checkpoint_every", "evaluate_every", "log_every"):
        del facts["run"][field]
    for field in ("shards", "workers", "in_memory"):
        del facts["data"][field]
    known = {key: value for key, value in facts.items() if key not in ("name", "teacher")}
    return fingerprint(known | {"target": "image"} if facts["teacher"].get("target") == "image" else known)


def noted(notes: Path) -> list[dict[str, Any]]:
    """What a table's file holds, a run a line."""
    return [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()] if notes.is_file() else []


def run_once(row: str, *, recipe: Recipe, notes: Path, output: Path) -> dict[str, Any]:
    """Distil and evaluate, unless it is noted; returns the note, which is appended to the file `notes`."""
    name = identity(recipe)
    for note in noted(notes):
        if note["identity"] == name:
            return note
    out = output / f"{re.sub(r'[^a-z0-9]+', '_', row.lower()).strip('_')}-s{recipe.run.seed}-{name[:6]}"
    shutil.rmtree(out, ignore_errors=True)  # what is left of a run that was stopped
    started = time.perf_counter()
    published = distill(recipe, out=out)
    trained = time.perf_counter() - started
    note = {
        "row": row,
        "seed": recipe.run.seed,
        "identity": name,
        **measure(published, recipe),
        "minutes": round(trained / 60, 2),
        "cores": cores(),
        "torch": version("torch"),
        "date": date.today().isoformat(),
    }
    notes.parent.mkdir(parents=True, exist_ok=True)
    with notes.open("a", encoding="utf-8") as file:
        file.write(json.dumps(note) + "\n")
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return note
