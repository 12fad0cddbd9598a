"""Runs of transfer tasks from outside, on a task of dots: predictions, comparisons, the command line."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgd_timm.cli.main import main
from lgd_timm.errors import LGDError, WeightsError
from lgd_timm.evaluate import models
from lgd_timm.transfer import run as runs
from lgd_timm.transfer.recipe import read_transfer
from lgd_timm.utils.signals import STATUS
from tests.helpers.dots import DotsRecipe, DotsTask, assert_equal, recipe, run, struck, weights


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = Image.new("RGB", (8, 8), colour)
    pixels.putpixel((0, 0), (0, 0, 255))
    pixels.save(path)
    return path


def test_predictions_are_drawn_into_copies(task: DotsTask, tmp_path: Path) -> None:
    run(tmp_path / "run")
    for name in ("b.jpg", "a.png", "C.JPEG"):
        picture(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "notes.txt").write_text("none")
    drawn = runs.predict(tmp_path / "run", tmp_path / "pictures", out=tmp_path / "drawn", device="cpu")
    assert (
        [path.name for path in drawn]
        == ["C.png", "a.png", "b.png"]
        == sorted(path.name for path in (tmp_path / "drawn").iterdir())
    )
    assert Image.open(tmp_path / "drawn" / "a.png").getpixel((7, 7)) == (0, 0, 255)
    one = runs.predict(tmp_path / "run", tmp_path / "pictures" / "a.png", out=tmp_path / "one", device="cpu")
    assert one == [tmp_path / "one" / "a.png"]


def test_a_model_comes_back_as_it_was(task: DotsTask, tmp_path: Path) -> None:
    run(tmp_path / "run")
    opened = runs.open_run(tmp_path / "run")
    assert not opened.model.training
    assert opened.classes == ("dot",)
    assert_equal(dict(opened.model.state_dict()), weights(tmp_path / "run"))


def test_what_is_no_run(task: DotsTask, tmp_path: Path) -> None:
    pictures = picture(tmp_path / "pictures" / "a.png")
    out = tmp_path / "drawn"
    with pytest.raises(
        WeightsError,
        match=r"nowhere lacks metrics.json, model.safetensors, recipe.yaml\. Give the folder of a finished",
    ):
        runs.predict(tmp_path / "nowhere", pictures, out=out, device="cpu")
    run(tmp_path / "run")
    metrics = (tmp_path / "run" / "metrics.json").read_text()
    for broken in (
        "[1]",
        "{}",
        "{",
        metrics.replace("test_efficientnet", "resnet1"),
        metrics.replace('"detect"', '"dream"'),
    ):
        (tmp_path / "run" / "metrics.json").write_text(broken)
        with pytest.raises(WeightsError, match=r"metrics.json is not what lgd-timm transfer wrote"):
            runs.predict(tmp_path / "run", pictures, out=out, device="cpu")
    (tmp_path / "run" / "metrics.json").write_text(metrics.replace("test_efficientnet", "test_resnet"))
    with pytest.raises(WeightsError, match=r"model.safetensors does not fit the run's recipe"):
        runs.predict(tmp_path / "run", pictures, out=out, device="cpu")
    (tmp_path / "run" / "metrics.json").write_text(metrics)
    (tmp_path / "run" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(WeightsError, match=r"model.safetensors does not fit"):
        runs.predict(tmp_path / "run", pictures, out=out, device="cpu")
    assert not out.exists()


def test_what_are_no_pictures(task: DotsTask, tmp_path: Path) -> None:
    run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(LGDError, match=f"{place} holds no pictures"):
            runs.predict(tmp_path / "run", tmp_path / place, out=tmp_path / "drawn", device="cpu")
    picture(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "b.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(LGDError, match=r"b\.png can't be read as a picture"):
        runs.predict(tmp_path / "run", tmp_path / "pictures", out=tmp_path / "drawn", device="cpu")
    left = {path.name for path in tmp_path.iterdir()} - {"cache"}  # the suite's own, with the run folder's lock
    assert left == {"empty", "pictures", "run"}  # nothing half-written
    with pytest.raises(LGDError, match=r"pictures is not empty. Choose another folder"):
        runs.predict(tmp_path / "run", tmp_path / "pictures" / "a.png", out=tmp_path / "pictures", device="cpu")


def test_pictures_of_one_name_do_not_replace_each_other(task: DotsTask, tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        picture(tmp_path / "pictures" / name)
    with pytest.raises(LGDError, match="names differ by their endings alone"):
        runs.predict(tmp_path / "run", tmp_path / "pictures", out=tmp_path / "drawn", device="cpu")


def test_a_comparison_says_what_could_not_be_reached(
    task: DotsTask, tmp_path: Path, published_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's weights are on the Hub, which no test may ask."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = {"model": str(published_folder), "pretrained": True}
    scores = runs.compare("detect", recipe(backbone=given), out=tmp_path / "all")
    assert list(scores) == ["lgd", "scratch", "stock"]
    assert scores["lgd"]["brightness"] == 3
    assert scores["scratch"]["brightness"] == 6
    assert scores["stock"]["unreachable"].startswith("timm/test_resnet.r160_in1k: ")
    assert "--random-weights" not in scores["stock"]["unreachable"]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["lgd", "scratch"]
    read = read_transfer(DotsRecipe, tmp_path / "all" / "scratch" / "recipe.yaml").backbone
    assert (read.model, read.pretrained) == ("test_resnet", False)


def test_a_comparison_with_stock_weights(
    task: DotsTask, tmp_path: Path, published_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = models.timm_model
    monkeypatch.setattr(
        models, "timm_model", lambda name, *, pretrained=True, seed=0: plain(name, pretrained=False, seed=seed)
    )
    given = {"model": str(published_folder), "pretrained": True}
    scores = runs.compare("detect", recipe(backbone=given), out=tmp_path / "all")
    assert {name: value["brightness"] for name, value in scores.items()} == {"lgd": 3, "stock": 6, "scratch": 9}


def test_the_command_line(task: DotsTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dots.yaml").write_text(recipe().to_yaml())
    out = str(tmp_path / "run")
    assert main(["transfer", "detect", str(tmp_path / "dots.yaml"), "--schedule.epochs", "4", "--print-config"]) == 0
    assert "epochs: 4" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(["transfer", "detect", str(tmp_path / "dots.yaml"), "--output", out]) == 0
    assert capsys.readouterr().out == f"test_efficientnet: brightness 3.00, other 0.00\nrun: {out}\n"
    assert main(["transfer", "detect", str(tmp_path / "dots.yaml"), "--output", out]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (
        main(["transfer", "predict", out, str(picture(tmp_path / "a.png")), str(tmp_path / "drawn"), "--device", "cpu"])
        == 0
    )
    assert capsys.readouterr().out == f"{tmp_path / 'drawn'}: 1 pictures\n"
    assert main(["transfer", "detect", str(tmp_path / "dots.yaml"), "--schedule.epoch", "4"]) == 2
    assert "did you mean 'schedule.epochs'" in capsys.readouterr().err


def test_the_command_line_tells_of_a_notice(
    task: DotsTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dots.yaml").write_text(recipe().to_yaml())
    struck(monkeypatch, step=2, strike=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["transfer", "detect", str(tmp_path / "dots.yaml"), "--output", str(tmp_path / "run")]) == STATUS
    assert (
        f"stopped by SIGTERM at step 3 of 9, and saved in {tmp_path / 'run'}. Go on with --resume.\n"
        in capsys.readouterr().err
    )


def test_a_photo_that_its_camera_turned_is_drawn_upright_and_16_bits_are_not_white(
    task: DotsTask, tmp_path: Path
) -> None:
    run(tmp_path / "run")
    folder, exif = tmp_path / "pictures", Image.Exif()
    folder.mkdir()
    exif[0x0112] = 6
    Image.new("RGB", (16, 8), "red").save(folder / "turned.jpg", exif=exif)
    Image.fromarray(np.full((8, 8), 20_000, np.uint16)).save(folder / "deep.png")
    runs.predict(tmp_path / "run", folder, out=tmp_path / "drawn", device="cpu")
    assert Image.open(tmp_path / "drawn" / "turned.png").size == (8, 16)
    assert Image.open(tmp_path / "drawn" / "deep.png").getpixel((4, 4)) == (78, 78, 78)
