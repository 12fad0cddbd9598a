"""Learn by the scores of sampled captions: self-critical sequence training (Rennie et al., arXiv 1612.00563).

    L = -mean_i mean_k (r(c_ik) - b_i) sum_t log p(w_t | w_<t, image i)        c_ik: K captions of image i, drawn from p

r is CIDEr-D against the image's captions, with the n-gram weights of all training images; w_t are the words of c_ik,
its [SEP] too. b_i is the score of the greedy caption (section 3.3), or for each c_ik the mean of the image's other
samples (Luo, arXiv 2003.09971). Captions are drawn without dropout; the gradient is that of the training pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .batch import Batch
from .data.sample import Dataset
from .generate import generate, sample
from .metrics import CiderD
from .model import VisionLanguageModel
from .recipe import Captions
from .stock import AnyModel
from .text import IGNORED, Tokenizer


class SelfCritical:
    """Draws captions, scores them, and computes the loss.

    Args:
        task: with `self_critical`.
        dataset: what is learned from; batches name its samples.
        tokenizer: the model's.

    Raises:
        LGDError: no two images have captions.
        MissingExtra: pycocoevalcap is not installed.
    """

    def __init__(self, task: Captions, *, dataset: Dataset, tokenizer: Tokenizer) -> None:
        assert task.self_critical is not None
        self._task, self._dataset, self._tokenizer, self.config = task, dataset, tokenizer, task.self_critical
        self._reward = CiderD(dataset[index].captions for index in range(len(dataset)))

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
        references = [self._dataset[index].captions for index in batch.items[:, 0].tolist()]
        said = [tokenizer.decode(row) for row in rows]
        repeated = [captions for captions in references for _ in range(count)]
        scores = torch.tensor(self._reward(said + greedy, repeated + references[: len(greedy)]), device=device)
        drawn, baseline = scores[: len(rows)].view(-1, count), scores[len(rows) :, None]
        if not greedy:
            baseline = (drawn.sum(1, keepdim=True) - drawn) / (count - 1)
        captions = batch.repeated(count).with_words(rows, first=tokenizer.cls)
        return replace(captions, advantages=(drawn - baseline).flatten()), drawn

    def loss(self, model: AnyModel, batch: Batch) -> Tensor:
        """Compute the loss of captions that were drawn, float32 []."""
        assert batch.advantages is not None
        return -(batch.advantages * log_probabilities(model, batch, tokenizer=self._tokenizer, task=self._task)).mean()

    def _greedy(self, model: AnyModel, batch: Batch) -> list[str]:
        if self.config.baseline != "greedy":
            return []
        return generate(model, batch, tokenizer=self._tokenizer, task=replace(self._task, beams=1))


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
