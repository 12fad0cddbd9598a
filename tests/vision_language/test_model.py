"""The mask leaks nothing, padding changes nothing, attention is given before dropout, and the cache changes no word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lgd_timm.vision_language.batch import Batch, Encoded, collate
from lgd_timm.vision_language.features import ImageRegions
from lgd_timm.vision_language.generate import generate
from lgd_timm.vision_language.masks import attention_mask
from lgd_timm.vision_language.model import ModelConfig, VisionLanguageModel
from lgd_timm.vision_language.recipe import Captions
from lgd_timm.vision_language.text import Tokenizer, find_tokenizer

CPU = torch.device("cpu")
TOKENIZER: Tokenizer = find_tokenizer("words", texts=["a red square beside a blue one", "and a green dot"])


def model(**changes: Any) -> VisionLanguageModel:
    sizes: dict[str, Any] = {"layers": 2, "width": 24, "heads": 2, "inner": 48, "dropout": 0.2, "causal": True}
    torch.manual_seed(0)
    made = VisionLanguageModel(
        ModelConfig(features=8, vocabulary=len(TOKENIZER), length=12, tags=4, **{**sizes, **changes})
    )
    for parameter in made.parameters():  # as wide as after a training, so that a leak would be seen
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return made.eval()


def sample(*, words: list[int], tags: tuple[int, ...] = (6, 3), count: int = 3, seed: int = 0) -> Encoded:
    draw = torch.Generator().manual_seed(seed)
    regions = ImageRegions(torch.randn(count, 8, generator=draw), torch.rand(count, 6, generator=draw), ())
    return Encoded(key="a", words=words, targets=[-100] * len(words), tags=list(tags), regions=regions)


def batch(*samples: Encoded) -> Batch:
    return collate(samples).to(CPU)


def hidden(net: VisionLanguageModel, of: Batch) -> Tensor:
    with torch.no_grad():
        out = net(of, states=True)
    assert out.states is not None
    return torch.stack(list(out.states.hidden))


def test_a_later_word_changes_no_earlier_state() -> None:
    net = model()
    first = hidden(net, batch(sample(words=[2, 7, 8, 9, 3])))
    second = hidden(net, batch(sample(words=[2, 7, 8, 10, 5])))
    assert torch.equal(first[:, :, :3], second[:, :, :3])
    assert torch.equal(first[:, :, 5:], second[:, :, 5:])  # names and regions do not see the caption
    assert not torch.allclose(first[:, :, 3:5], second[:, :, 3:5])


def test_words_see_names_and_regions() -> None:
    net = model()
    first = hidden(net, batch(sample(words=[2, 7, 3])))
    for other in (sample(words=[2, 7, 3], tags=(8, 3)), sample(words=[2, 7, 3], seed=1)):
        changed = hidden(net, batch(other))
        assert not torch.isclose(first[-1, :, :3], changed[-1, :, :3], rtol=1e-3).all(2).any()


def test_questions_are_seen_both_ways() -> None:
    net = model(causal=False)
    first, second = (hidden(net, batch(sample(words=words))) for words in ([2, 7, 8, 3], [2, 7, 9, 3]))
    assert not torch.isclose(first[-1], second[-1], rtol=1e-3).all(2).any()


@pytest.mark.parametrize("causal", [True, False])
def test_what_a_batch_pads_changes_nothing(causal: bool) -> None:
    net = model(causal=causal)
    short = sample(words=[2, 7, 3], tags=(6,), count=2)
    alone = hidden(net, batch(short))[-1, 0]
    among = batch(short, sample(words=[2, 7, 8, 9, 10, 3], tags=(6, 7, 3), count=4))
    torch.testing.assert_close(hidden(net, among)[-1, 0][among.valid[0]], alone)


def test_the_mask_is_oscars() -> None:
    mask = attention_mask(torch.tensor([[True, True, False]]), torch.tensor([[True, False]]), causal=True)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 1, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 0],
    ]


def test_attention_is_given_before_dropout() -> None:
    net = model(dropout=0.5).train()
    out = net(batch(sample(words=[2, 7, 8, 3])), states=True)
    for part in out.states.attention:
        torch.testing.assert_close(part.sum(3), torch.ones(1, 2, 9))
    assert not torch.equal(out.last, net(batch(sample(words=[2, 7, 8, 3]))).last)  # there is dropout


def without_cache(net: VisionLanguageModel, of: Encoded, task: Captions) -> str:
    """Greedy words, each from the whole sentence anew."""
    words = [TOKENIZER.cls]
    while len(words) <= task.words:
        shown = [*words, TOKENIZER.mask] if task.predict == "masked" else words
        one = batch(of._replace(words=shown, targets=[-100] * len(shown)))
        with torch.no_grad():
            logits = net.word_logits(net(one).last[0, len(shown) - 1])
        logits[[TOKENIZER.pad, TOKENIZER.unknown, TOKENIZER.cls, TOKENIZER.mask]] = -torch.inf
        words.append(int(logits.argmax()))
        if words[-1] == TOKENIZER.sep:
            break
    return TOKENIZER.decode(words)


@pytest.mark.parametrize("predict", ["masked", "next"])
def test_the_cache_changes_no_word(predict: Any) -> None:
    net, task = model(), Captions(predict=predict, words=8)
    torch.nn.init.constant_(net.word_bias[TOKENIZER.sep], -2.0)  # random weights would say nothing
    images = [sample(words=[2], seed=seed, count=2 + seed) for seed in range(3)]
    found = generate(net, batch(*images), tokenizer=TOKENIZER, task=task)
    assert found == [without_cache(net, image, task) for image in images]
    assert len(set(found)) > 1


def score(net: VisionLanguageModel, of: Encoded, text: str, *, words: int) -> float:
    """Mean log probability of a caption's words and its end, special words left out."""
    ids = [TOKENIZER.cls, *TOKENIZER.encode(text), TOKENIZER.sep][: words + 1]
    one = batch(of._replace(words=ids, targets=[-100] * len(ids)))
    with torch.no_grad():
        logits = net.word_logits(net(one).last[0, : len(ids) - 1])
    logits[:, [TOKENIZER.pad, TOKENIZER.unknown, TOKENIZER.cls, TOKENIZER.mask]] = -torch.inf
    rows = logits.log_softmax(1)
    return float(rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].mean())


def test_enough_beams_find_the_most_probable_caption() -> None:
    """Of all captions of two words at most."""
    net, task = model(), Captions(predict="next", words=2, beams=200)
    words = [TOKENIZER.decode([number]) for number in range(5, len(TOKENIZER))]
    every = ["", *words, *(f"{first} {second}" for first in words for second in words)]
    images = [sample(words=[2], seed=seed) for seed in range(3)]
    found = generate(net, batch(*images), tokenizer=TOKENIZER, task=task)
    assert found == [max(every, key=lambda text: score(net, image, text, words=2)) for image in images]
