"""Answers are normalised, scored and counted as VQA's evaluation does."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from lgd_timm.errors import LGDError
from lgd_timm.vision_language.data.answers import answer_score, answer_vocabulary, normalize_answer, soft_scores


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Yes.", "yes"),
        ("The  Cat", "cat"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("1,000", "1000"),
        ("two", "2"),
        ("none", "0"),
        ("twenty", "twenty"),
        ("3.5 ft.", "3.5 ft"),
        ("t-shirt", "t shirt"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("an\tapple\n", "apple"),
        ("hello, world", "hello world"),
        ("", ""),
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


def naive(prediction: str, given: Sequence[str]) -> float:
    """The evaluation's rule, written out: for each annotator, compare with all the others."""
    if len(set(given)) > 1:
        given, prediction = [normalize_answer(text) for text in given], normalize_answer(prediction)
    matches = [
        sum(other.lower() == prediction.lower() for at, other in enumerate(given) if at != left)
        for left in range(len(given))
    ]
    return sum(min(1.0, found / 3) for found in matches) / len(given)


def test_soft_scores_are_the_evaluations_accuracy() -> None:
    draw = random.Random(0)
    words = ["yes", "Yes.", "two", "2", "dog", "black/white", "net"]
    for _ in range(300):
        given = draw.choices(words[: draw.randint(1, len(words))], k=10)
        scores = soft_scores(given)
        for word in words:
            said = normalize_answer(word) if len(set(given)) > 1 else word
            assert answer_score(said, scores) == pytest.approx(naive(said, given), abs=1e-12)


def test_where_all_agree_the_letter_counts() -> None:
    assert soft_scores(["the net"] * 10) == {"the net": 1.0}
    assert answer_score("The net", {"the net": 1.0}) == 1
    assert answer_score("net", {"the net": 1.0}) == 0


def test_the_vocabulary_goes_by_count_then_by_alphabet() -> None:
    given = ["No", "yes", "two", "2", "yes", "red", "a", "no"]
    assert answer_vocabulary(given) == ("2", "no", "yes", "red")
    assert answer_vocabulary(given, least=2) == ("2", "no", "yes")
    assert answer_vocabulary(given, most=1) == ("2",)
    with pytest.raises(LGDError, match="No answer occurs 3 times among 7"):
        answer_vocabulary(given, least=3)
