"""Answers of VQA: their normalisation, their soft scores, and the vocabulary that a classifier chooses from.

Source: VQA's evaluation, https://visualqa.org/evaluation.html, and `vqaEval.py` of github.com/GT-Vision-Lab/VQA.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ...errors import LGDError

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = {"a", "an", "the"}
# The evaluation mends these where one apostrophe is missing; others, such as "shes", it leaves as they are.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_MENDED = {
    "somebody'd": "somebodyd",  # the evaluation's own slip
    **{
        word[:at] + word[at + 1 :]: word
        for word in _CONTRACTIONS.split()
        for at, letter in enumerate(word)
        if letter == "'"
    },
}
_FULL_AGREEMENT = 3  # an answer that three annotators gave is right


def normalize_answer(text: str) -> str:
    """Normalise an answer as VQA's evaluation does.

    Lower case, without punctuation and articles, number words up to ten as digits, apostrophes mended.
    """
    given = text = " ".join(text.split())
    thousands = re.search(r"\d,\d", given)
    for mark in _PUNCTUATION:  # inside of a word it separates: "black/white" has two words
        joined = f"{mark} " in given or f" {mark}" in given or thousands
        text = text.replace(mark, "" if joined else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)


def soft_scores(given: Sequence[str]) -> dict[str, float]:
    """Score each answer by how many annotators gave it.

    With all of N annotators but one, an answer is right as min(1, matches / 3); this is averaged over the N ways to
    leave one out. Answers are normalised unless all annotators wrote the same.

    Args:
        given: the annotators' answers, ten in VQA v2.

    Returns:
        Answer -> accuracy of a model that says it, 0 to 1; answers of accuracy 0 are left out.
    """
    stripped = [" ".join(answer.split()) for answer in given]
    agreed = len(set(stripped)) == 1
    counts = Counter(answer.lower() if agreed else normalize_answer(answer) for answer in stripped)
    scores = {answer: _left_out(count, len(given)) for answer, count in counts.items()}
    return {answer: score for answer, score in scores.items() if score > 0}


def answer_score(prediction: str, answers: Mapping[str, float]) -> float:
    """Look a prediction up in an example's soft scores.

    It is normalised, unless there is only one answer, of which annotators agreed to the letter.
    """
    plain = " ".join(prediction.split()).lower()
    return answers.get(plain if len(answers) == 1 else normalize_answer(plain), 0.0)


def answer_vocabulary(answers: Iterable[str], *, least: int = 1, most: int | None = None) -> tuple[str, ...]:
    """List the answers that a classifier chooses from, most frequent first, equally frequent ones by the alphabet.

    Args:
        answers: one for each question, such as VQA's `multiple_choice_answer`; they are normalised.
        least: how often an answer has to occur. With 9 on VQA v2's train and val split there are 3,129.
        most: how many are kept at most.

    Raises:
        LGDError: none is left.
    """
    counts = Counter(map(normalize_answer, answers))
    del counts[""]
    kept = [answer for answer, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count >= least]
    if not kept[:most]:
        raise LGDError(
            f"No answer occurs {least} times among {counts.total()}. Give more questions, or a smaller count."
        )
    return tuple(kept[:most])


def _left_out(count: int, total: int) -> float:
    """Mean accuracy over the ways to leave out one of `total` annotators, `count` of whom gave the answer."""
    return (
        count * min(1.0, (count - 1) / _FULL_AGREEMENT) + (total - count) * min(1.0, count / _FULL_AGREEMENT)
    ) / total
