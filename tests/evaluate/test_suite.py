"""All evaluations in one call: the same numbers as one by one, reasons for what is left out, what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lgd_timm.config.recipe import TeachRecipe
from lgd_timm.data import Views, open_shards
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.in_memory import in_memory
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import LGDError, WeightsError
from lgd_timm.evaluate import (
    FeatureSplits,
    Results,
    agreement,
    calibration,
    draw_labels,
    evaluate_all,
    evaluate_zero_shot,
    extract,
    find_model,
    knn,
    linear_probe,
    open_zero_shot_model,
)
from lgd_timm.publish.card import card_of
from lgd_timm.publish.check import check_folder
from lgd_timm.publish.folder import load
from lgd_timm.teachers import OpenCLIP
from lgd_timm.training.teach import teach_recipe

EVERYTHING = ["zero_shot", "knn", "linear_probe", "linear_probe_10", "calibration", "agreement"]
OPTIONS: dict[str, Any] = {"device": "cpu", "protocol": "ridge", "k": 5}


def evaluated(model: Path | str, data: Path, **options: Any) -> Results:
    return evaluate_all(model, data=data, **{**OPTIONS, **options})


@pytest.fixture(scope="session")
def wholly_taught(tmp_path_factory: pytest.TempPathFactory, taught_folder: Path, tiny_clip: Path) -> Path:
    """Shards with unaugmented embeddings of the training split too. Read only."""
    folder = Path(shutil.copytree(taught_folder, tmp_path_factory.mktemp("wholly") / "colours"))
    teach_recipe(
        TeachRecipe(OpenCLIP(f"local-dir:{tiny_clip}"), Views(size=32, augmentation="none"), str(folder), device="cpu")
    )
    return folder


@pytest.fixture
def folder(published_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published_folder, tmp_path / "published"))


def test_all_is_each(published_folder: Path, taught_folder: Path) -> None:
    results = evaluated(published_folder, taught_folder)
    published = load(published_folder)
    train, test = (
        extract(
            published.student,
            ShardDataset(open_shards(taught_folder, split=split), views=Views(size=32, augmentation="none")),
        )
        for split in ("train", "val")
    )
    assert results.scores["knn"] == knn(train, test, k=5)
    assert results.scores["linear_probe"] == linear_probe(train, test, protocol="ridge")
    ten = draw_labels(train.keys, train.labels, fraction=0.1)
    assert results.scores["linear_probe_10"] == linear_probe(train, test, protocol="ridge", subset=ten)
    alone = evaluate_zero_shot(str(published_folder), data=taught_folder, device="cpu")
    assert {key: results.scores[key] for key in ("zero_shot", "teacher_zero_shot")} == {
        "zero_shot": alone["student"],
        "teacher_zero_shot": alone["teacher"],
    }
    assert set(EVERYTHING) <= results.scores.keys()
    assert results.left_out.keys() == {"linear_probe_1"}  # one image of each class, none to choose the strength by
    assert "too few to hold some of each class out" in results.left_out["linear_probe_1"]


def test_calibration_is_of_the_published_classifier_and_agreement_at_the_recipes_temperatures(
    published_folder: Path, taught_folder: Path
) -> None:
    import timm

    results = evaluated(published_folder, taught_folder)
    stock = timm.create_model(f"local-dir:{published_folder}", pretrained=True).eval()
    published = load(published_folder)
    dataset = ShardDataset(open_shards(taught_folder, split="val"), views=Views(size=32, augmentation="none"))
    batch = dataset.__getitems__([(i, 0) for i in range(12)])
    with torch.no_grad():
        logits = stock(published.student.preprocess(batch.images))
        student = published.student(batch.images)
    expected, found = calibration(logits, batch.labels), results.scores["calibration"].to_dict()
    for key in ("ece", "nll", "confidence"):
        assert found[key] == pytest.approx(expected.to_dict()[key], rel=1e-4)
    assert (found["classifier"], found["fitted_on"]) == ("published classifier", 6)
    assert (
        results.scores["teacher_calibration"].to_dict()["fitted_on"] is None
    )  # no unaugmented embeddings of the training split
    splits = FeatureSplits(find_model(str(published_folder)), taught_folder, device="cpu")
    teacher = splits.teacher(splits.test, "val", fingerprint=published.metrics["teacher"]["fingerprint"])
    assert teacher is not None
    assert teacher.embeddings is not None
    same = agreement(
        student,
        teacher.embeddings,
        published.banks.text,
        batch.labels,
        student_temperature=0.2,
        teacher_temperature=0.01,
    ).to_dict()
    assert results.scores["agreement"].to_dict() == pytest.approx(same, rel=1e-4)


def test_a_published_folder_is_read_once(
    published_folder: Path, taught_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def spying(folder: Path) -> Any:
        read.append(folder)
        return load(folder)

    monkeypatch.setattr("lgd_timm.evaluate.models.load", spying)
    results = evaluated(published_folder, taught_folder)
    assert {"zero_shot", "knn", "calibration"} <= results.scores.keys()
    assert read == [published_folder]


def test_a_teacher_that_saw_the_training_images_plainly_is_probed_too(
    published_folder: Path, wholly_taught: Path
) -> None:
    results = evaluated(published_folder, wholly_taught)
    assert {f"teacher_{key}" for key in EVERYTHING if key != "agreement"} <= results.scores.keys()
    splits = FeatureSplits(find_model(str(published_folder)), wholly_taught, device="cpu")
    teachers = splits.teachers(load(published_folder).metrics["teacher"]["fingerprint"])
    assert None not in teachers
    assert results.scores["teacher_knn"] == knn(*teachers, k=5)  # type: ignore[arg-type]
    assert results.scores["teacher_calibration"].to_dict()["fitted_on"] == 6


def test_ready_made_datasets_are_used_and_must_show_what_the_model_sees(
    published_folder: Path, taught_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def images(split: str, size: int = 32) -> ShardDataset:
        return in_memory(
            ShardDataset(
                open_shards(taught_folder, split=split), views=Views(size=size, augmentation="none"), allow_empty=True
            )
        )

    expected = evaluated(published_folder, taught_folder)
    datasets = {split: images(split) for split in ("train", "val")}
    for dataset in datasets.values():
        dataset.__getitems__([(i, 0) for i in range(len(dataset))])
    monkeypatch.setattr(ShardDataset, "_open", None)  # nothing is decoded again
    monkeypatch.setenv("LGD_TIMM_CACHE", str(taught_folder / "no_such_cache"))
    monkeypatch.setattr("lgd_timm.evaluate.features._write", lambda *_: None)
    assert evaluated(published_folder, taught_folder, datasets=datasets) == expected
    with pytest.raises(LGDError, match=r"The dataset of 'val' shows Views\(size=24.* is to see Views\(size=32"):
        evaluated(published_folder, taught_folder, datasets={**datasets, "val": images("val", 24)})


def test_a_plain_model_is_probed_and_the_rest_left_out_with_the_reason(taught_folder: Path) -> None:
    results = evaluated("test_resnet", taught_folder, pretrained=False, image_size=32)
    assert list(results.scores) == ["knn", "linear_probe", "linear_probe_10"]
    for key in ("zero_shot", "calibration", "agreement"):
        assert "test_resnet has no projector into a teacher's space. Distil it first" in results.left_out[key]
    lines = results.lines()
    assert lines[1].startswith("k-NN ")
    assert lines[1].split()[-3:] == ["-", "33.33", "%"]
    assert any(line.startswith("left out: zero shot: test_resnet has no projector") for line in lines)


def test_without_the_teachers_embeddings_what_needs_them_is_left_out(
    published_folder: Path, shard_folder: Path
) -> None:
    results = evaluated(published_folder, shard_folder)
    assert {"teacher_zero_shot", "teacher_calibration", "agreement"} <= results.left_out.keys()
    assert "zero_shot" in results.scores


def test_names_that_do_not_fit_leave_out_what_needs_them(folder: Path, taught_folder: Path) -> None:
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["data"]["val_vocabulary"] = ["a", "b", "c", "d"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    results = evaluated(folder, taught_folder)
    assert "knn" in results.scores
    assert "has 3 classes" in results.left_out["zero_shot"]


# -------------------------------------------------------------------------------------------------------------- writing


def test_what_is_written_is_what_was_measured(folder: Path, wholly_taught: Path) -> None:
    before = json.loads((folder / "metrics.json").read_text())
    results = evaluated(folder, wholly_taught, write=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {key: metrics[key] for key in results.to_dict()} == results.to_dict()
    assert {key: metrics[key] for key in before if key not in results.scores and key != "summary"} == {
        key: value for key, value in before.items() if key not in results.scores and key != "summary"
    }
    assert metrics["zero_shot"] == before["zero_shot"]
    assert metrics["summary"]["knn_top1"] == round(metrics["knn"]["top1"], 2)
    assert metrics["summary"]["teacher_linear_probe_10_top1"] == round(metrics["teacher_linear_probe_10"]["top1"], 2)
    assert "linear_probe_1_top1" not in metrics["summary"]
    card = (folder / "README.md").read_text()
    assert card == card_of(folder)
    row = [f"{metrics[key]['top1']:.2f} %" for key in ("linear_probe_10", "teacher_linear_probe_10")]
    assert f"| linear probe, 10 % of labels top-1 | {row[0]} | {row[1]} | 33.33 % |" in card
    assert (
        "Linear probe, 10 % of labels: ridge on frozen features of 6 labelled training images "
        "(10 % of each class, seed 0)" in card
    )
    assert "1 % of labels" not in card
    assert f"expected calibration error {metrics['calibration']['ece']:.2f} %" in card
    assert f"the same answer on {metrics['agreement']['top1']:.2f} % of the images" in card
    assert "k-NN: k = 5, weighted, with 48 labelled training images as the memory." in card
    assert check_folder(folder)
    evaluated(folder, wholly_taught, write=True)
    assert (folder / "README.md").read_text() == card


def test_other_names_that_were_asked_are_written_too(folder: Path, taught_folder: Path) -> None:
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["data"]["val_vocabulary"] = ["crimson", "emerald", "navy"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    evaluated(folder, taught_folder, write=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["zero_shot"]["names"] == ["crimson", "emerald", "navy"]
    assert metrics["calibration"]["classifier"] == "cosine / 0.2"
    assert open_zero_shot_model(str(folder), None).other_names


def test_what_the_card_could_not_say_is_not_written(
    folder: Path, taught_folder: Path, run_folder: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        WeightsError, match="speaks of the splits 'train' and 'val' of its recipe, not of 'train' and 'train'"
    ):
        evaluated(folder, taught_folder, split="train", write=True)
    metrics = json.loads(before["metrics.json"])
    (folder / "metrics.json").write_text(json.dumps({**metrics, "shards": "0" * 16}))
    with pytest.raises(WeightsError, match=r"is not what .* was trained on"):
        evaluated(folder, taught_folder, write=True)
    (folder / "metrics.json").write_bytes(before["metrics.json"])
    stopped = Path(shutil.copytree(run_folder, tmp_path / "stopped"))
    shutil.rmtree(stopped / "published")
    for name, options in ((str(stopped), {}), ("test_resnet", {"pretrained": False, "image_size": 32})):
        with pytest.raises(WeightsError, match="is no published folder on this disk"):
            evaluated(name, taught_folder, write=True, **options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_without_training_labels_calibration_is_measured_and_fits_nothing(
    published_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    write_shards(image_folder, tmp_path / "shards", split="train", labels=False)
    write_shards(image_folder, tmp_path / "shards", split="val")
    results = evaluate_all(published_folder, data=tmp_path / "shards")
    calibration = results.to_dict()["calibration"]
    assert calibration["fitted_ece"] is None
    assert 0 <= calibration["ece"] <= 100
    assert {"knn", "linear_probe"} <= results.left_out.keys()
