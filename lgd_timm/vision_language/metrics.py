"""Scores of captions and answers: BLEU-4, ROUGE-L, CIDEr-D and METEOR of COCO's evaluation, and VQA's accuracy.

pycocoevalcap's own classes compute the scores of captions. Its tokenizer, METEOR and SPICE are Java programs: a small
tokenizer stands in for the first, METEOR is computed where Java is installed, and SPICE never, as its program would
download a parser when it is first run.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from statistics import fmean
from typing import Any

from ..errors import LGDError, require
from .data.answers import answer_score

# Numbers with their separators, words with inner hyphens, the endings that the Penn Treebank splits off, other marks.
_TOKENS = re.compile(
    r"\d+(?:[.,:/]\d+)*|[^\W\d_]+(?=n't\b)|n't\b|'(?:s|m|d|ll|re|ve)\b|\w+(?:[-.]\w+)*|[^\w\s]", re.IGNORECASE
)
_LEFT_OUT = frozenset("'`.?!,:-;(){}[]\"\u201c\u201d\u2018\u2019")


def tokenize(text: str) -> str:
    """Split a caption as COCO's evaluation does: lower case, clitics split off, punctuation left out.

    It agrees with the Penn Treebank's tokenizer on plain English captions, not on every text.

    Returns:
        Tokens with a space between.
    """
    return " ".join(token for token in _TOKENS.findall(text.lower()) if token not in _LEFT_OUT)


def caption_scores(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Score captions against references.

    Args:
        candidates: image -> caption.
        references: image -> at least one caption; the same images.

    Returns:
        "cider" (CIDEr-D, 0 to 10), "bleu4" and "rouge_l" (0 to 1), and "meteor" (0 to 1) where Java is installed.
        Papers print them times 100.

    Raises:
        LGDError: images differ, one has no reference, no reference has a word, or Java can't run METEOR.
        MissingExtra: pycocoevalcap is not installed.
    """
    given, wanted = _tokenized(candidates, references)
    bleu, _ = _class("bleu.bleu", "Bleu")(4).compute_score(wanted, given, verbose=0)
    rouge, _ = _class("rouge.rouge", "Rouge")().compute_score(wanted, given)
    cider, _ = _class("cider.cider", "Cider")().compute_score(wanted, given)
    return {"cider": float(cider), "bleu4": float(bleu[3]), "rouge_l": float(rouge), **_meteor(given, wanted)}


def _meteor(given: Mapping[str, list[str]], wanted: Mapping[str, list[str]]) -> dict[str, float]:
    """METEOR, by its Java program; nothing where there is no Java."""
    if shutil.which("java") is None:
        return {}
    scorer = _class("meteor.meteor", "Meteor")()
    try:
        score, _ = scorer.compute_score(wanted, given)
    except (OSError, ValueError) as error:  # it ended early: a broken pipe, or a line that is no number
        scorer.meteor_p.kill()
        reason = scorer.meteor_p.stderr.read().decode(errors="replace").strip().partition("\n")[0] or error
        raise LGDError(f"Java can't run METEOR ({reason}). Mend Java, or take it off the PATH.") from error
    finally:
        if scorer.lock.locked():  # by what was interrupted: its __del__ would wait for it
            scorer.lock.release()
        for pipe in (scorer.meteor_p.stdin, scorer.meteor_p.stdout, scorer.meteor_p.stderr):
            with suppress(BrokenPipeError):  # what the program did not read
                pipe.close()
    return {"meteor": float(score)}


class CiderD:
    """CIDEr-D of single captions, n-grams weighed by how many images of a corpus have them in their captions.

    Captions are tokens with a space between, see `tokenize`.

    Args:
        corpus: captions of each image, such as of all training images.

    Raises:
        LGDError: there is one image or none, so that no n-gram is rarer than another.
        MissingExtra: pycocoevalcap is not installed.
    """

    def __init__(self, corpus: Iterable[Sequence[str]]) -> None:
        self._module = require("pycocoevalcap.cider.cider_scorer", extra="vl")
        counts, self._images = Counter[tuple[str, ...]](), 0
        for captions in corpus:
            counts.update({ngram for caption in captions for ngram in self._module.precook(caption)})
            self._images += 1
        if self._images < 2:
            raise LGDError(f"{self._images} images with captions give CIDEr-D's n-grams no weights. Give more.")
        # The scorer takes 1 for those that are left out. Of a Counter, unlike its own defaultdict, looking up adds none
        self._frequency = Counter({ngram: count for ngram, count in counts.items() if count > 1})

    def __call__(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Score captions, 0 to 10.

        Args:
            candidates: a caption of each image.
            references: captions of the same images.
        """
        pairs = list(zip(candidates, references, strict=True))
        chunks = (pairs[start : start + self._images] for start in range(0, len(pairs), self._images))
        return [score for chunk in chunks for score in self._scores(chunk)]

    def _scores(self, pairs: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
        scorer = self._module.CiderScorer()
        for candidate, references in pairs:
            scorer += (candidate, references)
        # It takes the number of its references for that of the corpus, and scores those that have a candidate
        scorer.crefs += [[]] * (self._images - len(pairs))
        scorer.document_frequency = self._frequency
        return [float(score) for score in scorer.compute_cider()]


def vqa_accuracy(predictions: Sequence[str], answers: Sequence[Mapping[str, float]]) -> float:
    """Compute VQA's accuracy, leave-one-out over annotators, of one answer for each question.

    Args:
        predictions: normalised here as the evaluation does.
        answers: of the same questions, each answer's soft score (`data.answers.soft_scores`).

    Returns:
        Mean score, 0 to 1.

    Raises:
        LGDError: there are none, or not as many answers as predictions.
    """
    if not predictions or len(predictions) != len(answers):
        raise LGDError(f"{len(predictions)} predictions for {len(answers)} questions. Give one for each.")
    return fmean(answer_score(said, scores) for said, scores in zip(predictions, answers, strict=True))


def _tokenized(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Candidates and references as pycocoevalcap takes them."""
    if not candidates or candidates.keys() != references.keys() or not all(references.values()):
        odd = sorted(candidates.keys() ^ references.keys()) or [key for key, texts in references.items() if not texts]
        raise LGDError(
            f"{len(candidates)} captions for {len(references)} images with references"
            f"{f', such as {odd[0]!r} without one' if odd else ''}. Give a caption and references for each image."
        )
    wanted = {key: [tokenize(text) for text in texts] for key, texts in references.items()}
    if not any(text for texts in wanted.values() for text in texts):
        raise LGDError("No reference has a word, so that captions can't be scored. Give captions with words.")
    return {key: [tokenize(candidates[key])] for key in wanted}, wanted


def _class(module: str, name: str) -> Any:
    return getattr(require(f"pycocoevalcap.{module}", extra="vl"), name)
