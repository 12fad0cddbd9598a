"""Score a model: captions by CIDEr-D, BLEU-4 and ROUGE-L, answers by VQA's accuracy, masked words by their share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..errors import LGDError
from ..utils.distributed import Ranks
from .batch import Batch, Encoded, Encoder, collate, frequent_answers
from .data.mosaics import MosaicsDataset
from .data.sample import Dataset, captions_of, images_of
from .features import FeatureTable
from .generate import generate
from .learner import correct_words, task_logits
from .metrics import caption_scores, tokenize, vqa_accuracy
from .model import VisionLanguageModel
from .recipe import Answers, Captions, Task
from .stock import AnyModel


class Scorer:
    """Scores a model on the samples of a data set.

    Args:
        dataset: the samples.
        encoder: the model's.
        features: what the model sees of them.
        batch_size: samples at once.
        device: where the model is.
        ranks: which share the samples out.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        encoder: Encoder,
        features: FeatureTable,
        batch_size: int,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self._dataset, self._encoder, self._features = dataset, encoder, features
        self._size, self._device, self._ranks = batch_size, device, ranks

    def __call__(self, model: AnyModel) -> dict[str, float]:
        """Compute the scores; the first says which checkpoint is best. Percent, but CIDEr-D: times 100."""
        task = self._encoder.task
        if isinstance(task, Captions):
            return self._captions(model)
        return self._answers(model) if isinstance(task, Answers) else self._words(model)

    def captions(self, model: AnyModel) -> dict[int, str]:
        """Write a caption of each image; its first sample's index -> caption."""
        task = self._encoder.task
        assert isinstance(task, Captions)
        return self._each(
            lambda index: self._encoder.ask(self._features[index]),
            lambda batch: generate(model, batch, tokenizer=self._encoder.tokenizer, task=task),
            asked=images_of(self._dataset)[1],
        )

    def answers(self, model: AnyModel) -> dict[int, str]:
        """Answer each question; index -> answer."""
        assert isinstance(model, VisionLanguageModel)
        return self._each(
            self._question, lambda batch: answer(model, batch, self._encoder), asked=range(len(self._dataset))
        )

    def _captions(self, model: AnyModel) -> dict[str, float]:
        return score_captions(self.captions(model), self._dataset)

    def _answers(self, model: AnyModel) -> dict[str, float]:
        found = self.answers(model)
        truths = [self._dataset[index].answers for index in found]
        known = [(said, truth) for said, truth in zip(found.values(), truths, strict=True) if truth is not None]
        if not known:
            raise LGDError("data.val has questions without answers, as test splits have. Give a split with answers.")
        return {"accuracy": 100 * vqa_accuracy([said for said, _ in known], [truth for _, truth in known])}

    def _words(self, model: AnyModel) -> dict[str, float]:
        found = self._each(
            lambda index: self._encoder.train(self._dataset[index], self._features[index], index=index, variant=0),
            lambda batch: _right_words(model, batch),
            asked=range(len(self._dataset)),
        )
        right, asked = (sum(pair[place] for pair in found.values()) for place in range(2))
        return {"word_accuracy": 100 * right / asked}

    def _question(self, index: int) -> Encoded:
        sample = self._dataset[index]
        if not sample.question:
            raise LGDError(f"{sample.key} of data.val has no question, and task.kind is answers. Give other data.")
        return self._encoder.ask(self._features[index], question=sample.question, key=sample.key)

    @torch.no_grad()
    def _each(
        self,
        encode: Callable[[int], Encoded],
        compute: Callable[[Batch], Sequence[Any]],
        *,
        asked: Sequence[int],
    ) -> dict[int, Any]:
        """What is computed of the samples that are asked for, by index, gathered from all ranks."""
        found: dict[int, Any] = {}
        for indices in _chunks(self._ranks.share(asked), self._size):
            batch = collate([encode(index) for index in indices]).to(self._device)
            found |= dict(zip(indices, compute(batch), strict=True))
        return self._ranks.gather(found)


def score_captions(found: Mapping[int, str], dataset: Dataset) -> dict[str, float]:
    """Score captions of a data set's images.

    Args:
        found: index of a sample -> caption of its image.
        dataset: whose captions are the references, those of all samples of an image. Of generated scenes the tiles that
            are named rightly count too.

    Returns:
        Percent, but CIDEr-D: times 100.
    """
    images, captions = captions_of(dataset)
    references = {str(index): captions[images[index]] for index in found}
    scores = caption_scores({str(index): caption for index, caption in found.items()}, references)
    exact = [tokenize(said) in map(tokenize, references[str(index)]) for index, said in found.items()]
    scores["exact"] = fmean(exact)
    if isinstance(dataset, MosaicsDataset):
        scores["tiles"] = fmean(dataset.named_rightly(said, index) for index, said in found.items())
    return {name: 100 * score for name, score in scores.items()}


def score_most_frequent(train: Dataset, val: Dataset, task: Task) -> dict[str, float]:
    """Score what looks at no image: the training data's most frequent caption or answer; none for other tasks."""
    if isinstance(task, Captions):
        found = Counter(caption for index in range(len(train)) for caption in train[index].captions)
        said = min(found, key=lambda caption: (-found[caption], caption))
        return score_captions(dict.fromkeys(images_of(val)[1], said), val)
    if not isinstance(task, Answers):
        return {}
    (most,) = frequent_answers(train, replace(task, count=1))
    truths = [truth for index in range(len(val)) if (truth := val[index].answers) is not None]
    return {"accuracy": 100 * vqa_accuracy([most] * len(truths), truths)}


@torch.no_grad()
def answer(model: VisionLanguageModel, batch: Batch, encoder: Encoder) -> list[str]:
    """Choose the most probable answer of each question."""
    logits = model.answer_logits(model(batch).last)
    return [encoder.answers[place] for place in logits.argmax(1).tolist()]


def _right_words(model: AnyModel, batch: Batch) -> list[tuple[int, int]]:
    """Of each sample, how many masked words are right and how many were asked."""
    logits: Tensor = task_logits(model, model(batch), batch)
    return correct_words(logits, batch)


def _chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))
