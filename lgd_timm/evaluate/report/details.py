"""The sections that look into one run of a group: what it confuses, its banks, what it finds for a name, where it is wrong."""

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

SHOWN = 4  # groups that are looked into
NAMES, NEAREST = 20, 8  # names with a row of nearest images, and images in a row
MISTAKES = 24
MATRIX, EXCERPT = 100, 50  # names up to which a matrix shows all, and how many it shows of more

_SCALE = figures.DPI / 100


@dataclass(frozen=True)
class Shown:
    """The run of a group that is looked into, and its place among the groups."""

    place: int
    label: str
    trial: Trial
    data: str
    split: str
    encoded: Encoded | None
    fault: str  # why there is nothing encoded

    @property
    def title(self) -> str:
        return f"{self.label}, seed {self.trial.seed}"

    @property
    def source(self) -> str:
        """Which images were encoded."""
        assert self.encoded is not None
        bad = f"; {self.encoded.bad} more can't be read" if self.encoded.bad else ""
        return f"Images: {len(self.encoded.student):,} of {self.data}, split {self.split}{bad}."

    @property
    def nothing(self) -> str:
        return f"{self.label}: {self.fault}"


def look(groups: Sequence[Group], *, data: str | None, split: str | None) -> list[Shown]:
    """The first run of each of the first groups, its images encoded once."""
    shown = []
    for place, group in enumerate(groups[:SHOWN], start=1):
        trial = next((trial for trial in group.trials if trial.published), group.trials[0])
        recipe = trial.recipe.data
        where, which, encoded, fault = data or recipe.shards, split or recipe.val_split or "val", None, ""
        try:
            if trial.published is None:
                fault = f"{trial.path} has no published folder: the run is not finished. lgd-timm save makes one of its last checkpoint."
            else:
                encoded = encode(trial.published, data=data or trial.shards(), split=which, max_bad=recipe.max_bad)
        except (LGDError, ImportError, OSError) as error:
            fault = f"No images are shown. {error}" + ("" if data else " Say where the images are with --data.")
        shown.append(Shown(place, group.label, trial, where, which, encoded, fault))
    return shown


# ------------------------------------------------------------------------------------------------------------- confusion


def _labelled(shown: Sequence[Shown], notes: list[str]) -> Iterator[tuple[Shown, Encoded, Tensor]]:
    """Runs whose images have labels, with these; why the others have none is added to `notes`."""
    for one in shown:
        if one.encoded is None or one.encoded.labels is None:
            notes.append(one.nothing if one.encoded is None else f"{one.label}: {one.encoded.unlabelled}")
        else:
            yield one, one.encoded, one.encoded.labels


def confusion(shown: Sequence[Shown]) -> Section:
    blocks, notes = [], list[str]()
    for one, encoded, labels in _labelled(shown, notes):
        blocks.append(_confusion(one, encoded, labels))
        if encoded.teacher is None:
            notes.append(f"{one.label}: the teacher's answers are not shown: {encoded.untaught}")
    return Section(
        key="confusion",
        title="What it takes for what",
        sentence="Each row is a true name, each column an answer, each number a percentage of the row's images: a good model is dark on "
        "the diagonal only. Names stand in the order in which the student knows them, best first.",
        blocks=tuple(blocks),
        notes=tuple(notes),
    )


def _confusion(one: Shown, encoded: Encoded, labels: Tensor) -> Block:
    table = confusion_matrix(labels, encoded.answers, len(encoded.names))
    order = _best_first(table)
    excerpt = ""
    if len(order) > MATRIX:
        order = order[-EXCERPT:]
        excerpt = f" Of {len(encoded.names)} names, the {EXCERPT} that it knows least are shown."
    names = [encoded.names[i] for i in order.tolist()]
    pictures, files = [], {}
    tables = {"student": table}
    if encoded.teachers_answers is not None:
        tables["teacher"] = confusion_matrix(labels, encoded.teachers_answers, len(encoded.names))
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
        files[f"4-confusion-{one.place}-{who}.png"] = png
    return Block(one.title, f"{_worst(table, encoded.names)}{excerpt}", tuple(pictures), files)


def confusion_matrix(labels: Tensor, answers: Tensor, count: int) -> Tensor:
    """Labels and answers, int64 [N] -> how often label i was answered with j, int64 [C, C]."""
    return torch.bincount(labels * count + answers, minlength=count * count).view(count, count)


def _best_first(table: Tensor) -> Tensor:
    """Names by their accuracy, those without images last."""
    return (table.diagonal() / table.sum(1)).nan_to_num(-1.0).argsort(descending=True, stable=True)


def _worst(table: Tensor, names: Sequence[str]) -> str:
    """The most frequent confusion in words."""
    shares = (100 * table / table.sum(1, keepdim=True)).nan_to_num(0.0)
    shares.fill_diagonal_(0)
    label, answer = divmod(int(shares.argmax()), len(names))
    if not shares[label, answer]:
        return "Every image got its own name."
    return f"The most frequent confusion: {shares[label, answer]:.0f} % of the images of {names[label]} are taken for {names[answer]}."


# ----------------------------------------------------------------------------------------------------------------- banks


