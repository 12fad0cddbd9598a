"""One run of a table: distil, evaluate, note. What is noted already for the same recipe is not run again."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lgd_timm.config.reader import read_recipe
from lgd_timm.config.recipe import (
    DataRecipe,
    MachineRecipe,
    OptimizerRecipe,
    Recipe,
    ScheduleRecipe,
    StudentRecipe,
)
from lgd_timm.training.distill import distill
from lgd_timm.utils.files import fingerprint
from lgd_timm.utils.schema import MACHINE, marked, to_plain

from ..settings import cores
from .measures import measure


def recipe_of(base: Path, overrides: Mapping[str, Any], seed: int) -> Recipe:
    """The base recipe with a row's changes."""
    return read_recipe(base, overrides={**overrides, "run.seed": seed})


# Folder of embeddings -> its name in notes of before: the fingerprint was of computed numbers once.
RENAMED = {
    "conse_efficientnet_lite0-none-s0-k1-f58c2abd36d1": "conse_efficientnet_lite0-none-s0-k1-8bb10fbd36d1",
}

# Objective -> how often its default settings have changed since its first runs: notes of other settings do not count
REVISIONS = {"refined": 1}

_DEFAULTS = {
    "student": StudentRecipe(),
    "data": DataRecipe(),
    "optimizer": OptimizerRecipe(),
    "schedule": ScheduleRecipe(),
    "run": MachineRecipe(),
}


def identity(recipe: Recipe) -> str:
    """Names what decides a run's numbers: the machine's part in it is left out, and what is as it is by default.

    So a field that recipes get later leaves the names of earlier runs as they were; of an objective's defaults,
    `REVISIONS` tells the present ones from those of before.
    """
    facts = {key: value for key, value in recipe.to_dict().items() if key != "name"}
    for section, default in _DEFAULTS.items():
        usual, machine = to_plain(default), {*marked(type(default), MACHINE)}
        if section == "data":
            machine.add("shards")  # where the images lie, too
        facts[section] = {
            key: value for key, value in facts[section].items() if key not in machine and value != usual[key]
        }
    teacher = facts.pop("teacher")
    # Stored embeddings lie in a folder that is named after teacher and views.
    taught = (
        {"embeddings": embeddings_name(teacher["embeddings"]), "target": teacher["target"]}
        if teacher["kind"] == "stored"
        else teacher
    )
    revision = REVISIONS.get(facts["objective"].get("kind", ""))
    return fingerprint(facts, taught) if revision is None else fingerprint(facts, taught, revision)


def embeddings_name(folder: str) -> str:
    """The name of a folder of embeddings, that of the first notes where it has been renamed since."""
    name = Path(folder).name
    return RENAMED.get(name, name)


def noted(notes: Path) -> list[dict[str, Any]]:
    """What a table's file holds, a run a line."""
    return [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()] if notes.is_file() else []


def run_once(row: str, *, recipe: Recipe, notes: Path, output: Path, elsewhere: Sequence[Path] = ()) -> dict[str, Any]:
    """Distil and evaluate, unless it is noted; returns the note, which is appended to the file `notes`."""
    name = identity(recipe)
    for note in noted(notes):
        if note["identity"] == name:
            return note
    out = output / f"{re.sub(r'[^a-z0-9]+', '_', row.lower()).strip('_')}-s{recipe.machine.seed}-{name[:6]}"
    started = time.perf_counter()
    published = distill(recipe, out=out, resume=True)  # a run that was stopped goes on at its last checkpoint
    trained = time.perf_counter() - started
    note = {
        "row": row,
        "seed": recipe.machine.seed,
        "identity": name,
        **measure(published, recipe, elsewhere=elsewhere),
        "minutes": round(trained / 60, 2),  # since it was started or resumed last
        "cores": cores(),
        "torch": version("torch"),
        "date": date.today().isoformat(),
    }
    notes.parent.mkdir(parents=True, exist_ok=True)
    with notes.open("a", encoding="utf-8") as file:
        file.write(json.dumps(note) + "\n")
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return note
