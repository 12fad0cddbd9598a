"""The sections that compare groups: headline numbers, bars, training curves, and how it was made."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from ... import __version__
from ...publish.metrics import CALIBRATION, EVALUATIONS, Evaluation
from ...publish.training_curve import POINTS, Row
from ...students.entrypoints import short_name
from . import figures
from .collect import Group, Trial
from .labels import objective_name
from .page import Block, Picture, Section, Table

NONE = "—"
_SCALE = figures.DPI / 100


def colour(index: int) -> str:
    """Give the colour of group number `index`, the same in every figure."""
    return figures.PALETTE[index % len(figures.PALETTE)]


def lead(groups: Sequence[Group]) -> str:
    """Say the result in one sentence."""
    best = groups[0]
    score, teacher, chance = (
        best.spread(*keys) for keys in (("zero_shot", "top1"), ("teacher_zero_shot", "top1"), ("zero_shot", "chance"))
    )
    if score is None:
        return f"{_count(len(groups), 'setting')}, none with a zero-shot score."
    beside = [
        f"{who} {value.mean:.1f} %"
        for who, value in (("its teacher", teacher), ("chance", chance))
        if value is not None
    ]
    what = f"Best of {len(groups)} settings: {best.label}" if len(groups) > 1 else best.label
    return f"{what}, {score} % zero-shot top-1 over {_count(len(score.values), 'run')}" + (
        f" ({', '.join(beside)})." if beside else "."
    )


def headline(groups: Sequence[Group]) -> Section:
    """Make the section with the table of numbers."""
    measured = [
        evaluation
        for evaluation in (*EVALUATIONS, CALIBRATION)
        if any(_has(trial, evaluation) for group in groups for trial in group.trials)
    ]
    head = ["Setting", "Student", "Objective", "n", *(evaluation.heading for evaluation in (*EVALUATIONS, CALIBRATION))]
    head += ["Teacher zero-shot", "Chance", "Images", "Epochs", "Minutes"]
    sentence = "Top-1 accuracy in percent: mean ± sample standard deviation over n runs that differ only in their seed."
    if CALIBRATION in measured:
        sentence += " ECE, the expected calibration error, is better when lower."
    if any(len(group.trials) == 1 for group in groups):
        sentence += " A number without ± is of one run, so its spread is unknown."
    return Section(
        key="headline",
        title="Headline numbers",
        sentence=sentence,
        tables=(Table("One row a setting, the best zero-shot first", head, [_row(group) for group in groups]),),
        notes=tuple(filter(None, map(_seeds, groups))),
        commands=(
            ("Zero-shot at a run's end, images, epochs, minutes", _distil(groups[0].trials[0])),
            *((evaluation.heading, _command(evaluation, groups)) for evaluation in measured),
        ),
    )


def bars(groups: Sequence[Group]) -> Section:
    """Make the section with bars of accuracies."""
    pictures, files, commands = [], {}, []
    for evaluation in EVALUATIONS:
        rows = [
            figures.Bar(
                label=group.label,
                score=score,
                colour=colour(i),
                teacher=_mean(group, f"teacher_{evaluation.key}", "top1"),
                chance=_mean(group, evaluation.key, "chance"),
            )
            for i, group in enumerate(groups)
            if (score := group.spread(evaluation.key, "top1"))
        ]
        if rows:
            png = figures.bars(rows, title=evaluation.heading)
            pictures.append(
                Picture(png, f"{evaluation.heading}: {'; '.join(_described(row) for row in rows)}", scale=_SCALE)
            )
            files[f"2-{evaluation.key.replace('_', '-')}.png"] = png
            commands.append((evaluation.heading, _command(evaluation, groups)))
    if not pictures:
        return Section(
            "bars", "Accuracy", notes=("No accuracy was measured: lgd-timm evaluate does it, on labelled images.",)
        )
    return Section(
        key="bars",
        title="Accuracy",
        sentence=_comparison(groups),
        blocks=(Block("", "", tuple(pictures), files),),
        commands=tuple(commands),
    )


def curves(groups: Sequence[Group]) -> Section:
    """Make the section with training curves."""
    losses = [line for i, group in enumerate(groups) if (line := _loss_line(group, colour(i)))]
    scores = [line for i, group in enumerate(groups) if (line := _score_line(group, colour(i)))]
    silent = [str(trial.path) for group in groups for trial in group.trials if not trial.log]
    notes = (f"No log.jsonl, so no curve: {', '.join(silent)}.",) if silent else ()
    pictures, files = [], {}
    if losses:
        png = figures.curves(losses, title="Loss", x="step", y="loss")
        summary = "; ".join(f"{line.label} from {line.mean[0]:.3g} to {line.mean[-1]:.3g}" for line in losses)
        pictures.append(Picture(png, f"Loss over steps: {summary}", scale=_SCALE))
        files["3-loss.png"] = png
    if scores:
        png = figures.curves(scores, title="Zero-shot", x="epoch", y="top-1 accuracy (%)", from_zero=True)
        summary = "; ".join(f"{line.label} from {line.mean[0]:.1f} % to {line.mean[-1]:.1f} %" for line in scores)
        pictures.append(Picture(png, f"Zero-shot accuracy over epochs: {summary}", scale=_SCALE))
        files["3-zero-shot.png"] = png
    if not pictures:
        return Section("curves", "Training", notes=notes)
    sentence = "How they learned: means over runs, with a band of ± one standard deviation where there are several."
    if len({objective_name(group.recipe.objective) for group in groups}) > 1:
        sentence += " Losses of different objectives are different quantities: compare their course, not their height."
    command = _distil(next(trial for group in groups for trial in group.trials if trial.log))
    return Section(
        "curves",
        "Training",
        sentence,
        blocks=(Block("", "", tuple(pictures), files),),
        notes=notes,
        commands=(("log.jsonl", command),),
    )


def made(groups: Sequence[Group], *, command: str) -> Section:
    """Make the section on how the runs and the page were made: recipes, commands, versions."""
    keys = list(dict.fromkeys(key for group in groups for key in group.differs))
    differing = [
        Table(
            "In what the settings differ",
            ["Setting", *keys],
            [[g.label, *(g.differs.get(k, NONE) for k in keys)] for g in groups],
        )
    ]
    rows = [
        [str(trial.path), group.label, str(trial.seed), *_facts(trial)] for group in groups for trial in group.trials
    ]
    runs = Table("The runs", ["Run", "Setting", "Seed", "Zero-shot", "Minutes", "Hardware", "Date", "Versions"], rows)
    libraries = ", ".join(f"{name} {found}" for name in ("torch", "timm", "matplotlib") if (found := _version(name)))
    return Section(
        key="made",
        title="How it was made",
        sentence="Each recipe below is complete. Every picture also stands as a PNG file beside this page.",
        tables=(*(differing if keys else ()), runs),
        texts=tuple((f"Recipe: {group.label}", group.recipe.to_yaml()) for group in groups),
        commands=(
            *((f"Run {trial.path}", _distil(trial)) for group in groups for trial in group.trials),
            ("This page", command),
        ),
        sources=(
            f"This page was made on {date.today().isoformat()}, {platform.system()} {platform.machine()}, "
            f"Python {platform.python_version()}, lgd_timm {__version__}, {libraries}.",
        ),
    )


# -------------------------------------------------------------------------------------------------------------- numbers


def _row(group: Group) -> list[str]:
    seconds = group.spread("training", "seconds")
    beside = [group.spread("teacher_zero_shot", "top1"), group.spread("zero_shot", "chance")]
    scores = [group.spread(evaluation.key, evaluation.score) for evaluation in (*EVALUATIONS, CALIBRATION)]
    counts = [group.spread("training", key) for key in ("images", "epochs")]
    return [
        group.label,
        short_name(group.recipe.student.model),
        objective_name(group.recipe.objective),
        str(len(group.trials)),
        *(NONE if score is None else str(score) for score in scores),
        *(NONE if value is None else f"{value.mean:.1f}" for value in beside),
        *(NONE if count is None else f"{count.mean:,.0f}" for count in counts),
        NONE if seconds is None else f"{seconds.mean / 60:.1f}",
    ]


def _facts(trial: Trial) -> list[str]:
    score, seconds = trial.number("zero_shot", "top1"), trial.number("training", "seconds")
    versions = [f"{name} {found}" for name in ("lgd_timm", "torch", "timm") if (found := trial.text("training", name))]
    return [
        NONE if score is None else f"{score:.2f}",
        NONE if seconds is None else f"{seconds / 60:.1f}",
        trial.text("training", "device") or NONE,
        trial.text("training", "date") or NONE,
        ", ".join(versions) or NONE,
    ]


def _mean(group: Group, *keys: str) -> float | None:
    spread = group.spread(*keys)
    return None if spread is None else spread.mean


def _described(row: figures.Bar) -> str:
    beside = [
        f"{who} {value:.1f} %" for who, value in (("teacher", row.teacher), ("chance", row.chance)) if value is not None
    ]
    return f"{row.label} {row.score} %" + (f" ({', '.join(beside)})" if beside else "")


def _comparison(groups: Sequence[Group]) -> str:
    """Say in words how far the two best groups are apart, compared with their standard deviations."""
    scored = [(group.label, score) for group in groups if (score := group.spread("zero_shot", "top1"))]
    how = "Bars are means, error bars sample standard deviations over seeds, dots single runs."
    if len(scored) > 1:
        (first, best), (second, next_best) = scored[:2]
        gap = best.mean - next_best.mean
        if best.deviation is None or next_best.deviation is None:
            judged = "as one of them is a single run, it is not known how much of that is chance"
        else:
            both = best.deviation + next_best.deviation
            judged = f"{'more' if gap > both else 'less'} than their standard deviations together ({both:.1f})"
        return f"Zero-shot, {first} is {gap:.1f} points above {second}: {judged}. {how}"
    return how


def _seeds(group: Group) -> str:
    """Warn where runs of a group have the same seed, as their spread is then not one over seeds."""
    seeds = [trial.seed for trial in group.trials]
    again = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    return f"{group.label}: several runs have seed {again[0]}, so their spread is not one over seeds." if again else ""


# --------------------------------------------------------------------------------------------------------------- curves


def _loss_line(group: Group, colour: str) -> figures.Line | None:
    courses = [course for trial in group.trials if (course := _losses(trial.log))]
    if not courses:
        return None
    first = max(steps[0] for steps, _ in courses)
    last = min(steps[-1] for steps, _ in courses)
    x = np.array([step for step in courses[0][0] if first <= step <= last])
    if not len(x):  # runs that were logged at no common step
        return None
    return _line(group, x, np.stack([np.interp(x, steps, losses) for steps, losses in courses]), colour)


def _losses(rows: Sequence[Row]) -> tuple[list[float], list[float]] | None:
    """Give steps and losses, averaged over chunks against noise, as in a run's own curve."""
    losses = [row for row in rows if "loss" in row]
    size = -(-len(losses) // POINTS)
    chunks = [losses[start : start + size] for start in range(0, len(losses), size)] if losses else []
    means = [[sum(float(row[key]) for row in chunk) / len(chunk) for chunk in chunks] for key in ("step", "loss")]
    return (means[0], means[1]) if chunks else None


def _score_line(group: Group, colour: str) -> figures.Line | None:
    courses = [course for trial in group.trials if len(course := _scores(trial)) > 1]
    common = sorted(set.intersection(*(set(course) for course in courses))) if courses else []
    if len(common) < 2:
        return None
    return _line(
        group,
        np.array(common),
        np.array([[course[epoch] for epoch in common] for course in courses]),
        colour,
        teacher=_mean(group, "teacher_zero_shot", "top1"),
        chance=_mean(group, "zero_shot", "chance"),
    )


def _scores(trial: Trial) -> dict[float, float]:
    """Map epochs to zero-shot top-1: those of the log, and of a finished run the last one of metrics.json."""
    scores = {float(row["epoch"]): float(row["zero_shot_top1"]) for row in trial.log if "zero_shot_top1" in row}
    if scores and trial.published and (last := trial.number("zero_shot", "top1")) is not None:
        scores[float(trial.recipe.schedule.epochs)] = last
    return scores


def _line(
    group: Group,
    x: np.ndarray,
    values: np.ndarray,
    colour: str,
    *,
    teacher: float | None = None,
    chance: float | None = None,
) -> figures.Line:
    """Make a line of a group from values [runs, points]."""
    deviation = values.std(axis=0, ddof=1) if len(values) > 1 else None
    return figures.Line(group.label, x, values.mean(axis=0), deviation, colour, len(values), teacher, chance)


# ------------------------------------------------------------------------------------------------------------- commands


def _command(evaluation: Evaluation, groups: Sequence[Group]) -> str:
    """Write the command of an evaluation, for the first run that has its score."""
    trial = next(trial for group in groups for trial in group.trials if _has(trial, evaluation))
    folder, data = str(trial.published or trial.path), trial.recipe.data
    words = ["lgd-timm", *evaluation.command.split(), folder, "--data", data.shards, "--split", data.val_split or "val"]
    if (k := trial.number(evaluation.key, "k")) is not None:
        words += ["--k", f"{k:.0f}"]
    if (protocol := trial.text(evaluation.key, "protocol")) is not None:
        words += ["--protocol", protocol]
    return shlex.join(words)


def _has(trial: Trial, evaluation: Evaluation) -> bool:
    return trial.number(evaluation.key, evaluation.score) is not None


def _distil(trial: Trial) -> str:
    return shlex.join(["lgd-timm", "distill", str(trial.path / "recipe.yaml"), "--output", "AGAIN"])


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
