"""One call from pictures to a published student: what is done is not done again, what has changed is."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from PIL import Image

import lgd_timm
from lgd_timm.config.reader import read_recipe
from lgd_timm.data import open_shards
from lgd_timm.data.image_folder import read_image_folder
from lgd_timm.data.subset import keys_by_class
from lgd_timm.errors import LGDError, RecipeError, TeacherError, VocabularyError
from lgd_timm.teachers import Conse, OpenCLIP
from lgd_timm.training import auto, plan
from lgd_timm.training.auto import AutoResult, distill_folder, read_seconds
from lgd_timm.training.photos import Photos, held_out, read_photos
from lgd_timm.training.plan import Speed, minutes_of
from lgd_timm.utils.logger import Progress
from lgd_timm.utils.signals import Stopped
from tests.helpers.tiny_teacher import Tiny

NAMES = ["blue", "green", "red"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TRIAL": 0.0, "TRIED": 8, "SHOWN": 1, "MOST_EPOCHS": 2}.items():
        monkeypatch.setattr(plan, name, value)


@pytest.fixture
def photos(tmp_path: Path, image_folder: Path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "my photos"))


@pytest.fixture
def call(tmp_path: Path, photos: Path, tiny_clip: Path) -> Callable[..., AutoResult]:
    def call(**options: Any) -> AutoResult:
        settings = {
            "teacher": OpenCLIP(f"local-dir:{tiny_clip}"),
            "student": "test_resnet",
            "out": tmp_path / "out",
            "device": "cpu",
            **options,
        }
        return distill_folder(photos, **settings)

    return call


def stamps(out: Path) -> dict[str, int]:
    """When each file of a folder was written, but for the record, which says the same again."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in ("auto.json", "recipe.yaml"))
    return {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in files}


def test_pictures_become_a_student(call: Callable[..., AutoResult], tmp_path: Path, photos: Path) -> None:
    result = call()
    assert result.chance == pytest.approx(100 / 3)
    assert result.student is not None
    assert result.teacher is not None
    model = timm.create_model(f"local-dir:{result.published}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == NAMES
    assert "<img" in result.report.read_text()
    recipe = read_recipe(result.recipe)  # of a longer run
    assert recipe.objective["kind"] == "refined"
    assert not recipe.student.pretrained
    splits = {split: open_shards(recipe.data.shards, split=split) for split in ("train", "val")}
    assert {name: len(shards) for name, shards in splits.items()} == {"train": 39, "val": 9}
    keys = {split: {key for keys in keys_by_class(shards).values() for key in keys} for split, shards in splits.items()}
    assert not keys["train"] & keys["val"]
    before = stamps(tmp_path / "out")
    assert call() == result
    assert stamps(tmp_path / "out") == before


def test_a_changed_input_redoes_what_follows(
    call: Callable[..., AutoResult], tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    call()
    before = stamps(out)
    call(student="test_efficientnet")
    other = stamps(out)
    assert {name for name in before if name.startswith("shards") and other[name] != before[name]} == set()
    assert other["published/model.safetensors"] != before["published/model.safetensors"]
    Image.new("RGB", (32, 32), "red").save(photos / "red" / "one_more.png")
    call(student="test_efficientnet", names=["blue thing", "green thing", "red thing"])
    assert "evaluation: none, as the class folders are not these names" in caplog.text
    assert len(open_shards(str(out / "shards"), split="train")) == 49  # nothing is held out
    assert stamps(out)["published/model.safetensors"] != other["published/model.safetensors"]


def test_names_in_another_order_are_the_same_labels(call: Callable[..., AutoResult], tmp_path: Path) -> None:
    first = call()
    other = call(names=NAMES[::-1], out=tmp_path / "other")
    assert other.teacher == first.teacher


def test_a_flat_folder_needs_names_and_is_not_scored(
    call: Callable[..., AutoResult], photos: Path, tmp_path: Path
) -> None:
    for path in photos.glob("*/*"):
        path.rename(photos / f"{path.parent.name}_{path.name}")
    for name in NAMES:
        (photos / name).rmdir()
    with pytest.raises(VocabularyError, match=r"no class folders.*--names names\.txt"):
        call()
    assert not (tmp_path / "out").exists()
    result = call(names=NAMES)
    assert (result.student, result.teacher, result.chance) == (None, None, None)
    assert result.published.is_dir()
    assert "<img" in result.report.read_text()


def test_unreadable_pictures_are_left_out(
    call: Callable[..., AutoResult], photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "red" / "broken.jpg").write_bytes(b"no picture")
    (photos / "red" / "notes.txt").write_text("no picture either")
    caplog.set_level(logging.INFO)
    call()
    assert "broken.jpg" in caplog.text
    assert "passed over: 1 .txt" in caplog.text


def test_a_stopped_call_goes_on(
    call: Callable[..., AutoResult], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "step", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match=r"stopped by SIGTERM at step [12] of 2, and saved in"):
            call()
    assert call().published.is_dir()
    assert "plan: as before" in caplog.text
    assert "resumed" in caplog.text


def test_a_folder_of_something_else_is_refused(call: Callable[..., AutoResult], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match="nothing that lgd-timm auto has begun"):
        call()
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "soon"}, "'soon' is no span of time"),
        ({"time": "0s"}, "'0s' is no span of time"),
        ({"time": "-4m"}, "'-4m' is no span of time"),
        ({"time": "nan"}, "'nan' is no span of time"),
        ({"time": "9" * 400 + "h"}, "is no span of time up to 30 days"),
        ({"teacher": "conse-lite9"}, "is no teacher's short name"),
        ({"names": ["one"]}, "at least two names"),
        ({"device": "warp"}, "device 'warp' can't be used"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    call: Callable[..., AutoResult], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LGDError, match=message):
        call(**options)
    assert not (tmp_path / "out").exists()


