"""Runs read from folders, and groups of those that differ only in their seed."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from lgd_timm.errors import LGDError, RecipeError, WeightsError
from lgd_timm.evaluate.report.collect import Spread, group_trials, read_trial, read_trials
from tests.helpers.reported import Make

# -------------------------------------------------------------------------------------------------------------- reading


def test_a_run_has_its_published_metrics_and_its_log(run_folder: Path) -> None:
    trial = read_trial(run_folder)
    metrics = json.loads((run_folder / "published" / "metrics.json").read_text())
    assert trial.published == run_folder / "published"
    assert trial.number("zero_shot", "top1") == metrics["zero_shot"]["top1"]
    assert trial.text("training", "device") == "cpu"
    assert [row["step"] for row in trial.log if "loss" in row] == list(range(1, 10))
    assert not trial.untrusted


def test_a_published_folder_has_no_log_and_may_not_name_paths_elsewhere(published_folder: Path) -> None:
    trial = read_trial(published_folder)
    assert (trial.published, trial.log, trial.untrusted) == (published_folder, [], True)
    with pytest.raises(RecipeError, match="stays in the working directory"):
        trial.shards()
    assert read_trial(published_folder.parent).shards() == trial.recipe.data.shards  # a run is the user's own


@pytest.mark.parametrize("value", ["x", None, True, float("nan"), {"x": 1}])
def test_what_is_no_number_is_refused(make: Make, value: Any) -> None:
    with pytest.raises(WeightsError, match=r"knn\.top1"):
        read_trial(make("odd", metrics={"knn": {"top1": value}}))


def test_what_is_not_there_is_none(make: Make) -> None:
    assert read_trial(make("even", metrics={"knn": {"top1": 58.0}})).number("absent", "top1") is None


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_metrics_that_can_not_be_read_are_an_error(make: Make, text: str) -> None:
    folder = make("broken")
    (folder / "published" / "metrics.json").write_text(text)
    with pytest.raises(WeightsError, match=r"metrics\.json (can't be read|holds list)"):
        read_trial(folder)


def test_what_can_not_be_read_is_named_and_the_rest_is_shown(make: Make, tmp_path: Path) -> None:
    good, empty = make("good"), tmp_path / "empty"
    empty.mkdir()
    trials, notes = read_trials([tmp_path / "nowhere", good, empty, good / "published"])
    assert [trial.path for trial in trials] == [good]
    assert [re.sub(r"/\S*/", "", note) for note in notes] == [
        "Left out: nowhere is no folder. Give the run folder of lgd-timm distill, or a published folder.",
        "Left out: empty holds no recipe.yaml, so it is no run of lgd-timm distill and no published folder.",
        "Left out: published is good, which is shown already.",
    ]


def test_nothing_readable_is_an_error_with_every_reason(tmp_path: Path) -> None:
    with pytest.raises(LGDError, match=r"^No run can be read\. .*/a is no folder.* .*/b is no folder"):
        read_trials([tmp_path / "a", tmp_path / "b"])


# --------------------------------------------------------------------------------------------------------------- groups


def test_runs_that_differ_only_in_their_seed_are_a_group(make: Make) -> None:
    paths = [
        make("p1", seed=1, top1=40.0),
        make("r0", objective={"preset": "reference"}, top1=70.0),
        make("p0", top1=44.0),
        make("p2", seed=2, top1=48.0),
    ]
    reference, paper = group_trials(read_trials(paths)[0])
    assert (reference.label, paper.label) == ("reference", "paper")  # the best zero-shot first
    assert [trial.seed for trial in paper.trials] == [0, 1, 2]
    spread = paper.spread("zero_shot", "top1")
    assert spread is not None
    assert (spread.mean, spread.deviation) == (44.0, 4.0)
    assert paper.spread("knn", "top1") is None
    assert paper.differs == {"objective.preset": "paper", "objective.positive": "False"}


def test_how_a_machine_did_it_makes_no_group(make: Make, run_folder: Path) -> None:
    data = read_trial(run_folder).recipe.to_dict()["data"]
    other = make("other", seed=1, data={**data, "workers": 3, "max_bad": 0.5})
    assert len(group_trials(read_trials([run_folder, other])[0])) == 1
    slower = make("slower", optimizer={"lr": 0.01})
    assert [group.label for group in group_trials(read_trials([run_folder, slower])[0])] == ["lr 0.05", "lr 0.01"]


def test_other_images_are_another_group(make: Make) -> None:
    paths = [make("a"), make("b", seed=1, metrics={"shards": "0123456789abcdef"})]
    assert len(group_trials(read_trials(paths)[0])) == 2


def test_a_run_that_goes_on_is_no_part_of_a_mean(make: Make) -> None:
    there, unfinished = make("there"), make("unfinished", seed=1)
    shutil.rmtree(unfinished / "published")
    groups = group_trials(read_trials([unfinished, there])[0])
    assert [(group.label, len(group.trials), group.trials[0].published is None) for group in groups][1][1:] == (1, True)
    assert len({group.label for group in groups}) == 2


def test_a_spread_is_mean_and_sample_deviation() -> None:
    values = (1.0, 2.0, 4.5, 0.25)
    spread = Spread(values)
    assert spread.mean == pytest.approx(sum(values) / 4)
    assert spread.deviation == pytest.approx((sum((v - spread.mean) ** 2 for v in values) / 3) ** 0.5)
    assert str(spread) == f"{statistics.mean(values):.1f}\u00a0±\u00a0{statistics.stdev(values):.1f}"
    assert (Spread((3.14,)).deviation, str(Spread((3.14,)))) == (None, "3.1")
