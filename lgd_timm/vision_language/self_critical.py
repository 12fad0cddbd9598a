"""Learn by the scores of sampled captions: self-critical sequence training (Rennie et al., arXiv 1612.00563).

    L = -mean_i mean_k (r(c_ik) - b_i) sum_t log p(w_t | w_<t, image i)        c_ik: K captions of image i, drawn from p

r is CIDEr-D against all captions of the image, with the n-gram weights of all training images; w_t are the words of
c_ik, its [SEP] too. The end is a word of CIDEr-D's as well (the paper found that crucial): without it, captions that
break off, such as "a dog on a", score as if they were whole. b_i is the score of the greedy caption (section 3.3), or
for each c_ik the mean of the image's other samples (Luo, arXiv 2003.09971). Captions are drawn without dropout; the
gradient is that of the training pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..errors import LGDError
from .batch import Batch
from .data.sample import Dataset, captions_of
from .generate import generate_tokens, sample
from .metrics import CiderD, tokenize
from .model import VisionLanguageModel
from .recipe import Captions
from .stock import AnyModel
from .text import IGNORED, Tokenizer

END = " [SEP]"  # in CIDEr-D's captions; `tokenize` makes no such word


class SelfCritical:
    """Draws captions, scores them, and computes the loss.

    Args:
        task: with `self_critical`.
        dataset: what is learned from; batches name its samples.
        tokenizer: the model's.

    Raises:
        LGDError: a sample has no caption, or all are of one image.
        MissingExtra: pycocoevalcap is not installed.
    """

    def __init__(self, task: Captions, *, dataset: Dataset, tokenizer: Tokenizer) -> None:
        assert task.self_critical is not None
        self._task, self._tokenizer, self.config = task, tokenizer, task.self_critical
        _check_captions(dataset)
        self._images, captions = captions_of(dataset)
        self._references = [[tokenize(caption) + END for caption in one] for one in captions]
        self._reward = CiderD(self._references)

    @torch.no_grad()
    def draw(self, model: AnyModel, batch: Batch) -> tuple[Batch, Tensor]:
        """Let the model caption a batch's images.

        Args:
            model: its mode is left as it is.
            batch: B images, whose words are not looked at.

        Returns:
            The drawn captions as a batch of B K; their scores float32 [B, K], 0 to 10. Its advantages are how much
            better each is than its baseline.
        """
        tokenizer, count, device = self._tokenizer, self.config.samples, batch.words.device
        with _evaluating(model):
            rows = sample(model, batch, tokenizer=tokenizer, task=self._task, count=count)
            greedy = self._greedy(model, batch)
        references = [self._references[self._images[index]] for index in batch.items[:, 0].tolist()]
        repeated = [captions for captions in references for _ in range(count)]
        said = [self._words(row) for row in rows + greedy]
        scores = torch.tensor(self._reward(said, repeated + references[: len(greedy)]), device=device)
        drawn, baseline = scores[: len(rows)].view(-1, count), scores[len(rows) :, None]
        if not greedy:
            baseline = (drawn.sum(1, keepdim=True) - drawn) / (count - 1)
        captions = batch.repeated(count).with_words(rows, first=tokenizer.cls)
        return replace(captions, advantages=(drawn - baseline).flatten()), drawn

    def loss(self, model: AnyModel, batch: Batch) -> Tensor:
        """Compute the loss of captions that were drawn, float32 []."""
        assert batch.advantages is not None
        return -(batch.advantages * log_probabilities(model, batch, tokenizer=self._tokenizer, task=self._task)).mean()

    def _greedy(self, model: AnyModel, batch: Batch) -> list[list[int]]:
        if self.config.baseline != "greedy":
            return []
        return generate_tokens(model, batch, tokenizer=self._tokenizer, task=replace(self._task, beams=1))

    def _words(self, row: Sequence[int]) -> str:
        """A written caption as CIDEr-D takes it; one that is cut off has no end."""
        return tokenize(self._tokenizer.decode(row)) + (END if row[-1] == self._tokenizer.sep else "")


def _check_captions(dataset: Dataset) -> None:
    """Raises: LGDError where a sample has no caption."""
    for index in range(len(dataset)):
        sample = dataset[index]
        if not sample.captions:
            raise LGDError(f"{sample.key} of data.train has no caption, and task.self_critical is set. Leave it out.")


def log_probabilities(model: AnyModel, batch: Batch, *, tokenizer: Tokenizer, task: Captions) -> Tensor:
    """Compute the log probability with which `generate.sample` draws each of a batch's captions, float32 [B].

    Args:
        model: gets the gradient.
        batch: captions, by `Batch.with_words`.
        tokenizer, task: as of `generate`.
    """
    if task.predict == "masked":
        assert isinstance(model, VisionLanguageModel)
        states = model.masked_states(batch, mask_token=tokenizer.mask)
    else:
        states = model(batch).last[:, : batch.words.shape[1]]
    asked = batch.targets != IGNORED
    logits = model.word_logits(states[asked]).float()
    unwritten = torch.tensor(tokenizer.unwritten, device=logits.device)
    losses = cross_entropy(logits.index_fill(1, unwritten, -torch.inf), batch.targets[asked], reduction="none")
    return -losses.new_zeros(asked.shape).masked_scatter(asked, losses).sum(1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode within the block."""
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(mode)
