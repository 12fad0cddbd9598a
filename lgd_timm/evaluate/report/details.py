"""Make the sections about one run of a group: confusion matrix, banks, nearest images of a name, mistakes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...errors import LGDError
from ...publish.lgd_safetensors import Banks, read_lgd
from . import figures, gallery
from .collect import Group, Trial
from .encode import Encoded, encode
from .gallery import RIGHT, UNKNOWN, WRONG, Tile
from .page import Block, Picture, Section

SHOWN = 4  # groups of which a run is shown
NAMES, NEAREST = 20, 8  # names that have a row of nearest images, and images in a row
MISTAKES = 24
MATRIX, EXCERPT = 100, 50  # a matrix of more than 100 names shows 50 of them

_SCALE = figures.DPI / 100


@dataclass(frozen=True)
class ShownRun:
    """The run of a group that is shown.

    Attributes:
        number: of the group, from 1.
        label: of the group.
        trial: the run.
        data: shard folder of the images.
        split: which split of it.
        encoded: the images; None where they can't be encoded.
        fault: why `encoded` is None; else empty.
    """

    number: int
    label: str
    trial: Trial
    data: str
    split: str
    encoded: Encoded | None
    fault: str

    @property
    def title(self) -> str:
        """Heading of the run's block."""
        return f"{self.label}, seed {self.trial.seed}"

    @property
    def source(self) -> str:
        """Say which images were encoded."""
        assert self.encoded is not None
        bad = f"; {self.encoded.bad} more can't be read" if self.encoded.bad else ""
        return f"Images: {len(self.encoded.student):,} of {self.data}, split {self.split}{bad}."

    @property
    def no_images(self) -> str:
        """Say why no images are shown."""
        return f"{self.label}: {self.fault}"


def encode_groups(groups: Sequence[Group], *, data: str | None, split: str | None) -> list[ShownRun]:
    """Encode images with the first published run of each of the first groups."""
    shown = []
    for number, group in enumerate(groups[:SHOWN], start=1):
        trial = next((trial for trial in group.trials if trial.published), group.trials[0])
        recipe = trial.recipe.data
        where, which, encoded, fault = data or recipe.shards, split or recipe.val_split or "val", None, ""
        try:
            if trial.published is None:
                fault = (
                    f"{trial.path} has no published folder: the run is not finished. lgd-timm save makes one of its "
                    "last checkpoint."
                )
            else:
                encoded = encode(trial.published, data=data or trial.shards(), split=which, max_bad=recipe.max_bad)
        except (LGDError, ImportError, OSError) as error:
            fault = f"No images are shown. {error}" + ("" if data else " Say where the images are with --data.")
        shown.append(ShownRun(number, group.label, trial, where, which, encoded, fault))
    return shown


# ------------------------------------------------------------------------------------------------------------ confusion


def _labelled(shown: Sequence[ShownRun], notes: list[str]) -> Iterator[tuple[ShownRun, Encoded, Tensor]]:
    """Yield the runs whose images have labels; for the others, add the reason to `notes`."""
    for run in shown:
        if run.encoded is None or run.encoded.labels is None:
            notes.append(run.no_images if run.encoded is None else f"{run.label}: {run.encoded.label_fault}")
        else:
            yield run, run.encoded, run.encoded.labels


def confusion(shown: Sequence[ShownRun]) -> Section:
    """Make the section with confusion matrices."""
    blocks, notes = [], list[str]()
    for run, encoded, labels in _labelled(shown, notes):
        blocks.append(_confusion(run, encoded, labels))
        if encoded.teacher is None:
            notes.append(f"{run.label}: the teacher's answers are not shown: {encoded.teacher_fault}")
    return Section(
        key="confusion",
        title="What it takes for what",
        sentence="Each row is a true name, each column an answer, each number a percentage of the row's images: a good "
        "model is dark on the diagonal only. Names stand in the order in which the student knows them, best first.",
        blocks=tuple(blocks),
        notes=tuple(notes),
    )


