"""COCO's captions, VQA v2 and easy-VQA: read from small copies of their layouts; a wrong file gets one clear error."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgd_timm.errors import LGDError
from lgd_timm.utils.schema import build
from lgd_timm.vision_language.data.coco_captions import CocoCaptions, CocoCaptionsDataset
from lgd_timm.vision_language.data.easy_vqa import EasyVqa, EasyVqaDataset
from lgd_timm.vision_language.data.sources import Source
from lgd_timm.vision_language.data.vqa_v2 import VqaV2, VqaV2Dataset
from tests.helpers.vl_files import write_coco_captions, write_easy_vqa, write_vqa


def coco(folder: Path) -> CocoCaptionsDataset:
    return CocoCaptions(str(folder / "captions_val2014.json"), images=str(folder / "val2014")).open()


def vqa(folder: Path) -> VqaV2Dataset:
    names = {"questions": "v2_OpenEnded_mscoco_val2014_questions.json", "images": "val2014"}
    names["annotations"] = "v2_mscoco_val2014_annotations.json"
    return VqaV2(**{key: str(folder / name) for key, name in names.items()}).open()


def easy(folder: Path) -> EasyVqaDataset:
    return EasyVqa("train", folder=str(folder)).open()


def test_coco_gives_a_sample_an_image_with_all_its_captions(tmp_path: Path) -> None:
    write_coco_captions(tmp_path)
    dataset = coco(tmp_path)
    assert [dataset[index].key for index in range(len(dataset))] == ["9", "25"]  # 30 has no caption
    assert dataset[0].captions == ("A cat.", "A cat on a mat.", "The cat", "One cat", "cat sitting")
    assert dataset[1].load().getpixel((0, 0)) == (25, 25, 25)
    assert dataset[0].question is None
    assert dataset[0].answers is None


def test_vqa_gives_a_sample_a_question_with_soft_scores(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    dataset = vqa(tmp_path)
    assert [dataset[index].question for index in range(3)] == ["Is it a cat?", "How many?", "What is it?"]
    assert dataset[0].answers == {"yes": 1.0}
    assert dataset[1].answers == pytest.approx({"2": 1.0, "pair": 0.3})  # "two" and "2" are one answer
    assert dataset[2].answers == pytest.approx({"dog": 0.9, "puppy": 1.0, "wolf": 0.9})
    assert dataset[2].load().getpixel((0, 0)) == (25, 25, 25)
    assert dataset.common_answers == ("yes", "2", "dog")
    assert [dataset[index].image_key for index in range(3)] == ["9", "9", "25"]  # features are stored once an image


def test_a_test_split_of_vqa_has_no_answers(tmp_path: Path) -> None:
    questions, _, images = write_vqa(tmp_path)
    dataset = VqaV2(str(questions), images=str(images)).open()
    assert len(dataset) == 3
    assert all(dataset[index].answers is None for index in range(3))


def test_easy_vqa_of_the_installed_package_is_whole() -> None:
    pytest.importorskip("easy_vqa", reason="comes with lgd_timm[vl]")
    train, test = EasyVqa("train").open(), EasyVqa("test").open()
    assert (len(train), len(test), len(train.vocabulary)) == (38_575, 9_673, 13)
    assert train[0].question == "what is the blue shape?"
    assert train[0].answers == {"rectangle": 1.0}
    assert train[0].load().size == (64, 64)
    assert train.fingerprint != test.fingerprint


@pytest.mark.parametrize(("write", "read"), [(write_coco_captions, coco), (write_vqa, vqa), (write_easy_vqa, easy)])
def test_a_data_set_can_be_pickled_and_its_fingerprint_follows_its_files(
    tmp_path: Path, write: Callable[[Path], Any], read: Callable[[Path], Any]
) -> None:
    write(tmp_path)
    dataset = read(tmp_path)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[0] == dataset[0]
    assert copy[0].load().tobytes() == dataset[0].load().tobytes()
    assert read(tmp_path).fingerprint == dataset.fingerprint
    file = next(path for path in sorted(tmp_path.rglob("*.json")) if "test" not in path.parts)
    file.write_text(file.read_text() + " ")
    assert read(tmp_path).fingerprint != dataset.fingerprint


def test_recipes_name_data_sets_by_kind() -> None:
    source = build(Source, {"kind": "mosaics", "shards": "data/cifar10", "task": "question"}, where="data")
    assert (source.kind, source.task, source.scenes) == ("mosaics", "question", 20_000)
    with pytest.raises(LGDError, match=r"data.kind = 'coco'; choose one of .*coco_captions, vqa_v2, easy_vqa"):
        build(Source, {"kind": "coco"}, where="data")


def put(*path: Any) -> Callable[[Any], None]:
    """A change of JSON: all but the last of `path` lead to what the last replaces; a missing last part is removed."""
    *way, last, value = path

    def change(content: Any) -> None:
        for part in way:
            content = content[part]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return change


ANNOTATIONS, QUESTIONS = "v2_mscoco_val2014_annotations.json", "v2_OpenEnded_mscoco_val2014_questions.json"
WRONG = [
    (write_coco_captions, coco, "captions_val2014.json", put("images", None), "has no list of images"),
    (write_coco_captions, coco, "captions_val2014.json", put("annotations", {}), "has no list of annotations"),
    (write_coco_captions, coco, "captions_val2014.json", put("annotations", 1, 7), r"annotations\[1\] must be"),
    (write_coco_captions, coco, "captions_val2014.json", put("annotations", 0, "caption", None), r"lacks .*caption"),
    (write_coco_captions, coco, "captions_val2014.json", put("annotations", 0, "caption", 3), "caption = 3 is no str"),
    (write_coco_captions, coco, "captions_val2014.json", put("annotations", 0, "image_id", 77), "unknown image 77"),
    (write_coco_captions, coco, "captions_val2014.json", put("images", 0, "id", 10**30), "is outside"),
    (write_coco_captions, coco, "captions_val2014.json", put("images", 0, "id", True), "is no int"),
    (write_coco_captions, coco, "captions_val2014.json", put("images", 0, "id", 25), "the same image id twice"),
    (write_coco_captions, coco, "captions_val2014.json", put("annotations", 0, "id", 771), "same annotation id twice"),
    (write_coco_captions, coco, "captions_val2014.json", put("images", 0, "file_name", "no.png"), "lacks 1 of the 2"),
    (write_coco_captions, coco, "captions_val2014.json", put("images", 0, "file_name", "../x.png"), "outside"),
    (write_vqa, vqa, QUESTIONS, put("questions", []), "has no list of questions"),
    (write_vqa, vqa, QUESTIONS, put("questions", 0, "question", 1), "question = 1 is no str"),
    (write_vqa, vqa, QUESTIONS, put("questions", 0, "image_id", 25), "of image 9, .* of image 25"),
    (write_vqa, vqa, ANNOTATIONS, put("annotations", 0, None), "answers to 2 of the 3 questions"),
    (write_vqa, vqa, ANNOTATIONS, put("annotations", 0, "question_id", 1), "unknown question 1"),
    (write_vqa, vqa, ANNOTATIONS, put("annotations", 0, "answers", []), "where 1 to 100 texts are"),
    (write_vqa, vqa, ANNOTATIONS, put("annotations", 0, "answers", ["yes"]), "is no dict"),
    (write_vqa, vqa, ANNOTATIONS, put("annotations", 0, "answers", 2, "answer", 5), "'int': 1"),
    (write_easy_vqa, easy, "train/questions.json", put(0, ["what?", "blue"]), "as question 0"),
    (write_easy_vqa, easy, "train/questions.json", put(1, 2, True), "as question 1"),
    (write_easy_vqa, easy, "train/questions.json", put(1, 2, -1), "image -1 in question 1"),
    (write_easy_vqa, easy, "train/questions.json", put(1, 2, 5), "lacks 1 of 2 images"),
    (write_easy_vqa, easy, "train/questions.json", put(1, 1, "pink"), "answer 'pink' in question 1"),
]


@pytest.mark.parametrize(("write", "read", "file", "change", "complaint"), WRONG)
def test_a_wrong_file_says_what_is_wrong(
    tmp_path: Path, write: Callable, read: Callable, file: str, change: Callable, complaint: str
) -> None:
    write(tmp_path)
    content = json.loads((tmp_path / file).read_text())
    change(content)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(LGDError, match=complaint) as error:
        read(tmp_path)
    assert tmp_path.name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff", "1" * 5000, "[1", "null", "[]", "{}"])
@pytest.mark.parametrize(("write", "read"), [(write_coco_captions, coco), (write_vqa, vqa), (write_easy_vqa, easy)])
def test_a_file_of_other_content_says_what_is_expected(
    tmp_path: Path, write: Callable, read: Callable, text: str
) -> None:
    write(tmp_path)
    for file in tmp_path.rglob("*.json"):
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(LGDError, match=r"Expected: .*\{|Expected: .*\["):
        read(tmp_path)


def test_a_missing_file_or_folder_of_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(LGDError, match=r"captions_val2014.json can't be read"):
        coco(tmp_path)
    questions, _, images = write_vqa(tmp_path)
    for path in images.iterdir():
        path.unlink()
    with pytest.raises(LGDError, match="holds no image with a name as COCO's"):
        vqa(tmp_path)
    (images / f"COCO_val2014_{9:012d}.png").write_bytes(b"no image")
    with pytest.raises(LGDError, match=re.escape(f"lacks the image of 1 of 3 questions in {questions}, such as 25")):
        vqa(tmp_path)
    (images / f"COCO_val2014_{25:012d}.png").write_bytes(b"no image")
    with pytest.raises(LGDError, match="no image"):
        vqa(tmp_path)[0].load()
