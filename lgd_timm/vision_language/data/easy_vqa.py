"""easy-VQA: 5,000 rendered pictures of one coloured shape, and 48,248 questions with 13 answers. Synthetic.

The files come with the Python package easy-vqa (MIT), which is not imported: it needs none of its code to be read.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from ...errors import LGDError, MissingExtra
from ...utils.schema import brief
from .images import load_file
from .json_files import fingerprint_of, read_json, wrong_file
from .sample import Sample

EXPECTED = "easy-VQA's questions.json, [[question, answer, number of the image], ...]"
LAST_IMAGE = 10**6  # the largest number that an image may have


Split = Literal["train", "test"]


@dataclass(frozen=True)
class EasyVqa:
    """A split of easy-VQA."""

    kind: ClassVar[str] = "easy_vqa"
    split: Split
    folder: str | None = None  # the data; null: that of the installed package

    def open(self) -> EasyVqaDataset:
        """Read the questions, but not the images. Raises: LGDError, MissingExtra."""
        return EasyVqaDataset(self.split, folder=self.folder)


class EasyVqaDataset:
    """One sample a question, with one answer of score 1.

    Args:
        split: 38,575 questions of 4,000 pictures to train on, 9,673 of 1,000 others to test.
        folder: the data, {train,test}/{questions.json,images/} and answers.txt; None: that of the installed package.

    Attributes:
        vocabulary: the 13 answers.

    Raises:
        LGDError: a file is missing or has another layout.
        MissingExtra: no folder is given, and the package is not installed.
    """

    def __init__(self, split: Split, *, folder: str | Path | None = None) -> None:
        root = _installed() if folder is None else Path(folder)
        path = root / split / "questions.json"
        entries = read_json(path, expected=EXPECTED)
        if not isinstance(entries, list) or not entries:
            raise wrong_file(path, "holds no list of questions", expected=EXPECTED)
        self.vocabulary = _read_answers(root / "answers.txt")
        self._entries = [self._check(path, entry, place) for place, entry in enumerate(entries)]
        self._images, self._split = root / split / "images", split
        numbers = {number for _, _, number in self._entries}
        if missing := [number for number in sorted(numbers) if not self._file(number).is_file()]:
            raise LGDError(
                f"{self._images} lacks {len(missing)} of {len(numbers)} images that {path} names, such as "
                f"{missing[0]}.png. Install easy-vqa==1.0 again, or copy the folder again."
            )
        self.fingerprint = fingerprint_of("easy_vqa", [path], [self._file(number) for number in sorted(numbers)])

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        question, answer, number = self._entries[index]
        return Sample(
            key=f"{self._split}-{index}",
            image=partial(load_file, self._file(number)),
            question=question,
            answers={answer: 1.0},
            image_key=str(number),
        )

    def _file(self, number: int) -> Path:
        return self._images / f"{number}.png"

    def _check(self, path: Path, entry: Any, place: int) -> tuple[str, str, int]:
        if not isinstance(entry, list) or [type(value) for value in entry] != [str, str, int]:
            raise wrong_file(path, f"has {brief(entry)} as question {place}", expected=EXPECTED)
        question, answer, number = entry
        if not 0 <= number <= LAST_IMAGE:
            raise wrong_file(path, f"has image {brief(number)} in question {place}", expected=EXPECTED)
        if answer not in self.vocabulary:
            raise wrong_file(
                path, f"has the answer {brief(answer)} in question {place}, which answers.txt lacks", expected=EXPECTED
            )
        return question, answer, number


def _installed() -> Path:
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise MissingExtra(
            "The package easy-vqa, which holds easy-VQA's pictures, is not installed. "
            "Install it with: pip install 'lgd_timm[vl]'"
        )
    return Path(spec.origin).parent / "data"


def _read_answers(path: Path) -> tuple[str, ...]:
    try:
        answers = tuple(dict.fromkeys(path.read_text(encoding="utf-8").split("\n")))
    except (OSError, ValueError) as error:
        raise LGDError(f"{path} can't be read ({error}). It lists easy-VQA's answers, one a line.") from error
    if not (kept := tuple(answer.strip() for answer in answers if answer.strip())):
        raise LGDError(f"{path} is empty. It lists easy-VQA's answers, one a line.")
    return kept
