"""Read runs from their folders, and group those that differ only in their seed."""

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
from ...publish.training_curve import Row, read_log, training_seconds
from ...utils.files import fingerprint
from ...utils.schema import MACHINE, marked
from .labels import label_groups

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One run: a run folder of `lgd-timm distill`, finished or not, or a published folder.

    Attributes:
        path: as the user named it.
        published: the published folder; None of a run that is not finished.
        recipe: of the run.
        metrics: of metrics.json; of a run that is not finished, what its log holds.
        log: rows of log.jsonl; empty of a published folder.
    """

    path: Path
    published: Path | None
    recipe: Recipe
    metrics: Mapping[str, Any]
    log: Sequence[Row]

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.recipe.machine.seed

    @property
    def untrusted(self) -> bool:
        """Whether the recipe may be somebody else's, as that of a published folder may."""
        return self.published == self.path

    def number(self, *keys: str) -> float | None:
        """Read a number of metrics.json, such as ("zero_shot", "top1"); None where it was not measured."""
        value: Any = self.metrics
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if good else None

    def text(self, *keys: str) -> str | None:
        """Read a text of metrics.json, such as ("training", "device"); None where there is none."""
        value: Any = self.metrics
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, str) else None

    def shards(self) -> str:
        """Give the recipe's shard folder. Raises: RecipeError for one that an untrusted recipe may not name."""
        if self.untrusted:
            check_reach({"data": {"shards": self.recipe.data.shards}})
        return self.recipe.data.shards


@dataclass(frozen=True)
class Spread:
    """One number of several runs: its mean and standard deviation."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the runs."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (n - 1); None for a single run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f"\u00a0±\u00a0{self.deviation:.1f}")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed.

    Attributes:
        label: tells the group from the others, in few words.
        trials: ordered by seed.
        differs: every setting in which the group differs from another, in words.
    """

    label: str
    trials: tuple[Trial, ...]
    differs: Mapping[str, str]

    @property
    def recipe(self) -> Recipe:
        """Recipe of the first run."""
        return self.trials[0].recipe

    def spread(self, *keys: str) -> Spread | None:
        """Collect a number of metrics.json over the runs that have it; None where none has."""
        values = [value for trial in self.trials if (value := trial.number(*keys)) is not None]
        return Spread(tuple(values)) if values else None


def read_trial(path: str | Path) -> Trial:
    """Read a run folder or a published folder. Raises: LGDError where it is neither, or can't be read."""
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
    recipe = read_recipe(source / "recipe.yaml")
    rows = read_log(path / "log.jsonl", until=sys.maxsize)
    metrics = read_metrics(source) if published else logged_metrics(rows, batch_size=recipe.data.batch_size)
    return Trial(path=path, published=published, recipe=recipe, metrics=metrics, log=rows)


def logged_metrics(rows: Sequence[Row], *, batch_size: int) -> dict[str, Any]:
    """Make of a run's log what it tells of metrics.json: the scores of the last evaluation, its epoch, and the time.

    Args:
        rows: of the log.
        batch_size: images of a step.
    """
    scores = [row for row in rows if "zero_shot_top1" in row]
    if not rows:
        return {}
    seconds = training_seconds(rows, images=rows[-1]["step"] * batch_size)
    training = {"steps": rows[-1]["step"], **({} if seconds is None else {"seconds": seconds})}
    if not scores:
        return {"training": training}
    last = scores[-1]
    return {
        "zero_shot": {"top1": last["zero_shot_top1"], "top5": last.get("zero_shot_top5")},
        "training": {**training, "epochs": last.get("epoch")},
    }


def unfinished_note(trial: Trial) -> str:
    """Say how far a run came that is not finished."""
    steps, epoch, whole = trial.number("training", "steps"), trial.number("training", "epochs"), trial.recipe.schedule
    if steps is None:
        return f"{trial.path} is not finished, and its log is empty."
    scored = "was not evaluated" if epoch is None else f"scores are those after epoch {epoch:.0f} of {whole.epochs}"
    return f"{trial.path} is not finished: its log ends at step {steps:.0f}, {scored}."


def read_trials(paths: Iterable[str | Path]) -> tuple[list[Trial], list[str]]:
    """Read runs, each once; also give a line for each that can't be read. Raises: LGDError when none can."""
    trials: dict[Path, Trial] = {}
    notes = []
    for path in paths:
        try:
            trial = read_trial(path)
        except (LGDError, OSError) as error:
            notes.append(f"Left out: {error}")
            continue
        resolved = (trial.published or trial.path).resolve()
        if resolved in trials:
            notes.append(f"Left out: {path} is {trials[resolved].path}, which is shown already.")
        else:
            trials[resolved] = trial
            notes += [] if trial.published else [unfinished_note(trial)]
    if not trials:
        raise WeightsError(f"No run can be read. {' '.join(note.removeprefix('Left out: ') for note in notes)}")
    for note in notes:
        log.warning(note)
    return list(trials.values()), notes


def group_trials(trials: Sequence[Trial]) -> list[Group]:
    """Group runs: finished ones first, the best zero-shot first, those without a score last, as they were given."""
    settings = {fingerprint(found): found for found in map(_settings, trials)}
    members: dict[str, list[Trial]] = {key: [] for key in settings}
    for trial in trials:
        members[fingerprint(_settings(trial))].append(trial)
    groups = [
        Group(label, tuple(sorted(members[key], key=lambda trial: trial.seed)), differs)
        for key, (label, differs) in zip(settings, label_groups(list(settings.values())), strict=True)
    ]
    scores = {group.label: group.spread("zero_shot", "top1") for group in groups}
    return sorted(
        groups,
        key=lambda group: (
            group.trials[0].published is None,
            -score.mean if (score := scores[group.label]) else math.inf,
        ),
    )


def _settings(trial: Trial) -> dict[str, Any]:
    """Give all settings that determine a run's numbers, except the seed, as plain data."""
    recipe = trial.recipe.to_dict()
    objective = trial.recipe.objective
    kind = objective.get("kind", "lgd")
    switches = {"kind": kind, "preset": objective.get("preset"), **asdict(objective_config(objective))}
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
