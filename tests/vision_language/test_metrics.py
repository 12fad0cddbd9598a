"""Scores of captions equal pycocoevalcap's; VQA's accuracy is the official one."""

from __future__ import annotations

import math
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from lgd_timm.errors import LGDError
from lgd_timm.vision_language.metrics import CiderD, caption_scores, tokenize, vqa_accuracy

WORDS = ["a", "the", "cat", "dog", "ship", "on", "at", "under", "mat", "top", "left", "right", "red", "two"]


def made_captions(count: int = 40) -> tuple[dict[str, str], dict[str, list[str]]]:
    draw = random.Random(0)

    def sentence() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))

    references = {str(number): [sentence() for _ in range(draw.randint(1, 5))] for number in range(count)}
    candidates = {key: draw.choice([sentence(), texts[0], ""]) for key, texts in references.items()}
    return candidates, references


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A cat.", "a cat"),
        ("A black-and-white cat, sitting!", "a black-and-white cat sitting"),
        ("It's the dog's; they don't.", "it 's the dog 's they do n't"),
        ("At 3:30 on 1,000.5 m", "at 3:30 on 1,000.5 m"),
        ('"Two" (cats) - here...', "two cats here"),
        ("a  man \n riding", "a man riding"),
        ("", ""),
    ],
)
def test_tokens_are_those_of_the_penn_treebank_without_punctuation(text: str, tokens: str) -> None:
    assert tokenize(text) == tokens


def test_caption_scores_equal_pycocoevalcaps() -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    candidates, references = made_captions()
    given = {key: [text] for key, text in candidates.items()}  # made of tokens
    scores = caption_scores(candidates, references)
    assert scores["bleu4"] == pytest.approx(Bleu(4).compute_score(references, given, verbose=0)[0][3], abs=1e-6)
    assert scores["rouge_l"] == pytest.approx(Rouge().compute_score(references, given)[0], abs=1e-6)
    assert scores["cider"] == pytest.approx(Cider().compute_score(references, given)[0], abs=1e-6)
    assert min(scores.values()) > 0.05


def test_bleu_and_rouge_equal_their_formulas() -> None:
    candidates, references = {"1": "A cat sat on the red mat."}, {"1": ["the cat sat on the mat", "a cat on a red mat"]}
    given, wanted = tokenize(candidates["1"]).split(), [text.split() for text in references["1"]]
    precisions = []
    for order in range(1, 5):
        found, *allowed = (
            Counter(tuple(text[at : at + order]) for at in range(len(text) - order + 1)) for text in (given, *wanted)
        )
        precisions.append(sum(min(n, max(one[gram] for one in allowed)) for gram, n in found.items()) / found.total())
    scores = caption_scores(candidates, references)
    # seven words against references of six: no brevity penalty
    assert scores["bleu4"] == pytest.approx(math.prod(precisions) ** 0.25, abs=1e-6)
    precision, recall = 5 / 7, 5 / 6  # "cat sat on the mat", "a cat on red mat"
    assert scores["rouge_l"] == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision), abs=1e-6)


def test_cider_of_single_captions_over_their_own_images_averages_to_cider() -> None:
    candidates, references = made_captions()
    keys = list(references)
    each = CiderD(references.values())([candidates[key] for key in keys], [references[key] for key in keys])
    assert sum(each) / len(each) == pytest.approx(caption_scores(candidates, references)["cider"], abs=1e-9)


def test_a_caption_has_its_score_whatever_else_is_scored() -> None:
    """More candidates than the corpus has images, too; a reference alone scores 10, where it has four words."""
    corpus = [["a red square on a table"], ["a blue ball", "the ball is blue"], ["two cats on a red sofa"]]
    cider = CiderD(corpus)
    pairs = [
        (text, captions) for captions in corpus for text in ("a red square on a table", "blue", "no such word", "")
    ]
    together = cider([text for text, _ in pairs], [captions for _, captions in pairs])
    alone = [cider([text], [captions])[0] for text, captions in pairs]
    assert together == pytest.approx(alone, abs=1e-12)
    assert together[0] == pytest.approx(10)
    assert together[2] == 0
    assert cider(["a red square on a table"], [["a red square on a table"]]) == pytest.approx([10])


def test_words_of_many_images_weigh_less() -> None:
    cider = CiderD([["a cat"], ["a dog"], ["a cow"], ["a tall ship"]])
    common, rare = cider(["a", "ship"], [["a tall ship"]] * 2)
    assert common == 0 < rare


def test_one_image_weighs_no_words() -> None:
    with pytest.raises(LGDError, match="1 images with captions"):
        CiderD([["a cat"]])


def test_vqa_accuracy_is_the_mean_score() -> None:
    answers = [{"yes": 1.0}, {"2": 1.0, "pair": 0.3}, {"dog": 0.9, "puppy": 1.0}]
    assert vqa_accuracy(["yes", "two", "a dog"], answers) == pytest.approx((1 + 1 + 0.9) / 3)
    assert vqa_accuracy(["no", "pair", "cat"], answers) == pytest.approx(0.1)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(LGDError, match="1 captions for 2 images with references, such as 'b'"):
        caption_scores({"a": "x"}, {"a": ["x"], "b": ["y"]})
    with pytest.raises(LGDError, match="such as 'a' without one"):
        caption_scores({"a": "x"}, {"a": []})
    with pytest.raises(LGDError, match="No reference has a word"):
        caption_scores({"a": "x"}, {"a": ["...", ""]})
    with pytest.raises(LGDError, match="0 captions"):
        caption_scores({}, {})
    with pytest.raises(LGDError, match="1 predictions for 2 questions"):
        vqa_accuracy(["yes"], [{"yes": 1.0}] * 2)


def java(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """A program of this name is all that the PATH has."""
    path = folder / "java"
    path.write_text(f"#!{sys.executable}\n{program}")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")
def test_meteor_is_that_of_pycocoevalcap() -> None:
    """Of a caption that is its reference it is 1, of one that shares no word 0."""
    same, other = ({"a": text} for text in ("a cat sat on the mat", "seven planes"))
    references = {"a": ["a cat sat on the mat"]}
    assert caption_scores(same, references)["meteor"] == pytest.approx(1.0, abs=0.01)
    assert caption_scores(other, references)["meteor"] == 0


def test_meteor_is_what_its_program_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java(
        tmp_path,
        monkeypatch,
        "import sys\n"
        "for line in sys.stdin:\n"
        "    scored = line.startswith('SCORE')\n"
        "    print('1 2' if scored else '\\n'.join(['0.5'] * line.count('|||') + ['0.25']), flush=True)\n",
    )
    candidates, references = made_captions()
    assert caption_scores(candidates, references)["meteor"] == 0.25


def test_a_java_that_does_not_run_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java(tmp_path, monkeypatch, "import sys\nsys.exit('Could not reserve enough space')\n")
    with pytest.raises(LGDError, match=r"Java can't run METEOR \(Could not reserve enough space\)"):
        caption_scores(*made_captions())


def test_without_java_there_is_no_meteor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert set(caption_scores(*made_captions())) == {"cider", "bleu4", "rouge_l"}
