"""One example of a vision-language data set, and the interface of such data sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image
from torch import Tensor

Loader = Callable[[], Image.Image]


@dataclass(frozen=True)
class Sample:
    """An image with its captions, or with a question and its answers.

    Args:
        key: unique in the data set.
        image: the image, upright RGB, or a function that loads it.
        boxes: regions as float32 [N, 4]: left, top, right, bottom in pixels; None where the data has none, and cells of
            a grid serve instead.
        tags: names of objects in the image.
        captions: all captions of the image; empty for a question.
        question: None for a caption's sample.
        image_key: equal for samples of one image, whose features are stored once; None: no other sample has this image.
        answers: each accepted answer with its soft score, 0 to 1; None where they are not known, as in test splits.
    """

    key: str
    image: Image.Image | Loader = field(compare=False, repr=False)
    boxes: Tensor | None = field(default=None, compare=False)
    tags: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    question: str | None = None
    answers: dict[str, float] | None = None
    image_key: str | None = None

    def load(self) -> Image.Image:
        """Return the image, loaded if it was not. Raises: LGDError where it can't be read."""
        return self.image if isinstance(self.image, Image.Image) else self.image()


class Dataset(Protocol):
    """Samples by position.

    Attributes:
        fingerprint: of all that decides the samples, pixels included: stored features are found by it.
    """

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def images_of(dataset: Dataset) -> tuple[list[int], list[int]]:
    """Number the images of a data set, from 0, of which several samples may be.

    Returns:
        The number of each sample's image, and the first sample of each image.
    """
    known: dict[str, int] = {}
    numbers: list[int] = []
    samples: list[int] = []
    for index in range(len(dataset)):
        number = known.setdefault(dataset[index].image_key or f"\0{index}", len(known))
        numbers.append(number)
        if number == len(samples):
            samples.append(index)
    return numbers, samples


def captions_of(dataset: Dataset) -> tuple[list[int], list[list[str]]]:
    """Collect the captions of each image of a data set.

    Returns:
        The number of each sample's image, and the captions of all samples of each image.
    """
    numbers, samples = images_of(dataset)
    captions: list[list[str]] = [[] for _ in samples]
    for index, number in enumerate(numbers):
        captions[number] += dataset[index].captions
    return numbers, captions