def test_times() -> None:
    assert [read_seconds(text) for text in ("90s", "4m", "1.5h")] == [90, 240, 5400]


def test_a_recipes_teacher_is_taken(tmp_path: Path) -> None:
    recipe = tmp_path / "teach.yaml"
    recipe.write_text("teacher: {kind: open_clip, model: RN50, pretrained: openai}\n")
    assert auto._find_teacher(str(recipe)) == OpenCLIP("RN50", "openai")
    recipe.write_text("teacher: {kind: stored, embeddings: here}\n")
    with pytest.raises(TeacherError, match="does not say who made them"):
        auto._find_teacher(str(recipe))


def test_published_weights_are_a_start_for_their_own_model_alone() -> None:
    assert auto._start_of("lgd_mobilenetv2") == "lgd_mobilenetv2.conse_cifar10"
    assert auto._start_of("lgd_mobilenetv2.none") is None
    assert auto._start_of("resnet18") is None


def test_each_class_keeps_images_to_learn_from(photos: Path) -> None:
    for path in sorted((photos / "red").iterdir())[1:]:
        path.unlink()
    found = read_image_folder(photos)
    val = held_out(found)
    assert val == held_out(found)
    counts = {name: sum(path.parent.name == name for path in val) for name in NAMES}
    assert counts == {"blue": 3, "green": 3, "red": 0}


def of_size(count: int, tmp_path: Path, image_folder: Path) -> Photos:
    photos = read_photos(image_folder, names=None, templates="none")
    return Photos(
        photos.root, tuple(tmp_path / f"{n}.jpg" for n in range(count)), (), photos.vocabulary, True, 128, "0"
    )


@pytest.mark.parametrize("count", [10, 1000, 100_000])
@pytest.mark.parametrize("rate", [5.0, 100.0, 3000.0])
@pytest.mark.parametrize("seconds", [60.0, 240.0, 3600.0])
def test_the_plan_fits_into_the_time(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, rate: float, seconds: float
) -> None:
    monkeypatch.setattr(plan, "MOST_EPOCHS", 150)
    photos, speed = of_size(count, tmp_path, image_folder), Speed(rate, 4 * rate, 10 * rate)
    found = plan._fit(photos, OpenCLIP("RN50"), speed, seconds=seconds, size=64, teach_size=128)
    assert found.learned <= count
    assert 1 <= found.epochs <= 150
    assert found.batch_size <= found.learned
    if found.learned > 8:  # the least that is tried
        assert 60 * minutes_of(found, speed, photos) <= seconds
    spare = seconds - 60 * minutes_of(found, speed, photos)
    one_more = found.learned * (1 / speed.student + 1 / speed.reading)
    assert found.epochs == 150 or found.learned < count or spare < 0.1 * seconds + one_more  # the time is used


@pytest.mark.parametrize(("side", "wanted"), [(32, 192), (64, 192), (65, None)])
def test_a_teachers_temperature_is_that_of_the_surest_answers(
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    side: int,
    wanted: int | None,
) -> None:
    caplog.set_level(logging.INFO)

    class Text:
        fingerprint = "tiny"

        def encode(self, prompts: list[str]) -> Any:
            return Tiny(seed=1).weight[:, : len(prompts)].T

    monkeypatch.setattr(Conse, "image", lambda self: Tiny())
    monkeypatch.setattr(Conse, "text", lambda self: Text())
    monkeypatch.setattr(plan, "confidences", lambda *_: {1.0: 0.2, 2.0: 0.5, 3.0: 0.4})
    photos = read_photos(image_folder, names=None, templates="none")
    photos = Photos(photos.root, photos.train, photos.val, photos.vocabulary, True, side, "0")
    found = plan.make_plan(
        photos, Conse("a", "b"), tune=True, student="test_resnet", pretrained=False, seconds=60, device="cpu"
    )
    assert isinstance(found.teacher, Conse)
    assert found.teacher.temperature == 2.0
    assert found.teacher.image_size == wanted
    assert "teacher's temperature: 2, of 1, 2, 3 the one of the surest answers" in caplog.text


def test_it_is_there_without_an_import() -> None:
    assert lgd_timm.distill_folder is distill_folder


def test_a_damaged_record_is_done_anew(call: Callable[..., AutoResult], tmp_path: Path) -> None:
    record = tmp_path / "out" / "auto.json"
    call()
    whole = json.loads(record.read_text())
    del whole["teach"]["folder"]
    whole["plan"]["plan"]["size"] = "large"
    record.write_text(json.dumps(whole))
    assert call().student is not None
    again = json.loads(record.read_text())
    assert (again["teach"].keys(), again["plan"]["plan"]["size"]) == ({"inputs", "folder"}, 32)
