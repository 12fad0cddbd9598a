"""Small copies of the layouts of public vision-language data sets, to the key, and shards of plain tiles."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lgd_timm.data.index import INFO

Dict = dict[str, Any]
NAMES = ("airplane", "cat", "dog", "ship")
SHADES = (40, 90, 140, 190)  # of the tiles, by class


def save_image(path: Path, *, shade: int = 100, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (shade, shade, shade)).save(path)


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def coco_captions() -> Dict:
    """What captions_val2014.json says of two images, five and two captions, and a third without one."""
    images = [
        {
            "license": 5,
            "file_name": f"COCO_val2014_{number:012d}.png",
            "coco_url": f"http://images.cocodataset.org/val2014/COCO_val2014_{number:012d}.jpg",
            "height": 8,
            "width": 8,
            "date_captured": "2013-11-14 16:28:13",
            "flickr_url": "http://example.invalid/1.jpg",
            "id": number,
        }
        for number in (9, 25, 30)
    ]
    texts = {9: ["A cat.", "A cat on a mat.", "The cat", "One cat", "cat \n sitting"], 25: ["A dog.", "Dogs play."]}
    pairs = [(number, text) for number, found in texts.items() for text in found]
    annotations = [{"image_id": number, "id": 770 + at, "caption": text} for at, (number, text) in enumerate(pairs)]
    return {"info": {"year": 2014}, "images": images, "licenses": [{"id": 5}], "annotations": annotations}


def write_coco_captions(folder: Path) -> Path:
    content = coco_captions()
    for image in content["images"]:
        save_image(folder / "val2014" / image["file_name"], shade=image["id"])
    return write_json(folder / "captions_val2014.json", content)


def vqa_questions() -> Dict:
    asked = {9000: (9, "Is it a cat?"), 9001: (9, "How many?"), 25000: (25, "What is it?")}
    return {
        "info": {"version": "2.0"},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": {"name": "CC"},
        "data_subtype": "val2014",
        "questions": [
            {"image_id": image, "question": text, "question_id": key} for key, (image, text) in asked.items()
        ],
    }


def vqa_annotations() -> Dict:
    given = {
        9000: (9, "yes", ["yes"] * 10),
        9001: (9, "2", ["two"] * 7 + ["2"] * 2 + ["a pair"]),
        25000: (25, "dog", ["dog"] * 2 + ["the dog"] + ["a puppy"] * 4 + ["wolf"] * 3),
    }
    annotations = [
        {
            "question_type": "what",
            "multiple_choice_answer": common,
            "answers": [
                {"answer": text, "answer_confidence": "yes", "answer_id": at + 1} for at, text in enumerate(texts)
            ],
            "image_id": image,
            "answer_type": "other",
            "question_id": key,
        }
        for key, (image, common, texts) in given.items()
    ]
    return {"info": {}, "license": {}, "data_subtype": "val2014", "data_type": "mscoco", "annotations": annotations}


def write_vqa(folder: Path) -> tuple[Path, Path, Path]:
    """Questions, annotations and the folder of images."""
    for number in (9, 25):
        save_image(folder / "val2014" / f"COCO_val2014_{number:012d}.png", shade=number)
    questions = write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", vqa_questions())
    return questions, write_json(folder / "v2_mscoco_val2014_annotations.json", vqa_annotations()), folder / "val2014"


def write_easy_vqa(folder: Path) -> Path:
    for split in ("train", "test"):
        entries = [["what color is the shape?", "blue", 0], ["is there a circle?", "no", 1]]
        write_json(folder / split / "questions.json", entries)
        for number in range(2):
            save_image(folder / split / "images" / f"{number}.png")
    (folder / "answers.txt").write_text("circle\nblue\nno\nyes")
    return folder


def png(shade: int, *, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), shade, np.uint8)).save(file, "png")
    return file.getvalue()


def write_shards(root: Path, samples: list[dict[str, bytes]], *, per_tar: int = 8, names: tuple[str, ...] = ()) -> Path:
    """Shards in timm's format; the splits `train` and `val` are the same tars."""
    root.mkdir(parents=True, exist_ok=True)
    parts = [samples[start : start + per_tar] for start in range(0, len(samples), per_tar)]
    files = [f"t-train-{number:05d}.tar" for number in range(len(parts))]
    for number, (file, part) in enumerate(zip(files, parts, strict=True)):
        with tarfile.open(root / file, "w") as tar:
            for place, sample in enumerate(part):
                for field, data in sample.items():
                    member = tarfile.TarInfo(f"{number * per_tar + place:09d}.{field}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    split = {"name": "train", "num_samples": len(samples), "filenames": files, "shard_lengths": [*map(len, parts)]}
    write_json(root / INFO, {"splits": {"train": split, "val": split}, "class_names": list(names)})
    return root


def write_tiles(root: Path, *, count: int = 20) -> Path:
    """Tiles whose shade is that of their class."""
    labels = [number % len(NAMES) for number in range(count)]
    return write_shards(
        root, [{"png": png(SHADES[label]), "cls": str(label).encode()} for label in labels], names=NAMES
    )
