"""Each loss equals its formula, written as loops over float64 numbers; the queue is a ring."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lgd_timm.errors import RecipeError
from lgd_timm.vision_language.losses.attention import AttentionConfig, attention_loss, check_heads
from lgd_timm.vision_language.losses.blocks import States
from lgd_timm.vision_language.losses.hidden_mse import HiddenMSE, HiddenMSEConfig
from lgd_timm.vision_language.losses.logits import LogitsConfig, soft_cross_entropy
from lgd_timm.vision_language.losses.nce import NCEConfig, TokenNCE

LENGTHS = (5, 3, 4)  # tokens of each sample, of 5 places
VALID = torch.arange(5) < torch.tensor(LENGTHS)[:, None]


def states(width: int, *, heads: int = 2, blocks: int = 3, seed: int = 0) -> States:
    draw = torch.Generator().manual_seed(seed)
    hidden = [torch.randn(3, 5, width, generator=draw) for _ in range(blocks)]
    attention = [torch.randn(3, heads, 5, 5, generator=draw).softmax(3) for _ in range(blocks)]
    return States(hidden, attention, VALID)


def mean_over_tokens(values: list[list[float]]) -> float:
    return sum(sum(row) / len(row) for row in values) / len(values)


def naive_attention(ours: Tensor, theirs: Tensor) -> float:
    values = []
    for sample, length in enumerate(LENGTHS):
        row = []
        for i in range(length):
            each = [
                sum((float(ours[sample, h, i, j]) - float(theirs[sample, h, i, j])) ** 2 for j in range(5))
                for h in range(ours.shape[1])
            ]
            row.append(sum(each) / len(each))
        values.append(row)
    return mean_over_tokens(values)


def test_attention_is_summed_over_keys() -> None:
    ours, theirs = states(4), states(6, seed=1)
    loss = attention_loss(ours, theirs, AttentionConfig(blocks=[[-1, 0]]))
    assert float(loss) == pytest.approx(naive_attention(ours.attention[-1], theirs.attention[0]), rel=1e-5)


def test_attention_of_several_blocks_and_of_mean_heads() -> None:
    ours, theirs = states(4, heads=2), states(6, heads=3, seed=1)
    loss = attention_loss(ours, theirs, AttentionConfig(heads="mean", blocks=[[0, 1], [2, 2]]))
    parts = [
        naive_attention(ours.attention[s].mean(1, keepdim=True), theirs.attention[t].mean(1, keepdim=True))
        for s, t in ((0, 1), (2, 2))
    ]
    assert float(loss) == pytest.approx(sum(parts) / 2, rel=1e-5)


def test_heads_that_can_not_be_compared() -> None:
    with pytest.raises(RecipeError, match=r"student has 2 heads and the teacher 3.*heads mean"):
        check_heads(AttentionConfig(), student=(2, 2), teacher=(2, 3))
    check_heads(AttentionConfig(heads="mean"), student=(2, 2), teacher=(2, 3))
    with pytest.raises(RecipeError, match=r"names block 4 of the teacher, which has 3"):
        check_heads(AttentionConfig(blocks=[[0, 4]]), student=(2, 2), teacher=(3, 2))


def cosine(first: list[float], second: list[float]) -> float:
    length = math.sqrt(sum(x * x for x in first)) * math.sqrt(sum(x * x for x in second))
    return sum(x * y for x, y in zip(first, second, strict=True)) / length


def test_nce_is_its_formula() -> None:
    torch.manual_seed(0)
    ours, theirs = states(4), states(6, seed=1)
    nce = TokenNCE(NCEConfig(queue=7, temperature=0.3, blocks=[[1, -1]]), student=4, teacher=6)
    projected = nce.projectors[0](ours.hidden[1]).double()
    values = []
    for sample, length in enumerate(LENGTHS):
        row = []
        for i in range(length):
            s, t = projected[sample, i].tolist(), theirs.hidden[-1][sample, i].tolist()
            positive = math.exp(cosine(s, t) / 0.3)
            negatives = sum(math.exp(cosine(s, q) / 0.3) for q in nce.queue[0].tolist())
            row.append(-math.log(positive / (positive + negatives)))
        values.append(row)
    assert nce(ours, theirs).item() == pytest.approx(mean_over_tokens(values), rel=1e-5)


def test_hidden_mse_is_its_formula() -> None:
    torch.manual_seed(0)
    ours, theirs = states(4), states(6, seed=1)
    loss = HiddenMSE(HiddenMSEConfig(weight=1.0), student=4, teacher=6)
    projected = loss.projectors[0](ours.hidden[-1])
    values = [
        [
            sum((a - b) ** 2 for a, b in zip(projected[n, i].tolist(), theirs.hidden[-1][n, i].tolist(), strict=True))
            / 6
            for i in range(length)
        ]
        for n, length in enumerate(LENGTHS)
    ]
    assert loss(ours, theirs).item() == pytest.approx(mean_over_tokens(values), rel=1e-5)


def test_soft_labels_are_their_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(4, 5, generator=draw) for _ in range(2))
    rows = soft_cross_entropy(ours, theirs, LogitsConfig(temperature=2.0))
    for row, s, t in zip(rows.tolist(), ours.tolist(), theirs.tolist(), strict=True):
        below = [sum(math.exp(x / 2) for x in logits) for logits in (s, t)]
        terms = [math.exp(y / 2) / below[1] * math.log(math.exp(x / 2) / below[0]) for x, y in zip(s, t, strict=True)]
        assert row == pytest.approx(-4 * sum(terms), rel=1e-5)


def test_padding_changes_no_loss() -> None:
    torch.manual_seed(0)
    ours, theirs = states(4), states(6, seed=1)
    nce, mse = TokenNCE(NCEConfig(queue=7), student=4, teacher=6), HiddenMSE(HiddenMSEConfig(), student=4, teacher=6)
    spoilt = States(
        [torch.where(VALID[..., None], part, 1e3) for part in ours.hidden],
        [torch.where(VALID[:, None, :, None], part, 1e3) for part in ours.attention],
        VALID,
    )
    for loss in (nce, mse, lambda s, t: attention_loss(s, t, AttentionConfig())):
        assert loss(ours, theirs).item() == loss(spoilt, theirs).item()


def test_a_teacher_gets_no_gradient() -> None:
    ours, theirs = states(4), states(6, seed=1)
    for part in (*ours.hidden, *ours.attention, *theirs.hidden, *theirs.attention):
        part.requires_grad_()
    nce = TokenNCE(NCEConfig(queue=7), student=4, teacher=6)
    mse = HiddenMSE(HiddenMSEConfig(), student=4, teacher=6)
    (nce(ours, theirs) + mse(ours, theirs) + attention_loss(ours, theirs, AttentionConfig())).backward()
    assert all(part.grad is None for part in (*theirs.hidden, *theirs.attention))
    assert ours.hidden[-1].grad is not None
    assert ours.attention[-1].grad is not None
    assert [part.grad is not None for part in ours.hidden] == [False, False, True]


def of_teacher(rows: Tensor) -> States:
    return States([rows[None]], [], torch.ones(1, len(rows), dtype=torch.bool))


def test_the_queue_is_a_ring() -> None:
    """First in, first out; it wraps; of more rows than it holds the last stay; what is not finite is left out."""
    nce = TokenNCE(NCEConfig(queue=5), student=4, teacher=4)
    rows = normalize(torch.randn(13, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    first = nce.queue.clone()
    nce.update(of_teacher(3 * rows[:3]))
    assert torch.allclose(nce.queue[0], torch.cat([rows[:3], first[0, 3:]]))
    nce.update(of_teacher(rows[3:6]))
    assert torch.allclose(nce.queue[0], torch.stack([rows[5], rows[1], rows[2], rows[3], rows[4]]))
    assert int(nce.place) == 1
    nce.update(of_teacher(rows[6:13]))
    assert torch.allclose(nce.queue[0], rows[[12, 8, 9, 10, 11]])
    before = nce.queue.clone()
    nce.update(of_teacher(torch.full((2, 4), torch.nan)))
    assert torch.equal(nce.queue, before)


def test_a_queue_goes_into_the_state() -> None:
    first, second = (TokenNCE(NCEConfig(queue=5), student=4, teacher=4) for _ in range(2))
    first.update(of_teacher(torch.eye(4)))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.queue, second.queue)
    assert int(second.place) == 4


WRONG = {
    "a temperature": lambda: NCEConfig(temperature=0.0),
    "another": lambda: LogitsConfig(temperature=-1.0),
    "half a pair": lambda: AttentionConfig(blocks=[[1]]),
    "no pair": lambda: HiddenMSEConfig(blocks=[]),
}


@pytest.mark.parametrize("name", WRONG)
def test_switches_that_mean_nothing(name: str) -> None:
    with pytest.raises(RecipeError, match="distillation"):
        WRONG[name]()
