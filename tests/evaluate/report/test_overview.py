"""What is said of groups: the table, the message, curves over seeds, commands that can be run."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from lgd_timm.cli.main import build_parser
from lgd_timm.evaluate.report import overview
from lgd_timm.evaluate.report.collect import Group, group_trials, read_trials
from tests.helpers.reported import Make


def groups_of(*paths: Path) -> list[Group]:
    return group_trials(read_trials(paths)[0])


def cells(groups: list[Group]) -> list[dict[str, str]]:
    table = overview.headline(groups).tables[0]
    return [dict(zip(table.head, row, strict=True)) for row in table.rows]


def test_the_table_has_what_was_measured_and_dashes_else(make: Make) -> None:
    scores = {
        "knn": {"top1": 71.25},
        "linear_probe": {"top1": 80.0},
        "training": {"images": 50000, "epochs": 8, "seconds": 150.0},
    }
    groups = groups_of(make("a", top1=40.0, metrics=scores), make("b", seed=1, top1=43.0))
    (row,) = cells(groups)
    assert {
        key: row[key] for key in ("n", "Zero-shot", "k-NN", "Linear probe 100 %", "Linear probe 10 %", "ECE", "Chance")
    } == {
        "n": "2",
        "Zero-shot": "41.5\u00a0±\u00a02.1",
        "k-NN": "71.2",
        "Linear probe 100 %": "80.0",
        "Linear probe 10 %": overview.NONE,
        "ECE": overview.NONE,
        "Chance": "33.3",
    }


def test_the_message_names_the_best_beside_teacher_and_chance(make: Make) -> None:
    told = {"teacher_zero_shot": {"top1": 67.0}}
    reference = {"objective": {"preset": "reference"}}
    groups = groups_of(make("a", top1=40.0, metrics=told), make("b", top1=50.0, metrics=told, **reference))
    assert (
        overview.lead(groups)
        == "Best of 2 settings: reference, 50.0 % zero-shot top-1 over 1 run (its teacher 67.0 %, chance 33.3 %)."
    )
    assert "as one of them is a single run" in overview.bars(groups).sentence


@pytest.mark.parametrize(("gap", "verdict"), [(1.0, "less than"), (9.0, "more than")])
def test_a_gap_is_judged_by_the_spread(make: Make, gap: float, verdict: str) -> None:
    reference = {"objective": {"preset": "reference"}}
    paths = [make(f"p{i}", seed=i, top1=40.0 + 2 * i) for i in range(2)]
    paths += [make(f"r{i}", seed=i, top1=40.0 + gap + 2 * i, **reference) for i in range(2)]
    sentence = overview.bars(groups_of(*paths)).sentence
    assert sentence.startswith(
        f"Zero-shot, reference is {gap:.1f} points above paper: {verdict} their standard deviations together (2.8)"
    )


def test_nothing_measured_is_said(make: Make) -> None:
    groups = groups_of(make("a", metrics={"zero_shot": None}))
    assert overview.lead(groups) == "1 setting, none with a zero-shot score."
    assert overview.bars(groups).notes == ("No accuracy was measured: lgd-timm evaluate does it, on labelled images.",)


def test_several_runs_of_one_seed_are_no_spread_over_seeds(make: Make) -> None:
    section = overview.headline(groups_of(make("a", seed=3), make("b", seed=3)))
    assert section.notes == (
        "test_resnet, lgd (paper): several runs have seed 3, so their spread is not one over seeds.",
    )


def test_curves_are_means_over_seeds_at_common_steps(make: Make) -> None:
    a, b = make("a"), make("b", seed=1)
    (a / "log.jsonl").write_text("".join(json.dumps({"step": s, "loss": 4.0 - s}) + "\n" for s in (1, 2, 3)))
    (b / "log.jsonl").write_text("".join(json.dumps({"step": s, "loss": 6.0 - s}) + "\n" for s in (2, 4)))
    line = overview._loss_line(groups_of(a, b)[0], "red")
    assert line is not None
    assert line.deviation is not None
    assert line.x.tolist() == [2, 3]
    np.testing.assert_allclose(line.mean, [3.0, 2.0])  # 2 and 4, then 1 and 3: between b's steps lies a straight line
    np.testing.assert_allclose(line.deviation, [np.sqrt(2)] * 2)
    assert line.runs == 2


def test_scores_end_with_what_was_published(make: Make) -> None:
    folder = make("a", top1=66.0)
    group = groups_of(folder)[0]
    line = overview._score_line(group, "red")
    assert line is not None
    assert line.x.tolist() == [1, 2, 3]
    assert (line.mean[-1], line.deviation) == (66.0, None)
    assert line.chance == pytest.approx(100 / 3)


def test_a_published_folder_has_no_curve_and_it_is_said(published_folder: Path, run_folder: Path) -> None:
    section = overview.curves(groups_of(published_folder))
    assert section.blocks == ()
    assert section.notes == (f"No log.jsonl, so no curve: {published_folder}.",)
    assert [len(block.pictures) for block in overview.curves(groups_of(run_folder)).blocks] == [2]


def test_commands_are_those_of_the_command_line(make: Make) -> None:
    """Every command on the page parses, options and all."""
    scores = {key: {"top1": 50.0, "protocol": "ridge"} for key in ("linear_probe", "linear_probe_10", "linear_probe_1")}
    groups = groups_of(
        make("with space", metrics={**scores, "knn": {"top1": 50.0, "k": 10}, "calibration": {"ece": 3.0}})
    )
    sections = [
        overview.headline(groups),
        overview.bars(groups),
        overview.curves(groups),
        overview.made(groups, command="lgd-timm list"),
    ]
    commands = {command for section in sections for _, command in section.commands}
    assert {words[2] for words in map(str.split, commands) if words[1] == "evaluate"} == {
        "zero-shot",
        "knn",
        "linear-probe",
        "calibration",
    }
    assert sum("--fraction 0.1 " in command and "--protocol ridge" in command for command in commands) == 1
    assert sum("--k 10" in command for command in commands) == 1
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "lgd-timm"
        _, rest = build_parser().parse_known_args(words)
        assert rest == []


def test_how_it_was_made_says_hardware_versions_and_differences(make: Make) -> None:
    groups = groups_of(make("a"), make("b", optimizer={"lr": 0.01}))
    section = overview.made(groups, command="lgd-timm report a b")
    differing, runs = section.tables
    assert differing.head == ["Setting", "optimizer.lr"]
    assert sorted(row[1] for row in differing.rows) == ["0.01", "0.05"]
    assert all(row[5] == "cpu" and "torch" in row[7] for row in runs.rows)
    assert ("This page", "lgd-timm report a b") in section.commands
    assert [text for _, text in section.texts] == [group.recipe.to_yaml() for group in groups]


def test_an_unfinished_run_is_shown_with_its_curve(make: Make) -> None:
    folder = make("a")
    shutil.rmtree(folder / "published")
    groups = groups_of(folder)
    scores = [row["zero_shot_top1"] for row in groups[0].trials[0].log if "zero_shot_top1" in row]
    assert cells(groups)[0]["Zero-shot"] == f"{scores[-1]:.1f}"
    assert cells(groups)[0]["Epochs"] == "2"
    assert overview.curves(groups).blocks
    assert overview.bars(groups).blocks
    (folder / "log.jsonl").write_text("")
    assert cells(groups_of(folder))[0]["Zero-shot"] == overview.NONE
