"""Runs as their folders tell of them, and groups of those that differ only in their seed."""

from __future__ import annotations

import logging
import math
import statistics
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...config.reader import read_recipe
from ...config.recipe import DataRecipe, MachineRecipe, Recipe
from ...config.sandbox import check_reach
from ...errors import LGDError, WeightsError
from ...objectives import objective_config
from ...publish.metrics import read_metrics
from ...publish.training_curve import Row, read_log
from ...utils.files import fingerprint
from ...utils.schema import MACHINE, marked
from .labels import label_groups

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One run: of `lgd-timm distill`, finished or not, or a published folder, which has no log."""

    path: Path  # as it was named
    published: Path | None  # None: not finished
    recipe: Recipe
    metrics: Mapping[str, Any]
    log: Sequence[Row]

    @property
    def seed(self) -> int:
        return self.recipe.machine.seed

    @property
    def travelled(self) -> bool:
        """Whether its recipe may be somebody else's: that of a published folder."""
        return self.published == self.path

    def number(self, *keys: str) -> float | None:
        """A number of metrics.json, such as ("zero_shot", "top1"); None where it was not measured."""
        value: Any = self.metrics
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if good else None

    def text(self, *keys: str) -> str | None:
        """A text of metrics.json, such as ("training", "device")."""
        value: Any = self.metrics
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, str) else None

    def shards(self) -> str:
        """Where the recipe has its images. Raises: RecipeError for a path that a recipe which travelled may not name."""
        if self.travelled:
            check_reach({"data": {"shards": self.recipe.data.shards}})
        return self.recipe.data.shards


@dataclass(frozen=True)
class Spread:
    """One number of several runs."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation, with n - 1; None for a single run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f"\u00a0±\u00a0{self.deviation:.1f}")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, in its order. `label` tells the group from the others; `differs`: all that does."""

    label: str
    trials: tuple[Trial, ...]
    differs: Mapping[str, str]

    @property
    def recipe(self) -> Recipe:
        return self.trials[0].recipe

    def spread(self, *keys: str) -> Spread | None:
        """A number of metrics.json over those of the runs that have it."""
        values = [value for trial in self.trials if (value := trial.number(*keys)) is not None]
        return Spread(tuple(values)) if values else None


def read_trial(path: str | Path) -> Trial:
    """A run folder or a published folder. Raises: LGDError when it is none, or can't be read."""
    path = Path(path)
    if not path.is_dir():
        raise WeightsError(f"{path} is no folder. Give the run folder of lgd-timm distill, or a published folder.")
    if not (path / "recipe.yaml").is_file():
        raise WeightsError(f"{path} holds no recipe.yaml, so it is no run of lgd-timm distill and no published folder.")
    if (path / "lgd.safetensors").is_file():
        published: Path | None = path
    else:
        published = path / "published" if (path / "published" / "lgd.safetensors").is_file() else None
    source = published or path
    return Trial(
        path=path,
        published=published,
        recipe=read_recipe(source / "recipe.yaml"),
        metrics=read_metrics(source),
        log=read_log(path / "log.jsonl", until=sys.maxsize),
    )


def read_trials(paths: Iterable[str | Path]) -> tuple[list[Trial], list[str]]:
    """The runs that can be read, each once, and a line for each that can't. Raises: LGDError when none can."""
    trials: dict[Path, Trial] = {}
    notes = []
    for path in paths:
        try:
            trial = read_trial(path)
        except (LGDError, OSError) as error:
            notes.append(f"Left out: {error}")
            continue
        place = (trial.published or trial.path).resolve()
        if place in trials:
            notes.append(f"Left out: {path} is {trials[place].path}, which is shown already.")
        else:
            trials[place] = trial
    if not trials:
        raise WeightsError(f"No run can be read. {' '.join(note.removeprefix('Left out: ') for note in notes)}")
    for note in notes:
        log.warning(note)
    return list(trials.values()), notes


def group_trials(trials: Sequence[Trial]) -> list[Group]:
    """Groups, the best zero-shot first; those without a score last, in the order in which they were named."""
    facts = {fingerprint(known): known for known in map(_decisive, trials)}
    members: dict[str, list[Trial]] = {key: [] for key in facts}
    for trial in trials:
        members[fingerprint(_decisive(trial))].append(trial)
    groups = [
        Group(label, tuple(sorted(members[key], key=lambda trial: trial.seed)), differs)
        for key, (label, differs) in zip(facts, label_groups(list(facts.values())), strict=True)
    ]
    scores = {group.label: group.spread("zero_shot", "top1") for group in groups}
    return sorted(groups, key=lambda group: -score.mean if (score := scores[group.label]) else math.inf)


def _decisive(trial: Trial) -> dict[str, Any]:
    """What decides the numbers, the seed apart, as plain data."""
    recipe = trial.recipe.to_dict()
    settings = trial.recipe.objective
    kind = settings.get("kind", "lgd")
    switches = {"kind": kind, "preset": settings.get("preset"), **asdict(objective_config(settings))}
    return {
        **recipe,
        "objective": switches,
        "run": _without(recipe["run"], {*marked(MachineRecipe, MACHINE), "seed"}),
        "data": _without(recipe["data"], {*marked(DataRecipe, MACHINE)}),
        "images": trial.metrics.get("shards"),
        "finished": trial.published is not None,
    }


def _without(fields: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in names}
