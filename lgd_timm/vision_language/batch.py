"""Samples as tokens, and batches of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import LGDError
from ..transfer.job import Item
from .data.sample import Dataset, Sample
from .features import FeatureTable, ImageRegions
from .recipe import Answers, Captions, Task, TextRecipe
from .text import IGNORED, Tokenizer, masked_words, next_words


class Encoded(NamedTuple):
    """One sample as tokens.

    Attributes:
        key: its name.
        words: tokens of the text.
        targets: the token that each place predicts, or IGNORED.
        tags: tokens of the objects' names.
        regions: what the model sees of the image.
        answers: soft scores float32 [A]; None for other tasks.
        item: (index, variant), by which stored states are found.
        teacher: what the teacher sees of the same boxes; None without one.
    """

    key: str
    words: list[int]
    targets: list[int]
    tags: list[int]
    regions: ImageRegions
    answers: Tensor | None = None
    item: tuple[int, int] = (0, 0)
    teacher: ImageRegions | None = None


@dataclass(frozen=True)
class Batch:
    """B samples of L words, G tags and R regions: T = L + G + R tokens. Each part is as long as its longest sample.

    Attributes:
        keys: names.
        words, targets: int64 [B, L].
        text: whether a place of the text holds a token, bool [B, L].
        tags: int64 [B, G].
        features: float [B, R, F].
        boxes: float32 [B, R, 6].
        context: whether a place of tags and regions holds a token, bool [B, G + R].
        answers: soft scores float32 [B, A], or None.
        items: (index, variant), int64 [B, 2].
        teacher: the teacher's features of the boxes, float [B, R, F'], or None.
        advantages: of captions that the model drew, how much better each is than expected, float32 [B]; else None.
    """

    keys: list[str]
    words: Tensor
    targets: Tensor
    text: Tensor
    tags: Tensor
    features: Tensor
    boxes: Tensor
    context: Tensor
    answers: Tensor | None
    items: Tensor
    teacher: Tensor | None = None
    advantages: Tensor | None = None

    @property
    def valid(self) -> Tensor:
        """Whether a place holds a token, bool [B, T]."""
        return torch.cat([self.text, self.context], 1)

    def to(self, device: torch.device) -> Batch:
        """Move the batch to a device; features become float32."""
        moved = {field.name: _to(getattr(self, field.name), device) for field in fields(self)}
        return replace(self, **moved)

    def repeated(self, count: int) -> Batch:
        """Repeat each sample, one after the other, to B * count of them."""
        changed = {field.name: _repeated(getattr(self, field.name), count) for field in fields(self)}
        return replace(self, **changed)

    def with_words(self, rows: Sequence[Sequence[int]], *, first: int) -> Batch:
        """Show other texts, each word of which is predicted from those before it.

        Args:
            rows: tokens of B texts, without `first`.
            first: the token that all begin with.
        """
        words, text = _padded([[first, *row[:-1]] for row in rows])
        targets, _ = _padded([list(row) for row in rows], fill=IGNORED)
        device = self.words.device
        return replace(self, words=words.to(device), text=text.to(device), targets=targets.to(device))

    def of_teacher(self) -> Batch:
        """The batch as the teacher sees it: the same tokens, with its own features of the boxes."""
        assert self.teacher is not None
        return replace(self, features=self.teacher)


def _repeated(value: Any, count: int) -> Any:
    if isinstance(value, Tensor):
        return value.repeat_interleave(count, 0)
    return None if value is None else [one for one in value for _ in range(count)]


def _to(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.to(device)
    return value.float() if value.is_floating_point() else value


def collate(samples: Sequence[Encoded]) -> Batch:
    """Make a batch of samples."""
    words, text = _padded([sample.words for sample in samples])
    targets, _ = _padded([sample.targets for sample in samples], fill=IGNORED)
    tags, tag_mask = _padded([sample.tags for sample in samples])
    features, region_mask = _stacked([sample.regions.features for sample in samples])
    answers = [sample.answers for sample in samples if sample.answers is not None]
    teacher = [sample.teacher.features for sample in samples if sample.teacher is not None]
    return Batch(
        keys=[sample.key for sample in samples],
        words=words,
        targets=targets,
        text=text,
        tags=tags,
        features=features,
        boxes=_stacked([sample.regions.boxes for sample in samples])[0],
        context=torch.cat([tag_mask, region_mask], 1),
        answers=torch.stack(answers) if answers else None,
        items=torch.tensor([sample.item for sample in samples]),
        teacher=_stacked(teacher)[0] if teacher else None,
    )


def _padded(rows: Sequence[list[int]], *, fill: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as int64 [B, longest], and where they hold something."""
    values, mask = _stacked([torch.tensor(row, dtype=torch.int64) for row in rows])
    return values.masked_fill(~mask, fill), mask