def _confusion(run: ShownRun, encoded: Encoded, labels: Tensor) -> Block:
    table = confusion_matrix(labels, encoded.answers, len(encoded.names))
    order = _best_first(table)
    excerpt = ""
    if len(order) > MATRIX:
        order = order[-EXCERPT:]
        excerpt = f" Of {len(encoded.names)} names, the {EXCERPT} that it knows least are shown."
    names = [encoded.names[i] for i in order.tolist()]
    pictures, files = [], {}
    tables = {"student": table}
    if encoded.teacher_answers is not None:
        tables["teacher"] = confusion_matrix(labels, encoded.teacher_answers, len(encoded.names))
    for who, counts in tables.items():
        shares = (100 * counts / counts.sum(1, keepdim=True))[order][:, order]  # a name without images has no row: 0/0
        accuracy = 100 * counts.diagonal().sum().item() / counts.sum().item()
        title = f"{who.capitalize()}: {accuracy:.1f} % right"
        png = figures.matrix(
            shares, rows=names, columns=names, x="answer", y="true name", title=title, number=".0f", limits=(0.0, 100.0)
        )
        pictures.append(
            Picture(
                png,
                f"Confusion matrix of the {who}, {accuracy:.1f} % right. {_worst(counts, encoded.names)}",
                scale=_SCALE,
            )
        )
        files[f"4-confusion-{run.number}-{who}.png"] = png
    return Block(run.title, f"{_worst(table, encoded.names)}{excerpt}", tuple(pictures), files)


def confusion_matrix(labels: Tensor, answers: Tensor, count: int) -> Tensor:
    """Count answers for each label.

    Args:
        labels: int64 [N].
        answers: int64 [N].
        count: number of names, C.

    Returns:
        int64 [C, C]: how often label i was answered with j.
    """
    return torch.bincount(labels * count + answers, minlength=count * count).view(count, count)


def _best_first(table: Tensor) -> Tensor:
    """Order names by accuracy, those without images last."""
    return (table.diagonal() / table.sum(1)).nan_to_num(-1.0).argsort(descending=True, stable=True)


def _worst(table: Tensor, names: Sequence[str]) -> str:
    """Say the most frequent confusion in words."""
    shares = (100 * table / table.sum(1, keepdim=True)).nan_to_num(0.0)
    shares.fill_diagonal_(0)
    label, answer = divmod(int(shares.argmax()), len(names))
    if not shares[label, answer]:
        return "Every image got its own name."
    share = f"{shares[label, answer]:.0f} % of the images of {names[label]}"
    return f"The most frequent confusion: {share} are taken for {names[answer]}."


# ---------------------------------------------------------------------------------------------------------------- banks


def banks(shown: Sequence[ShownRun]) -> Section:
    """Make the section that compares visual and text bank."""
    blocks, notes = [], []
    for run in shown:
        if run.trial.published is None:
            notes.append(run.no_images)
            continue
        found = read_lgd(run.trial.published / "lgd.safetensors").banks
        if found.visual is None or found.seen is None:
            notes.append(f"{run.label}: its objective has no visual bank.")
        else:
            blocks.append(_banks(run, found, found.visual, found.seen))
    return Section(
        key="banks",
        title="The two banks",
        sentence="Each row is a name's entry in the visual bank (the teacher's mean feature of images that it took "
        "for that name), each column a name's text, each number their cosine: the diagonal should be the darkest of "
        "its row.",
        blocks=tuple(blocks),
        notes=tuple(notes),
    )


def _banks(run: ShownRun, found: Banks, visual: Tensor, seen: Tensor) -> Block:
    cosines = normalize(visual, dim=1) @ found.text.T
    ranks = diagonal_ranks(cosines)[seen]
    unseen = [i for i, there in enumerate(seen.tolist()) if not there]
    if len(ranks):
        sentence = (
            f"For {int((ranks == 1).sum())} of the {len(ranks)} names that were seen, its own text is the nearest of "
            f"{len(found.names)}; the mean rank is {ranks.float().mean():.1f} (chance: "
            f"{(len(found.names) + 1) / 2:.1f})."
        )
    else:
        sentence = "No name was seen: the whole visual bank is still random."
    if unseen:
        sentence += f" Grey: {len(unseen)} to which the teacher assigned no image."
    order = torch.arange(len(found.names))
    if len(order) > MATRIX:
        order = order[:EXCERPT]
        sentence += f" The first {EXCERPT} of {len(found.names)} names are shown."
    part = cosines[order][:, order]
    names, greyed = [found.names[i] for i in order.tolist()], [i for i in unseen if i < len(order)]
    known = part[seen[order]] if len(greyed) < len(order) else part
    png = figures.matrix(
        part,
        rows=names,
        columns=names,
        x="text bank",
        y="visual bank",
        title="Cosine of visual and text bank",
        number=".2f",
        limits=(float(known.min()), float(known.max())),
        greyed=greyed,
    )
    picture = Picture(png, f"Cosines of visual and text bank. {sentence}", scale=_SCALE)
    return Block(run.title, sentence, (picture,), {f"5-banks-{run.number}.png": png})


def diagonal_ranks(similarities: Tensor) -> Tensor:
    """Rank the diagonal of [C, C] within each row, from 1 (largest): int64 [C]."""
    return 1 + (similarities > similarities.diagonal()[:, None]).sum(1)


# ------------------------------------------------------------------------------------------------------------ galleries


