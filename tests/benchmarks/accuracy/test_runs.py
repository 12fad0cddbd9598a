"""The evidence's runner: every row is a recipe, each run is made once, notes become means and spreads."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy.report import markdown, spread
from benchmarks.accuracy.runs import REVISIONS, identity, recipe_of
from benchmarks.accuracy.tables import CIFAR10, HUNDRED, OTHER, TABLES, objective_settings
from lgd_timm.data.vocabulary import load_vocabulary
from lgd_timm.errors import RecipeError
from lgd_timm.objectives import objective_config

BASE = Path("recipes/evidence_cifar10.yaml")
SMALL = {  # the embedded images and embeddings, of which every clone has a copy
    "teacher.embeddings": "recipes/cifar10_small/conse_efficientnet_lite0-light-s0-k2-8bb10f177155",
    "data.shards": "recipes/cifar10_small",
}


@pytest.fixture(autouse=True)
def _logs_again() -> Iterator[None]:
    """The command silences other libraries' logs, for as long as its process lives."""
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_a_recipe_of_its_own(table: str) -> None:
    recipes = {row: recipe_of(BASE, {**SMALL, **overrides}, 0) for row, overrides in TABLES[table].items()}
    for recipe in recipes.values():
        objective_config(recipe.objective)
    assert len({identity(recipe) for recipe in recipes.values()}) == len(recipes)


def test_the_names_of_the_text_control_are_what_they_are_said_to_be() -> None:
    hundred = load_vocabulary(HUNDRED).names
    assert len(hundred) == 100
    assert set(CIFAR10) < set(hundred)
    assert len(OTHER) == len(CIFAR10)
    assert not set(OTHER) & set(CIFAR10)


def test_identity_is_of_what_decides_the_numbers() -> None:
    def name(seed: int = 0, **overrides: Any) -> str:
        return identity(recipe_of(BASE, {**SMALL, **overrides}, seed))

    assert name() == name(**{"run.log_every": 5, "name": "other", "data.in_memory": False, "student.drop_rate": 0.0})
    assert name() != name(**{"teacher.embeddings": "elsewhere/other_teacher"})
    assert name() != name(**{"teacher.target": "image"})
    assert (
        len(
            {
                name(),
                name(seed=1),
                name(**{"optimizer.lr": 0.2}),
                name(**{"objective.alpha": 0.1}),
                name(**{"views": {"count": 1}}),
            }
        )
        == 5
    )


REFINED = {
    "names_weight": 4.0,
    "student_temperature": 0.1,
    "teacher_temperature": 0.1,
    "refine": True,
    "ridge": 0.03,
    "sharpen": 4.0,
    "floor": 0.1,
    "balance": 0.0,
    "feature_weight": 10.0,
    "contrast_weight": 1.0,
    "contrast_temperature": 0.07,
    "whiten": 0.5,
    "shrink": 0.1,
}
# Objective and revision -> preset -> its settings as of then
SETTINGS = {("refined", 1): {None: REFINED, "balanced": {**REFINED, "balance": 1.0}}}


def test_a_change_of_an_objectives_defaults_is_a_new_revision() -> None:
    """Notes of other settings must not pass for runs of today's: raise REVISIONS, and pin the new settings here."""
    for kind, revision in REVISIONS.items():
        for preset, settings in SETTINGS[kind, revision].items():
            written = {"kind": kind} if preset is None else {"kind": kind, "preset": preset}
            assert asdict(objective_config(written)) == settings


def test_each_run_is_made_once_and_the_table_has_mean_and_spread(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    recipe["schedule"] = {"epochs": 1, "warmup_epochs": 0}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(recipe))
    rows = ["--rows", "lgd, paper", "seed", "--seeds", "0", "1"]
    where = [
        "--recipe",
        str(tmp_path / "base.yaml"),
        "--notes",
        str(tmp_path / "notes.jsonl"),
        "--output",
        str(tmp_path / "output"),
    ]
    monkeypatch.setattr("sys.argv", ["evidence", "rivals", *rows, *where])
    assert command.main() == 0
    table = capsys.readouterr().out
    notes = (tmp_path / "notes.jsonl").read_text()
    assert [(note["row"], note["seed"]) for note in map(json.loads, notes.splitlines())] == [
        ("lgd, paper", 0),
        ("seed", 0),
        ("lgd, paper", 1),
        ("seed", 1),
    ]
    assert table.count("±") == 6
    assert command.main() == 0
    assert (tmp_path / "notes.jsonl").read_text() == notes
    assert capsys.readouterr().out == table
    monkeypatch.setattr("sys.argv", ["evidence", "rivals", "--show", *rows, "--optimizer.lr", "0.3", *where])
    assert command.main() == 0
    assert "| seed |" not in capsys.readouterr().out, "runs of another footing are not shown"


def test_spread_is_the_sample_deviation_and_needs_two() -> None:
    assert spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert spread([1.0]) == "1.00"
    assert spread([]) == "-"
    assert markdown([], rows=["a"]).count("\n") == 1


def test_a_row_that_is_not_in_the_table_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evidence", "rivals", "--show", "--rows", "seed", "clip-kd"])
    assert command.main() == 1
    assert "'clip-kd'" in (error := capsys.readouterr().err)
    assert "'clip_kd'" in error


def test_settings_of_an_objective_are_read_and_nothing_else() -> None:
    assert objective_settings(["--objective.ridge", "1", "--objective.refine=false"]) == {"ridge": 1, "refine": False}
    assert objective_settings([]) == {}
    for field in ("objective.kind", "optimizer.lr"):
        with pytest.raises(RecipeError, match=field):
            objective_settings([f"--{field}", "1"])