def _stacked(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors [N_i, ...] as [B, longest, ...] with zeros, and where they hold something, bool [B, longest]."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), mask


class Encoder:
    """Turns samples into tokens.

    Args:
        task: what is predicted.
        text: lengths.
        tokenizer: of words.
        answers: the answers that can be chosen; none for other tasks.
        seed: of maskings and of which caption is shown.
    """

    def __init__(
        self, task: Task, text: TextRecipe, *, tokenizer: Tokenizer, answers: Sequence[str] = (), seed: int = 0
    ) -> None:
        self.task, self.text, self.tokenizer, self.seed = task, text, tokenizer, seed
        self.answers = tuple(answers)
        self._places = {answer: place for place, answer in enumerate(answers)}

    def train(self, sample: Sample, regions: ImageRegions, *, index: int, variant: int) -> Encoded:
        """Encode a sample to learn from. What is drawn depends on (seed, variant, index) alone."""
        draw = np.random.default_rng((self.seed, variant, index))
        ids = self.tokenizer.sentence(self._text(sample, draw), length=self.text.length)
        words, targets = self._targets(ids, draw)
        return Encoded(
            key=sample.key,
            words=words,
            targets=targets,
            tags=self.tokenizer.tags(regions.tags, length=self.text.tags),
            regions=regions,
            answers=self._scores(sample) if isinstance(self.task, Answers) else None,
            item=(index, variant),
        )

    def ask(self, regions: ImageRegions, *, question: str = "", key: str = "") -> Encoded:
        """Encode a question about an image; without one, the beginning of a caption: [CLS]."""
        ids = self.tokenizer.sentence(question, length=self.text.length) if question else [self.tokenizer.cls]
        tags = self.tokenizer.tags(regions.tags, length=self.text.tags)
        return Encoded(key=key, words=ids, targets=[IGNORED] * len(ids), tags=tags, regions=regions)

    def _text(self, sample: Sample, draw: np.random.Generator) -> str:
        """The text that a task shows: one of the captions, or the question."""
        captions, question = sample.captions, sample.question
        if isinstance(self.task, Answers):
            captions = ()
        elif isinstance(self.task, Captions):
            question = None
        texts = [*captions, *([question] if question else [])]
        if not texts:
            needed = {"captions": "caption", "answers": "question"}.get(self.task.kind, "text")
            raise LGDError(f"{sample.key} has no {needed}, and task.kind is {self.task.kind}. Give other data.")
        return texts[int(draw.integers(len(texts)))]

    def _targets(self, ids: list[int], draw: np.random.Generator) -> tuple[list[int], list[int]]:
        task = self.task
        if isinstance(task, Answers):
            return ids, [IGNORED] * len(ids)
        if isinstance(task, Captions) and task.predict == "next":
            return next_words(ids)
        return masked_words(ids, tokenizer=self.tokenizer, share=task.share, most=task.most, draw=draw)

    def _scores(self, sample: Sample) -> Tensor:
        scores = torch.zeros(len(self.answers))
        for answer, score in (sample.answers or {}).items():
            if answer in self._places:
                scores[self._places[answer]] = score
        return scores


@dataclass(frozen=True)
class TrainingSet:
    """What a run learns from, as tokens: items are (index, epoch). See `transfer.job.Pictures`.

    Args:
        dataset: the samples.
        encoder: turns them into tokens.
        features: what the model sees of them.
        teacher: what the teacher sees; None without one, or where its states are stored.
        variants: maskings of a sample, which recur; 0: another each epoch.
    """

    dataset: Dataset
    encoder: Encoder
    features: FeatureTable
    teacher: FeatureTable | None = None
    variants: int = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: Item) -> Encoded:
        index, epoch = item
        variant = epoch % self.variants if self.variants else epoch
        encoded = self.encoder.train(self.dataset[index], self.features[index], index=index, variant=variant)
        return encoded if self.teacher is None else encoded._replace(teacher=self.teacher[index])


def all_texts(dataset: Dataset) -> Iterable[str]:
    """All captions, questions and names of objects of a data set."""
    for index in range(len(dataset)):
        sample = dataset[index]
        yield from (*sample.captions, *sample.tags, *([sample.question] if sample.question else []))


def frequent_answers(dataset: Dataset, task: Task) -> tuple[str, ...]:
    """List the answers that can be chosen, the most frequent first; none for other tasks.

    Raises:
        LGDError: the data has none.
    """
    if not isinstance(task, Answers):
        return ()
    found = Counter(answer for index in range(len(dataset)) for answer in (dataset[index].answers or {}))
    often = sorted((a for a in found if found[a] >= task.occurrences), key=lambda answer: (-found[answer], answer))
    if not often:
        raise LGDError("No answer occurs often enough in data.train. Give questions with answers.")
    return tuple(often[: task.count])
