"""What is said of single runs, against plain computations."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lgd_timm.evaluate.report import details
from lgd_timm.evaluate.report.collect import group_trials, read_trials
from lgd_timm.evaluate.report.details import ShownRun, confusion_matrix, diagonal_ranks, encode_groups
from lgd_timm.evaluate.report.encode import Encoded
from lgd_timm.evaluate.report.gallery import FRAME, GAP, SMALL
from lgd_timm.publish.folder import load
from lgd_timm.publish.lgd_safetensors import read_lgd, write_lgd
from tests.helpers.reported import Make


@pytest.fixture
def shown(run_folder: Path) -> list[ShownRun]:
    return encode_groups(group_trials(read_trials([run_folder])[0]), data=None, split=None)


def encoded_of(shown: list[ShownRun]) -> Encoded:
    encoded = shown[0].encoded
    assert encoded is not None
    return encoded


# --------------------------------------------------------------------------------------------------------- computations


def test_a_confusion_matrix_counts_every_image_once() -> None:
    draw = torch.Generator().manual_seed(0)
    labels, answers = (torch.randint(0, 5, (200,), generator=draw) for _ in range(2))
    table = confusion_matrix(labels, answers, 6)
    for i in range(6):
        for j in range(6):
            assert table[i, j] == sum(a == i and b == j for a, b in zip(labels.tolist(), answers.tolist(), strict=True))


def test_ranks_are_those_of_sorting() -> None:
    cosines = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    expected = [1 + sorted(row.tolist(), reverse=True).index(row[i].item()) for i, row in enumerate(cosines)]
    assert diagonal_ranks(cosines).tolist() == expected
    assert diagonal_ranks(torch.eye(4)).tolist() == [1] * 4


# ------------------------------------------------------------------------------------------------------------- sections


def test_confusion_shows_student_and_teacher(shown: list[ShownRun]) -> None:
    (block,) = details.confusion(shown).blocks
    encoded = encoded_of(shown)
    assert encoded.labels is not None
    accuracy = 100 * (encoded.answers == encoded.labels).float().mean()
    assert [re.match(r"Confusion matrix of the (\w+)", picture.alt)[1] for picture in block.pictures] == [
        "student",
        "teacher",
    ]  # type: ignore[index]
    assert f"{accuracy:.1f} % right" in block.pictures[0].alt
    assert sorted(block.files) == ["4-confusion-1-student.png", "4-confusion-1-teacher.png"]


def test_the_most_frequent_confusion_is_told() -> None:
    table = torch.tensor([[8, 2, 0], [0, 1, 3], [0, 0, 4]])
    assert (
        details._worst(table, ("a", "b", "c"))
        == "The most frequent confusion: 75 % of the images of b are taken for c."
    )
    assert details._worst(torch.eye(3, dtype=torch.int64), ("a", "b", "c")) == "Every image got its own name."
    assert details._best_first(table).tolist() == [2, 0, 1]


def test_more_names_than_can_be_read_are_an_excerpt_of_the_least_known(shown: list[ShownRun]) -> None:
    names = 120
    labels = torch.arange(names).repeat(3)
    right = torch.arange(names) >= 50  # the first fifty are never known
    answers = torch.where(right.repeat(3), labels, (labels + 1) % names)
    bank = torch.eye(names)
    many = replace(
        encoded_of(shown),
        names=tuple(f"n{i}" for i in range(names)),
        bank=bank,
        student=bank[answers],
        teacher=None,
        labels=labels,
    )
    (block,) = details.confusion([replace(shown[0], encoded=many)]).blocks
    assert "Of 120 names, the 50 that it knows least are shown." in block.sentence
    (picture,) = block.pictures
    assert "58.3 % right" in picture.alt  # of all names, not of the excerpt


def test_banks_tell_the_ranks_and_grey_what_was_not_seen(shown: list[ShownRun], nasty: Path) -> None:
    banks = read_lgd(shown[0].trial.published / "lgd.safetensors").banks  # type: ignore[operator]
    assert banks.visual is not None
    cosines = torch.cosine_similarity(banks.visual[:, None], banks.text[None], dim=2)
    seen = banks.seen.nonzero()[:, 0].tolist()  # type: ignore[union-attr]
    first = sum(int(cosines[i].argmax()) == i for i in seen)
    (block,) = details.banks(shown).blocks
    assert (
        f"For {first} of the {len(seen)} names that were seen, its own text is the nearest of 3; the mean rank is"
        in block.sentence
    )
    (greyed,) = details.banks(encode_groups(group_trials(read_trials([nasty])[0]), data=None, split=None)).blocks
    assert "of the 2 names that were seen" in greyed.sentence
    assert greyed.sentence.endswith("Grey: 1 to which the teacher assigned no image.")


def test_an_objective_without_a_visual_bank_is_said(make: Make) -> None:
    folder = make("seed") / "published"
    published = load(folder)
    banks = replace(published.banks, visual=None, seen=None)
    write_lgd(folder / "lgd.safetensors", student=published.student, banks=banks, dtype=torch.float32)
    section = details.banks(encode_groups(group_trials(read_trials([folder.parent])[0]), data=None, split=None))
    assert (section.blocks, section.notes) == ((), ("test_resnet, lgd (paper): its objective has no visual bank.",))


def test_the_nearest_images_are_nearest_and_framed_by_their_label(shown: list[ShownRun]) -> None:
    encoded = encoded_of(shown)
    assert encoded.labels is not None
    (block,) = details.nearest(shown).blocks
    assert len(block.pictures) == 3
    side = SMALL + 2 * FRAME
    for name, picture in enumerate(block.pictures):
        order = sorted(range(12), key=lambda i: -float(encoded.similarities[i, name]))[:8]
        strip = np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB"))
        for place, i in enumerate(order):
            tile = strip[:, place * (side + GAP) : place * (side + GAP) + side]
            assert tuple(tile[0, 0]) == ((0x2E, 0x9E, 0x4F) if encoded.labels[i] == name else (0xD0, 0x3B, 0x2F))
            assert (tile[FRAME:-FRAME:2, FRAME:-FRAME:2] == encoded.image(i).permute(1, 2, 0).numpy()).all()
        right = sum(encoded.labels[i] == name for i in order)
        assert picture.caption == (encoded.names[name], f"{right} of 8 right")


def test_mistakes_are_mistakes_the_surest_first(shown: list[ShownRun]) -> None:
    encoded = encoded_of(shown)
    assert encoded.labels is not None
    wrong = (encoded.answers != encoded.labels).nonzero()[:, 0].tolist()
    assert wrong, "the tiny student makes no mistakes: give it another seed"
    (block,) = details.mistakes(shown).blocks
    assert block.sentence.startswith(f"{len(wrong)} of 12 images are named wrong. Of these mistakes the teacher makes ")
    captions = [picture.caption[1] for picture in block.pictures]
    sure = [float(re.match(r"(\d+) % sure", caption)[1]) for caption in captions]  # type: ignore[index]
    assert sure == sorted(sure, reverse=True)
    expected = sorted(f"{encoded.names[encoded.labels[i]]} → {encoded.names[encoded.answers[i]]}" for i in wrong)
    assert sorted(picture.caption[0] for picture in block.pictures) == expected
    assert all(picture.caption[2].startswith("teacher: ") for picture in block.pictures)


def test_a_student_without_mistakes_has_an_empty_sheet(shown: list[ShownRun]) -> None:
    encoded = encoded_of(shown)
    perfect = replace(encoded, labels=encoded.answers)
    (block,) = details.mistakes([replace(shown[0], encoded=perfect)]).blocks
    assert (block.sentence, block.pictures, block.files) == ("0 of 12 images are named wrong.", (), {})


def test_without_labels_there_are_grey_frames_and_a_reason(shown: list[ShownRun]) -> None:
    label_fault = [replace(shown[0], encoded=replace(encoded_of(shown), labels=None, label_fault="No labels here."))]
    near = details.nearest(label_fault)
    assert near.notes == ("test_resnet, lgd (paper): frames are grey. No labels here.",)
    assert [picture.caption[1] for picture in near.blocks[0].pictures] == ["8 images"] * 3
    for section in (details.confusion(label_fault), details.mistakes(label_fault)):
        assert (section.blocks, section.notes) == ((), ("test_resnet, lgd (paper): No labels here.",))
