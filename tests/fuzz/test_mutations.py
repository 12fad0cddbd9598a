"""Mutated JSON, tar, npy and COCO files: an answer, or one LGDError in one line, in bounded time and memory.

A few mutations of each in the default run; `pytest -m slow tests/fuzz` makes 2,000.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lgd_timm.data.index import open_shards
from lgd_timm.data.sidecar import npy_header, parse_npy, read_record
from lgd_timm.data.stored_embeddings import open_stored
from lgd_timm.data.subset import read_subset
from lgd_timm.data.tar import IndexedTar
from lgd_timm.data.verify_shards import check_shards
from lgd_timm.data.vocabulary import load_vocabulary
from lgd_timm.hub.api import Snapshot, checked_snapshot
from lgd_timm.hub.cache import RepoCache
from lgd_timm.hub.status import _metrics
from lgd_timm.hub.timm_models import check_config
from lgd_timm.hub.verify import FileFacts, _read_stamps, facts_of, wrong_files
from lgd_timm.publish.card import card_of
from lgd_timm.publish.check import check_folder
from lgd_timm.publish.folder import load
from lgd_timm.publish.metrics import read_metrics
from lgd_timm.publish.training_curve import read_log, training_curve, training_seconds
from lgd_timm.teachers import spec_from_dict
from lgd_timm.transfer.detect.annotations import read_annotations
from lgd_timm.transfer.run import _read_metrics
from lgd_timm.utils.checkpoint import all_checkpoints, best_checkpoint, check_file, read_score
from lgd_timm.utils.files import write_json
from lgd_timm.vision_language.data.coco_captions import CocoCaptionsDataset
from lgd_timm.vision_language.data.json_lines import JsonLines
from lgd_timm.vision_language.data.vqa_v2 import VqaV2Dataset
from lgd_timm.vision_language.folder import open_model
from lgd_timm.vision_language.recipe import DataRegions
from lgd_timm.vision_language.regions import FromData
from lgd_timm.vision_language.run import pretrain
from lgd_timm.vision_language.text import Tokenizer
from tests.helpers.fuzzing import Refused, bounded_memory, survive
from tests.helpers.mutations import mutated_bytes, mutated_json
from tests.helpers.vl_data import recipe, write_scenes

FEW, MANY = 25, 2000
counts = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


def mutate(path: Path, count: int, read: Callable[[], Any]) -> int:
    """Read so many mutations of a JSON file; returns how many were read without an error."""
    content = path.read_bytes()
    value, draw, answered = json.loads(content), random.Random(path.name), 0
    with bounded_memory():
        for number in range(count):
            path.write_bytes(mutated_json(value, draw))
            found = survive(read, case=(path.name, number, path.read_bytes()[:3000]))
            answered += not isinstance(found, Refused)
    path.write_bytes(content)
    read()
    return answered


@counts
def test_indexes(shard_folder: Path, tmp_path: Path, count: int) -> None:
    folder = Path(shutil.copytree(shard_folder, tmp_path / "shards"))
    assert mutate(folder / "_info.json", count, lambda: len(open_shards(folder, split="train"))) < count
    mutate(folder / "_info.json", count // 20, lambda: check_shards(folder))


@counts
@pytest.mark.parametrize("name", ["_teacher.json", "_info.json"])
def test_folders_of_embeddings(taught_folder: Path, tmp_path: Path, name: str, count: int) -> None:
    copy = Path(shutil.copytree(taught_folder, tmp_path / "taught"))
    folder, shards = next(copy.glob("*-light-*")), open_shards(copy, split="train")

    def read() -> None:
        stored = open_stored(folder)
        stored.check(shards, stored.views)
        spec_from_dict(stored.metadata.get("teacher"))

    mutate(folder / name, count, read)
    mutate(folder / name, count // 20, lambda: check_shards(copy))


@counts
def test_metrics(published_folder: Path, tmp_path: Path, count: int) -> None:
    folder = Path(shutil.copytree(published_folder, tmp_path / "published"))
    file = folder / "metrics.json"
    write_json(file, {key: value for key, value in json.loads(file.read_text()).items() if key != "sha256"})
    mutate(file, count, lambda: (read_metrics(folder), _metrics(folder)))
    mutate(file, count // 2, lambda: card_of(folder))
    mutate(file, count // 20, lambda: load(folder))


@counts
def test_configs(published_folder: Path, tmp_path: Path, count: int) -> None:
    folder = Path(shutil.copytree(published_folder, tmp_path / "published"))
    mutate(folder / "config.json", count, lambda: (check_config(folder), check_config(folder, published=True)))
    mutate(folder / "config.json", count // 20, lambda: load(folder))
    mutate(folder / "config.json", count // 20, lambda: check_folder(folder))


@counts
@pytest.mark.parametrize("name", ["state.json", "score.json"])
def test_checkpoints(run_folder: Path, tmp_path: Path, name: str, count: int) -> None:
    folder = Path(shutil.copytree(run_folder / "checkpoints", tmp_path / "checkpoints"))
    checkpoint = all_checkpoints(folder)[-1]
    if name == "score.json":
        write_json(checkpoint / name, {"zero_shot_top1": 1.5})
        mutate(checkpoint / name, count, lambda: (read_score(checkpoint), best_checkpoint(folder)))
        (checkpoint / name).write_bytes(b"")
        assert read_score(checkpoint) is None
        return

    def read() -> None:
        try:
            check_file(checkpoint, name="student.safetensors")
        except (ValueError, LookupError, TypeError, OSError):  # as its callers expect, who say what to do
            return

    mutate(checkpoint / name, count, read)


@counts
def test_logs(run_folder: Path, tmp_path: Path, count: int) -> None:
    lines = (run_folder / "log.jsonl").read_text().splitlines()
    file, draw = tmp_path / "log.jsonl", random.Random(0)
    for number in range(count):
        some = [
            line if draw.random() < 0.7 else mutated_json(json.loads(line), draw).decode("utf-8", "replace")
            for line in lines
        ]
        file.write_text("\n".join(some), encoding="utf-8", errors="replace")

        def read(*, draws: bool = number % 20 == 0) -> None:
            rows = read_log(file, until=10**9)
            training_seconds(rows, images=48)
            if draws:
                training_curve(rows, {}, epochs=3.0)

        survive(read, case=(number, some))


@counts
def test_what_the_hub_and_its_cache_say(tmp_path: Path, count: int) -> None:
    commit, cache = "a" * 40, RepoCache("me/x", tmp_path)
    facts = {"config.json": FileFacts(size=2, sha256="0" * 64), "README.md": FileFacts(size=3, git_sha1="0" * 40)}
    cache.write_file_list(Snapshot("me/x", commit, facts))
    mutate(next(cache.root.rglob(f"{commit}.json")), count, lambda: cache.read_file_list(commit))
    assert checked_snapshot("me/x", commit, facts).files == facts
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(b"a")
    right = {"a": facts_of(folder / "a")}
    wrong_files(folder, right)
    (stamps,) = (tmp_path / "cache" / "verified").iterdir()

    def read() -> None:
        _read_stamps(folder)
        assert not wrong_files(folder, right)

    mutate(stamps, count, read)


@counts
def test_class_lists_and_subsets(tmp_path: Path, count: int) -> None:
    coco, subset, transfer = tmp_path / "coco.json", tmp_path / "subset.json", tmp_path / "metrics.json"
    coco.write_text(json.dumps({"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}))
    mutate(coco, count, lambda: load_vocabulary(f"coco:{coco}"))
    subset.write_text(json.dumps({"cat": ["a", "b"], "dog": ["c"]}))
    mutate(subset, count, lambda: read_subset(subset))
    facts = {"architecture": "resnet18", "mean": [0.5] * 3, "std": [0.5] * 3}
    transfer.write_text(json.dumps({"task": "segment", "scores": {"miou": 1.0}, "classes": ["a"], "backbone": facts}))
    mutate(transfer, count, lambda: _read_metrics(tmp_path))


@pytest.fixture(scope="module")
def vl_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a vision-language model. Read only."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vl")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LGD_TIMM_CACHE", str(folder / "cache"))
        pretrain(recipe(write_scenes(folder / "scenes", count=4)), out=folder / "run")
    return folder


@counts
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "metrics.json"])
def test_vision_language_folders(vl_run: Path, tmp_path: Path, name: str, count: int) -> None:
    folder = Path(shutil.copytree(vl_run / "run" / "model", tmp_path / "model"))
    read: Callable[[], Any] = partial(open_model, folder)
    if name == "tokenizer.json":
        mutate(folder / name, count, lambda: Tokenizer((folder / name).read_text("utf-8", "replace")).encode("red dog"))
        count //= 20
    mutate(folder / name, max(1, count // 10), read)


@pytest.fixture(scope="module")
def stock_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a vision-language model of transformers' own class. Read only."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("stock")
    parts: dict[str, Any] = {
        "model": {"form": "fastvlm", "dropout": 0.0},
        "text": {"tags": 0},
        "regions": {"kind": "grid", "rows": 4, "columns": 4},
        "backbone": {"level": 4},
        "task": {"kind": "captions", "predict": "next", "words": 8, "label_smoothing": 0.0},
    }
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LGD_TIMM_CACHE", str(folder / "cache"))
        pretrain(recipe(write_scenes(folder / "scenes", count=4), **parts), out=folder / "run")
    return folder


@counts
def test_stock_folders(stock_run: Path, tmp_path: Path, count: int) -> None:
    folder = Path(shutil.copytree(stock_run / "run" / "model", tmp_path / "model"))
    files = sorted(path for path in folder.glob("*.json") if path.name != "metrics.json")
    assert "config.json" in {path.name for path in files}
    for file in files:
        mutate(file, max(2, count // 20), lambda: open_model(folder))


@counts
def test_lines_of_samples(vl_run: Path, count: int) -> None:
    path = vl_run / "scenes" / "scenes.jsonl"
    lines, draw, copy = path.read_text().splitlines(), random.Random(0), path.with_name("mutated.jsonl")
    for number in range(count):
        changed = [mutated_json(json.loads(line), draw) if draw.random() < 0.5 else line.encode() for line in lines]
        copy.write_bytes(b"\n".join(changed))

        def read() -> None:
            data = JsonLines(str(copy)).open()
            for index in range(len(data)):
                sample = data[index]
                if sample.boxes is not None and len(sample.boxes):
                    FromData(DataRegions(3)).find(Image.new("RGB", (4, 4)), sample)

        survive(read, case=(number, changed))


@counts
def test_what_others_annotated_for_language(tmp_path: Path, count: int) -> None:
    captions, questions, annotations = (tmp_path / f"{name}.json" for name in ("captions", "questions", "annotations"))
    for number in (1, 2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number:012}.jpg")
    images = [{"id": number, "file_name": f"{number:012}.jpg"} for number in (1, 2)]
    said = [{"id": number, "image_id": number, "caption": "a dog"} for number in (1, 2)]
    captions.write_text(json.dumps({"images": images, "annotations": said}))
    asked = [{"question_id": 10 + number, "image_id": number, "question": "a dog ?"} for number in (1, 2)]
    answers = [{"answer": "yes", "answer_id": place} for place in range(3)]
    given = [{**entry, "multiple_choice_answer": "yes", "answers": answers} for entry in asked]
    questions.write_text(json.dumps({"questions": asked}))
    annotations.write_text(
        json.dumps({"annotations": [{k: v for k, v in e.items() if k != "question"} for e in given]})
    )

    def all_of(data: Any) -> list[Any]:
        return [data[index].captions or data[index].answers for index in range(len(data))]

    mutate(captions, count, lambda: all_of(CocoCaptionsDataset(captions, images=tmp_path)))
    for file in (questions, annotations):
        mutate(file, count // 2, lambda: all_of(VqaV2Dataset(questions, annotations=annotations, images=tmp_path)))


@counts
def test_annotations(tmp_path: Path, count: int) -> None:
    pytest.importorskip("pycocotools")
    file = tmp_path / "instances.json"
    size = {"height": 40, "width": 60}
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", **size} for n in (1, 2)],
        "categories": [{"id": 1, "name": "a"}, {"id": 7, "name": "b"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 20, 20], "iscrowd": 0, "area": 400,
             "segmentation": [[1, 2, 21, 2, 21, 22, 1, 22]]},
            {"id": 2, "image_id": 2, "category_id": 7, "bbox": [0, 0, 60, 40], "iscrowd": 1, "area": 2400,
             "segmentation": {"size": [40, 60], "counts": [0, 2400]}},
        ],
    }  # fmt: skip
    file.write_text(json.dumps(content))
    for n in (1, 2):
        (tmp_path / f"{n}.jpg").write_bytes(b"")

    def read() -> None:
        found = read_annotations(file, folder=tmp_path, format="coco", masks=True)
        for index, objects in enumerate(found.objects):
            for entry in objects:
                found.mask(entry, index)

    assert mutate(file, count, read) < count


@counts
def test_tars(tmp_path: Path, count: int) -> None:
    buffer = io.BytesIO()
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
            for name in ("a.jpg", "a.cls", "b" * (90 if format == tarfile.USTAR_FORMAT else 120) + ".jpg", "ü.jpg"):
                member = tarfile.TarInfo(name)
                member.size = 5
                tar.addfile(member, io.BytesIO(b"12345"))
        content, draw, path = buffer.getvalue(), random.Random(format), tmp_path / "x.tar"
        with bounded_memory():
            for number in range(count):
                path.write_bytes(mutated_bytes(content, draw))

                survive(partial(_read_tar, path), case=(format, number))
        buffer.seek(0)
        buffer.truncate()


def _read_tar(path: Path) -> None:
    tar = IndexedTar(path)
    for key, fields in tar.samples.items():
        for field in fields:
            tar.read(key, field)


@counts
def test_sidecars(taught_folder: Path, tmp_path: Path, count: int) -> None:
    folder = Path(shutil.copytree(next(taught_folder.glob("*-light-*")), tmp_path / "stored"))
    shards, file = open_shards(taught_folder, split="train"), sorted(folder.glob("*.tar"))[0]
    content, draw = file.read_bytes(), random.Random(0)
    for number in range(count // 4):
        file.write_bytes(mutated_bytes(content, draw))
        survive(lambda: read_record(file, shards, 0), case=number)


@counts
def test_arrays(count: int) -> None:
    array = np.zeros((2, 8), np.float16)
    content, draw, refused = npy_header((2, 8), "float16") + array.tobytes(), random.Random(0), 0
    with bounded_memory():
        for _ in range(count):
            try:
                assert parse_npy(mutated_bytes(content, draw)).nbytes <= len(content) + 64
            except ValueError:
                refused += 1
    assert 0 < refused < count
