"""Write captions word by word, by beam search or drawn at random, with a cache of keys and values.

Names and regions do not see the caption, and words see earlier words alone (`masks.attention_mask`), so the states of
neither change as the caption grows: each is computed once and its keys and values are kept. A model that predicts
masked words is shown [MASK] at the next place, whose keys and values are taken out of the cache again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import require
from .batch import Batch
from .model import VisionLanguageModel
from .recipe import Captions
from .stock import AnyModel, CausalModel
from .text import Tokenizer


@torch.no_grad()
def generate(model: AnyModel, batch: Batch, *, tokenizer: Tokenizer, task: Captions) -> list[str]:
    """Write a caption of each image.

    Args:
        model: in eval mode.
        batch: images; its words are not looked at.
        tokenizer: the model's.
        task: how words are predicted, how many there may be, and how many beams are kept.

    Returns:
        The captions, of the beams' the one whose words are most probable on average.
    """
    return [tokenizer.decode(row) for row in generate_tokens(model, batch, tokenizer=tokenizer, task=task)]


@torch.no_grad()
def generate_tokens(model: AnyModel, batch: Batch, *, tokenizer: Tokenizer, task: Captions) -> list[list[int]]:
    """Write a caption of each image as tokens, each with its [SEP] unless it is cut off.

    Args: as of `generate`.
    """
    if isinstance(model, CausalModel):
        return [_until(row, tokenizer.sep) for row in model.generate(batch, task)]
    count, beams, device = len(batch.keys), task.beams, batch.words.device
    search = _Search(model, batch, tokenizer=tokenizer, masked=task.predict == "masked", beams=beams)
    tokens = torch.full((count * beams, 1), tokenizer.cls, device=device)
    # All beams begin alike: but the first, they wait for the first word.
    totals = torch.tensor([0.0] + [-torch.inf] * (beams - 1), device=device).repeat(count, 1)
    for _ in range(min(task.words, model.config.length - 1)):
        ended = (tokens[:, 1:] == tokenizer.sep).any(1)
        if ended.all():
            break
        scores = totals.view(-1, 1) + _of_ended(search.next_words(tokens), ended, sep=tokenizer.sep)
        totals, chosen = scores.view(count, -1).topk(beams, dim=1)
        parents = chosen // scores.shape[1] + beams * torch.arange(count, device=device)[:, None]
        tokens = torch.cat([tokens[parents.view(-1)], (chosen % scores.shape[1]).view(-1, 1)], 1)
        search.follow(parents.view(-1))
    return [_until(row, tokenizer.sep) for row in _best(tokens.view(count, beams, -1), totals, tokenizer)]


@torch.no_grad()
def sample(model: AnyModel, batch: Batch, *, tokenizer: Tokenizer, task: Captions, count: int) -> list[list[int]]:
    """Draw captions of each image from the model's own probabilities.

    Args:
        model, batch, tokenizer, task: as of `generate`.
        count: of captions of an image.

    Returns:
        Tokens of the captions, those of an image one after the other, each with its [SEP] unless it is cut off.
    """
    if isinstance(model, CausalModel):
        return [_until(row, tokenizer.sep) for row in model.sample(batch, task, count=count)]
    search = _Search(model, batch, tokenizer=tokenizer, masked=task.predict == "masked", beams=count)
    tokens = torch.full((len(batch.keys) * count, 1), tokenizer.cls, device=batch.words.device)
    for _ in range(min(task.words, model.config.length - 1)):
        ended = (tokens[:, 1:] == tokenizer.sep).any(1)
        if ended.all():
            break
        probabilities = _of_ended(search.next_words(tokens), ended, sep=tokenizer.sep).exp()
        tokens = torch.cat([tokens, torch.multinomial(probabilities, 1)], 1)
    return [_until(row, tokenizer.sep) for row in tokens[:, 1:].tolist()]


def _until(row: list[int], end: int) -> list[int]:
    """The row to its first `end`, with it."""
    return row[: row.index(end) + 1] if end in row else row


def _of_ended(scores: Tensor, ended: Tensor, *, sep: int) -> Tensor:
    """Let captions that have ended go on with [SEP] alone, at no cost."""
    only = torch.full_like(scores[0], -torch.inf)
    only[sep] = 0.0
    return torch.where(ended[:, None], only, scores)


def _best(tokens: Tensor, totals: Tensor, tokenizer: Tokenizer) -> list[list[int]]:
    """The caption of each image whose mean log probability is greatest, without [CLS]."""
    lengths = (tokens[:, :, 1:] != tokenizer.sep).sum(2) + 1
    best = (totals / lengths).argmax(1)
    rows: list[list[int]] = tokens[torch.arange(len(tokens)), best][:, 1:].tolist()
    return rows


class _Search:
    """Probabilities of next words, with what was computed of earlier ones."""

    def __init__(
        self, model: VisionLanguageModel, batch: Batch, *, tokenizer: Tokenizer, masked: bool, beams: int
    ) -> None:
        library: Any = require("transformers", extra="vl")
        self._model, self._masked, self._mask_token = model, masked, tokenizer.mask
        self._never = tokenizer.unwritten
        self._cache = library.DynamicCache()
        context = batch.context
        places = model.context_places(batch)
        model.run(
            model.embed_context(batch),
            mask=context[:, None, None, :].expand(-1, 1, context.shape[1], -1),
            places=places,
            segments=torch.ones_like(places),
            cache=self._cache,
        )
        self._cache.batch_repeat_interleave(beams)
        self._context = context.repeat_interleave(beams, 0)

    def next_words(self, tokens: Tensor) -> Tensor:
        """Log probabilities [N, V] of the word after tokens [N, t], of which all but the last were shown before."""
        last, place = tokens[:, -1:], tokens.shape[1] - 1
        shown = torch.cat([last, torch.full_like(last, self._mask_token)], 1) if self._masked else last
        count = shown.shape[1]
        words = torch.ones(count, place + count, dtype=torch.bool, device=tokens.device).tril(place)
        mask = torch.cat([self._context[:, None].expand(-1, count, -1), words.expand(len(tokens), -1, -1)], 2)
        places = torch.arange(place, place + count, device=tokens.device)[None]
        out = self._model.run(
            self._model.embed_words(shown),
            mask=mask[:, None],
            places=places,
            segments=torch.zeros_like(places),
            cache=self._cache,
        )
        if self._masked:
            self._cache.crop(-1)
        # Weights that diverged must not end a training within multinomial: its step finds that nothing is finite
        logits = self._model.word_logits(out.last_hidden_state[:, -1]).float().nan_to_num()
        logits[:, self._never] = -torch.inf
        return logits.log_softmax(1)

    def follow(self, parents: Tensor) -> None:
        """Take up the rows that go on."""
        self._cache.reorder_cache(parents)
