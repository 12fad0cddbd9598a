"""`lgd-timm evaluate ...`: every command says what its function measured, and bad input is one line."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lgd_timm import cli
from lgd_timm.cli.main import build_parser
from lgd_timm.evaluate import FeatureSplits, evaluate_all, find_model, knn, linear_probe
from lgd_timm.evaluate.fine_tune import FineTuning

PLAIN = ["test_resnet", "--random-weights", "--image-size", "32"]


def say(capsys: pytest.CaptureFixture[str], *argv: Any) -> str:
    assert cli.main([str(word) for word in (*argv, "--device", "cpu")]) == 0
    return capsys.readouterr().out


@pytest.fixture
def splits(taught_folder: Path) -> FeatureSplits:
    return FeatureSplits(find_model("test_resnet", pretrained=False, image_size=32), taught_folder, device="cpu")


def test_zero_shot_as_json(capsys: pytest.CaptureFixture[str], published_folder: Path, taught_folder: Path) -> None:
    said = say(capsys, "evaluate", "zero-shot", published_folder, "--data", taught_folder, "--json")
    metrics = json.loads((published_folder / "metrics.json").read_text())
    assert json.loads(said) == {"student": metrics["zero_shot"], "teacher": metrics["teacher_zero_shot"]}


def test_zero_shot_for_people(
    capsys: pytest.CaptureFixture[str], published_folder: Path, taught_folder: Path, shard_folder: Path
) -> None:
    lines = say(capsys, "evaluate", "zero-shot", published_folder, "--data", taught_folder).splitlines()
    assert re.fullmatch(r"student  top-1 [\d.]+ % of 12 images \(chance 33.33 %\)", lines[0])
    assert lines[1].startswith("teacher  top-1 ")
    assert [line.split("%  ")[1] for line in lines[2:]] == ["blue", "green", "red"]
    lines = say(capsys, "evaluate", "zero-shot", published_folder, "--data", shard_folder).splitlines()
    assert lines[1] == "teacher  not measured: no stored embeddings of these images by its teacher"


def test_a_recipes_teacher(
    capsys: pytest.CaptureFixture[str], recipe: Path, published_folder: Path, shard_folder: Path
) -> None:
    said = say(
        capsys,
        "evaluate",
        "zero-shot",
        recipe,
        "--data",
        shard_folder,
        "--json",
        "--batch-size",
        "5",
    )
    metrics = json.loads((published_folder / "metrics.json").read_text())
    assert json.loads(said) == {"teacher": metrics["teacher_zero_shot"]}


def test_knn(capsys: pytest.CaptureFixture[str], taught_folder: Path, splits: FeatureSplits) -> None:
    options = ["--k", "3", "1", "--temperature", "0.1"]
    said = say(capsys, "evaluate", "knn", *PLAIN, "--data", taught_folder, *options)
    score = knn(splits.train, splits.test, k=[3, 1], temperature=0.1)
    assert said.splitlines() == [str(score), *(f"  k = {k}: top-1 {top1:.2f} %" for k, top1 in score.top1_of_k.items())]
    assert (
        json.loads(say(capsys, "evaluate", "knn", *PLAIN, "--data", taught_folder, *options, "--json"))
        == score.to_dict()
    )


def test_linear_probe_on_some_labels(
    capsys: pytest.CaptureFixture[str], taught_folder: Path, tmp_path: Path, splits: FeatureSplits
) -> None:
    words = ["evaluate", "linear-probe", *PLAIN, "--data", taught_folder, "--protocol", "ridge", "--json"]
    drawn = json.loads(say(capsys, *words, "--per-class", "5", "--seed", "0"))
    assert cli.main(["shards", "subset", str(taught_folder), str(tmp_path / "five.json"), "--per-class", "5"]) == 0
    capsys.readouterr()
    read = json.loads(say(capsys, *words, "--subset", tmp_path / "five.json"))
    assert drawn.pop("subset") == "5 of each class, seed 0"
    assert read.pop("subset") == "the keys of five.json"
    assert drawn == read
    assert drawn["train"] == 15
    assert (
        json.loads(say(capsys, *words, "--strength", "0.5"))
        == linear_probe(splits.train, splits.test, protocol="ridge", strength=0.5).to_dict()
    )


def test_fine_tune(capsys: pytest.CaptureFixture[str], taught_folder: Path) -> None:
    words = [
        "evaluate",
        "fine-tune",
        *PLAIN,
        "--data",
        taught_folder,
        "--epochs",
        "2",
        "--fraction",
        "0.5",
        "--batch-size",
        "8",
    ]
    score = json.loads(say(capsys, *words, "--optimizer", "sgd", "--lr", "0.01", "--augmentation", "flip", "--json"))
    assert (score["train"], score["test"], score["steps"], score["subset"]) == (24, 12, 6, "50 % of each class, seed 0")
    assert (score["settings"]["optimizer"], score["settings"]["lr"], score["settings"]["augmentation"]) == (
        "sgd",
        0.01,
        "flip",
    )


def test_calibration_and_agreement_are_those_of_all(
    capsys: pytest.CaptureFixture[str], published_folder: Path, taught_folder: Path
) -> None:
    every = evaluate_all(published_folder, data=taught_folder, device="cpu", protocol="ridge").to_dict()
    data = ["--data", taught_folder]
    said = json.loads(say(capsys, "evaluate", "calibration", published_folder, *data, "--json"))
    assert said == {"student": every["calibration"], "teacher": every["teacher_calibration"]}
    assert json.loads(say(capsys, "evaluate", "agreement", published_folder, *data, "--json")) == every["agreement"]
    assert say(capsys, "evaluate", "calibration", published_folder, *data).startswith("student  ECE ")
    assert say(capsys, "evaluate", "agreement", published_folder, *data).startswith("same answer on ")
    asked = say(capsys, "evaluate", "calibration", published_folder, *data, "--vocabulary", "[crimson, emerald, navy]")
    assert "(cosine / 0.2)" in asked.splitlines()[0]


def test_all(capsys: pytest.CaptureFixture[str], published_folder: Path, taught_folder: Path) -> None:
    words = ["evaluate", "all", published_folder, "--data", taught_folder, "--protocol", "ridge"]
    every = evaluate_all(published_folder, data=taught_folder, device="cpu", protocol="ridge")
    assert json.loads(say(capsys, *words, "--json")) == {**every.to_dict(), "left_out": every.left_out}
    assert say(capsys, *words).splitlines() == every.lines()


def test_the_options_of_fine_tune_have_its_settings_as_defaults() -> None:
    options = vars(build_parser().parse_args(["evaluate", "fine-tune", "m", "--data", "d"]))
    assert {name: options[name] for name in asdict(FineTuning())} == asdict(FineTuning())


BAD: dict[str, tuple[list[str], str]] = {
    "no projector": (["calibration", "test_resnet"], "A plain timm model has no projector into a teacher's space"),
    "no teacher": (["agreement", "{published}", "--data", "{bare}"], "can't be compared with its teacher on"),
    "a recipe": (["agreement", "{published}/recipe.yaml"], "its teacher can only be scored zero-shot"),
    "names": (["calibration", "{published}", "--vocabulary", "[a, b]"], "has 3 classes"),
    "k": (["knn", *PLAIN, "--k", "100"], "k = 100 is to be from 1 to the number of training images, 48"),
    "protocol": (["linear-probe", *PLAIN, "--protocol", "svm"], "protocol 'svm' is unknown"),
    "subset": (["linear-probe", *PLAIN, "--subset", "{published}/config.json"], "can't be read as a subset"),
    "split": (["knn", *PLAIN, "--train-split", "x"], "has no split 'x'"),
    "epochs": (["fine-tune", *PLAIN, "--epochs", "1"], "epochs = 1 must be above warmup_epochs = 1"),
    "model": (["all", "resnet19"], "'resnet19' is no published folder, no run folder"),
    "size": (["all", "{published}", "--image-size", "64"], "weights and an image size of its own"),
    "write": (["all", *PLAIN, "--write"], "is no published folder on this disk"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(
    case: str, capsys: pytest.CaptureFixture[str], published_folder: Path, taught_folder: Path, shard_folder: Path
) -> None:
    words, message = BAD[case]
    words = [word.format(published=published_folder, bare=shard_folder) for word in words]
    data = [] if "--data" in words else ["--data", str(taught_folder)]
    assert cli.main(["evaluate", *words, *data, "--device", "cpu"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]  # bars may stand before it
    assert "lgd-timm: error: " in last
    assert message in last