def nearest(shown: Sequence[ShownRun]) -> Section:
    """Make the section with the nearest images of names."""
    blocks = [_nearest(run, run.encoded) for run in shown if run.encoded is not None]
    unlabelled = [
        f"{run.label}: frames are grey. {run.encoded.label_fault}"
        for run in shown
        if run.encoded and run.encoded.labels is None
    ]
    return Section(
        key="nearest",
        title="What it finds for a name",
        sentence=f"For each name, the {NEAREST} images whose student embeddings are nearest to its text, nearest "
        "first. A green frame: the image has that name; red: it has another.",
        blocks=tuple(blocks),
        notes=(*(run.no_images for run in shown if run.encoded is None), *unlabelled),
    )


def _nearest(run: ShownRun, encoded: Encoded) -> Block:
    chosen = range(0, len(encoded.names), math.ceil(len(encoded.names) / NAMES))
    pictures, tiles, right = [], [], 0
    for name in chosen:
        indices = encoded.similarities[:, name].topk(min(NEAREST, len(encoded.student))).indices.tolist()
        labels = [None if encoded.labels is None else int(encoded.labels[i]) for i in indices]
        colours = [UNKNOWN if label is None else RIGHT if label == name else WRONG for label in labels]
        strip = gallery.row(
            [gallery.framed(encoded.image(i), colour=colour) for i, colour in zip(indices, colours, strict=True)]
        )
        right += colours.count(RIGHT)
        summary = (
            f"{colours.count(RIGHT)} of {len(indices)} right"
            if encoded.labels is not None
            else f"{len(indices)} images"
        )
        others = dict.fromkeys(encoded.names[label] for label in labels if label is not None and label != name)
        alt = f"The {len(indices)} images nearest to {encoded.names[name]}: {summary}" + (
            f"; red: {', '.join(others)}" if others else ""
        )
        pictures.append(Picture(gallery.png(strip), alt, (encoded.names[name], summary)))
        tiles.append(Tile(strip, (f"{encoded.names[name]}: {summary}",)))
    total = sum(len(encoded.student[:NEAREST]) for _ in chosen)
    share = f"{right} of {total} images have the name that they were found for." if encoded.labels is not None else ""
    part = f" {len(chosen)} of {len(encoded.names)} names are shown." if len(chosen) < len(encoded.names) else ""
    files = {f"6-nearest-{run.number}.png": gallery.png(gallery.sheet(tiles, columns=1))}
    return Block(run.title, f"{share}{part}".strip(), tuple(pictures), files, layout="rows")


def mistakes(shown: Sequence[ShownRun]) -> Section:
    """Make the section with the most confident wrong answers."""
    notes: list[str] = []
    blocks = [_mistakes(*labelled) for labelled in _labelled(shown, notes)]
    return Section(
        key="mistakes",
        title="Where it is wrong",
        sentence=f"The {MISTAKES} wrong answers of which the student is surest: true name → answer, how sure it is, "
        "what the teacher says.",
        blocks=tuple(blocks),
        notes=tuple(notes),
    )


def _mistakes(run: ShownRun, encoded: Encoded, labels: Tensor) -> Block:
    sure, answers = (encoded.similarities / encoded.temperature).softmax(1).max(1)
    wrong = (answers != labels).nonzero()[:, 0]
    worst = wrong[sure[wrong].argsort(descending=True, stable=True)][:MISTAKES].tolist()
    teacher, names = encoded.teacher_answers, encoded.names
    pictures, tiles = [], []
    for i in worst:
        picture = gallery.framed(encoded.image(i), colour=WRONG, side=gallery.LARGE)
        summary = f"{names[labels[i]]} → {names[answers[i]]}"
        how = (f"{100 * sure[i]:.0f} % sure", *(() if teacher is None else (f"teacher: {names[teacher[i]]}",)))
        pictures.append(Picture(gallery.png(picture), ", ".join((summary, *how)), (summary, *how)))
        tiles.append(Tile(picture, (names[labels[i]], f"> {names[answers[i]]}", *how[1:])))  # the font has no arrow
    sentence = f"{len(wrong):,} of {len(labels):,} images are named wrong."
    if teacher is not None and len(wrong):
        same = int((teacher[wrong] == answers[wrong]).sum())
        good = int((teacher[wrong] == labels[wrong]).sum())
        sentence += f" Of these mistakes the teacher makes {100 * same / len(wrong):.0f} % too, "
        sentence += f"and names {100 * good / len(wrong):.0f} % right."
    files = {f"7-mistakes-{run.number}.png": gallery.png(gallery.sheet(tiles, columns=6))} if tiles else {}
    return Block(run.title, sentence, tuple(pictures), files, layout="tiles")
