"""VQA v2 as it is distributed: questions, annotations, and a folder of COCO's images.

v2_OpenEnded_mscoco_train2014_questions.json, v2_mscoco_train2014_annotations.json, train2014/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from ...errors import LGDError
from .answers import soft_scores
from .images import coco_files, load_file
from .json_files import Id, check_known, check_unique, fingerprint_of, read_json, read_list, wrong_file
from .sample import Sample

QUESTIONS = "VQA v2's questions, {questions: [{question_id, image_id, question}, ...], ...}"
ANNOTATIONS = (
    "VQA v2's annotations, {annotations: [{question_id, image_id, multiple_choice_answer, "
    "answers: [{answer, ...}, ...], ...}, ...], ...}"
)
MOST_ANNOTATORS = 100  # of a question; VQA has ten


@dataclass(frozen=True)
class _Question:
    question_id: Id
    image_id: Id
    question: str


@dataclass(frozen=True)
class _Annotation:
    question_id: Id
    image_id: Id
    multiple_choice_answer: str
    answers: list[dict]


@dataclass(frozen=True)
class VqaV2:
    """A split of VQA v2."""

    kind: ClassVar[str] = "vqa_v2"
    questions: str  # the file, such as v2_OpenEnded_mscoco_train2014_questions.json
    images: str  # the folder of COCO's images, such as train2014
    annotations: str | None = None  # the file of the answers; null for a test split

    def open(self) -> VqaV2Dataset:
        """Read the files, but not the images. Raises: LGDError."""
        return VqaV2Dataset(self.questions, annotations=self.annotations, images=self.images)


class VqaV2Dataset:
    """One sample a question.

    Args:
        questions: the file.
        annotations: the file; None for a test split, whose samples then have no answers.
        images: the folder of COCO's images.

    Attributes:
        common_answers: each question's most common answer as annotated, for `answer_vocabulary`; empty in a test split.

    Raises:
        LGDError: a file has another layout, questions lack their annotations, or an image is missing.
    """

    def __init__(self, questions: str | Path, *, annotations: str | Path | None, images: str | Path) -> None:
        path = Path(questions)
        content = read_json(path, expected=QUESTIONS)
        self._questions = read_list(path, content, "questions", _Question, expected=QUESTIONS)
        ids = [question.question_id for question in self._questions]
        check_unique(path, ids, "question_id", expected=QUESTIONS)
        self._given: dict[int, tuple[str, ...]] = {}
        self.common_answers: tuple[str, ...] = ()
        if annotations is not None:
            self._read_annotations(Path(annotations), questions=path)
        self._files = coco_files(Path(images))
        if missing := [question for question in self._questions if question.image_id not in self._files]:
            raise LGDError(
                f"{images} lacks the image of {len(missing)} of {len(ids)} questions in {path}, such as "
                f"{missing[0].image_id}. Give the folder of the same split."
            )
        read = [path] if annotations is None else [path, Path(annotations)]
        used = {question.image_id: self._files[question.image_id] for question in self._questions}
        self.fingerprint = fingerprint_of("vqa_v2", read, used.values())

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> Sample:
        entry = self._questions[index]
        given = self._given.get(entry.question_id)
        return Sample(
            key=str(entry.question_id),
            image=partial(load_file, self._files[entry.image_id]),
            question=entry.question,
            answers=None if given is None else soft_scores(given),
            image_key=str(entry.image_id),
        )

    def _read_annotations(self, path: Path, *, questions: Path) -> None:
        content = read_json(path, expected=ANNOTATIONS)
        entries = read_list(path, content, "annotations", _Annotation, expected=ANNOTATIONS)
        asked = {question.question_id: question.image_id for question in self._questions}
        check_unique(path, [entry.question_id for entry in entries], "question_id", expected=ANNOTATIONS)
        check_known(path, (entry.question_id for entry in entries), asked, "question", expected=ANNOTATIONS)
        if len(entries) < len(asked):
            raise LGDError(
                f"{path} has answers to {len(entries)} of the {len(asked)} questions in {questions}. "
                "Give the annotations of the same split."
            )
        for entry in entries:
            if entry.image_id != asked[entry.question_id]:
                raise LGDError(
                    f"{path} asks question {entry.question_id} of image {entry.image_id}, {questions} of image "
                    f"{asked[entry.question_id]}. Give the two files of one split."
                )
            self._given[entry.question_id] = _texts(path, entry)
        self.common_answers = tuple(entry.multiple_choice_answer for entry in entries)


def _texts(path: Path, entry: _Annotation) -> tuple[str, ...]:
    texts: Sequence[Any] = [answer.get("answer") for answer in entry.answers]
    if not 0 < len(texts) <= MOST_ANNOTATORS or any(not isinstance(text, str) for text in texts):
        counts = Counter(type(text).__name__ for text in texts)
        raise wrong_file(
            path,
            f"has question {entry.question_id} with answers of type {dict(counts)}, "
            f"where 1 to {MOST_ANNOTATORS} texts are",
            expected=ANNOTATIONS,
        )
    return tuple(texts)