def banks(shown: Sequence[Shown]) -> Section:
    blocks, notes = [], []
    for one in shown:
        if one.trial.published is None:
            notes.append(one.nothing)
            continue
        found = read_lgd(one.trial.published / "lgd.safetensors").banks
        if found.visual is None or found.seen is None:
            notes.append(f"{one.label}: its objective has no visual bank.")
        else:
            blocks.append(_banks(one, found, found.visual, found.seen))
    return Section(
        key="banks",
        title="The two banks",
        sentence="Each row is a name's entry in the visual bank (the teacher's mean feature of images that it took for that name), each "
        "column a name's text, each number their cosine: the diagonal should be the darkest of its row.",
        blocks=tuple(blocks),
        notes=tuple(notes),
    )


def _banks(one: Shown, found: Banks, visual: Tensor, seen: Tensor) -> Block:
    cosines = normalize(visual, dim=1) @ found.text.T
    ranks = diagonal_ranks(cosines)[seen]
    unseen = [i for i, there in enumerate(seen.tolist()) if not there]
    if len(ranks):
        sentence = (
            f"For {int((ranks == 1).sum())} of the {len(ranks)} names that were seen, its own text is the nearest of {len(found.names)}; "
            f"the mean rank is {ranks.float().mean():.1f} (chance: {(len(found.names) + 1) / 2:.1f})."
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
    return Block(one.title, sentence, (picture,), {f"5-banks-{one.place}.png": png})


def diagonal_ranks(similarities: Tensor) -> Tensor:
    """For each row of [C, C], the place of its diagonal among its columns, from 1: int64 [C]."""
    return 1 + (similarities > similarities.diagonal()[:, None]).sum(1)


# --------------------------------------------------------------------------------------------------------------- galleries


def nearest(shown: Sequence[Shown]) -> Section:
    blocks = [_nearest(one, one.encoded) for one in shown if one.encoded is not None]
    unlabelled = [
        f"{one.label}: frames are grey. {one.encoded.unlabelled}"
        for one in shown
        if one.encoded and one.encoded.labels is None
    ]
    return Section(
        key="nearest",
        title="What it finds for a name",
        sentence=f"For each name, the {NEAREST} images whose student embeddings are nearest to its text, nearest first. "
        "A green frame: the image has that name; red: it has another.",
        blocks=tuple(blocks),
        notes=(*(one.nothing for one in shown if one.encoded is None), *unlabelled),
    )


def _nearest(one: Shown, encoded: Encoded) -> Block:
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
        said = (
            f"{colours.count(RIGHT)} of {len(indices)} right"
            if encoded.labels is not None
            else f"{len(indices)} images"
        )
        others = dict.fromkeys(encoded.names[label] for label in labels if label is not None and label != name)
        alt = f"The {len(indices)} images nearest to {encoded.names[name]}: {said}" + (
            f"; red: {', '.join(others)}" if others else ""
        )
        pictures.append(Picture(gallery.png(strip), alt, (encoded.names[name], said)))
        tiles.append(Tile(strip, (f"{encoded.names[name]}: {said}",)))
    total = sum(len(encoded.student[:NEAREST]) for _ in chosen)
    share = f"{right} of {total} images have the name that they were found for." if encoded.labels is not None else ""
    part = f" {len(chosen)} of {len(encoded.names)} names are shown." if len(chosen) < len(encoded.names) else ""
    files = {f"6-nearest-{one.place}.png": gallery.png(gallery.sheet(tiles, columns=1))}
    return Block(one.title, f"{share}{part}".strip(), tuple(pictures), files, layout="rows")


def mistakes(shown: Sequence[Shown]) -> Section:
    notes: list[str] = []
    blocks = [_mistakes(*labelled) for labelled in _labelled(shown, notes)]
    return Section(
        key="mistakes",
        title="Where it is wrong",
        sentence=f"The {MISTAKES} wrong answers of which the student is surest: true name → answer, how sure it is, what the teacher says.",
        blocks=tuple(blocks),
        notes=tuple(notes),
    )


def _mistakes(one: Shown, encoded: Encoded, labels: Tensor) -> Block:
    sure, answers = (encoded.similarities / encoded.temperature).softmax(1).max(1)
    wrong = (answers != labels).nonzero()[:, 0]
    worst = wrong[sure[wrong].argsort(descending=True, stable=True)][:MISTAKES].tolist()
    teacher, names = encoded.teachers_answers, encoded.names
    pictures, tiles = [], []
    for i in worst:
        picture = gallery.framed(encoded.image(i), colour=WRONG, side=gallery.LARGE)
        said = f"{names[labels[i]]} → {names[answers[i]]}"
        how = (f"{100 * sure[i]:.0f} % sure", *(() if teacher is None else (f"teacher: {names[teacher[i]]}",)))
        pictures.append(Picture(gallery.png(picture), ", ".join((said, *how)), (said, *how)))
        tiles.append(Tile(picture, (names[labels[i]], f"> {names[answers[i]]}", *how[1:])))  # the font has no arrow
    sentence = f"{len(wrong):,} of {len(labels):,} images are named wrong."
    if teacher is not None and len(wrong):
        same = int((teacher[wrong] == answers[wrong]).sum())
        good = int((teacher[wrong] == labels[wrong]).sum())
        sentence += f" Of these mistakes the teacher makes {100 * same / len(wrong):.0f} % too, and names {100 * good / len(wrong):.0f} % right."
    files = {f"7-mistakes-{one.place}.png": gallery.png(gallery.sheet(tiles, columns=6))} if tiles else {}
    return Block(one.title, sentence, tuple(pictures), files, layout="tiles")
