"""Naming pictures: the answers are timm's, other names are read by the teacher, and what can't be read is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import lgd_timm
from lgd_timm.errors import LGDError, ShardError
from lgd_timm.evaluate.contact_sheet import draw_sheet
from lgd_timm.evaluate.predict import find_pictures, load

MODEL = "lgd_mobilenetv2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several shapes and formats, and a file that is none."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    (folder / "below").mkdir()
    for name, shape in {"a.png": (60, 80), "b.jpg": (120, 90), "below/c.webp": (48, 48)}.items():
        Image.fromarray(draw.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(folder / name)
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_answers_are_timms(folder: Path) -> None:
    model = timm.create_model(MODEL, pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model))
    paths = find_pictures([str(folder)])
    for prediction, path in zip(lgd_timm.load(MODEL).predict(paths, top_k=10), paths, strict=True):
        with torch.no_grad():
            wanted = model(transform(Image.open(path).convert("RGB"))[None]).softmax(1)[0]
        names = list(model.pretrained_cfg["label_names"])
        found = torch.tensor([prediction.probabilities[prediction.names.index(name)] for name in names])
        assert torch.allclose(found, wanted, atol=1e-5)
        assert prediction.picture == path
        assert prediction.name == names[int(wanted.argmax())]


def test_batches_change_nothing(folder: Path) -> None:
    classifier, paths = load(MODEL), find_pictures([str(folder)])
    one, all_ = classifier.predict(paths, batch_size=1), classifier.predict(paths)
    assert [p.names for p in one] == [p.names for p in all_]
    assert classifier.predict(Image.open(paths[0]))[0].names == one[0].names


def test_other_names_are_read_by_the_teacher(published_folder: Path, folder: Path) -> None:
    (prediction,) = load(published_folder, names=["a cat", "a dog"]).predict(folder / "a.png")
    assert set(prediction.names) == {"a cat", "a dog"}
    assert sum(prediction.probabilities) == pytest.approx(1)
    assert prediction.similarities is not None
    assert all(-1 <= cosine <= 1 for cosine in prediction.similarities)
    assert list(prediction.similarities) == sorted(prediction.similarities, reverse=True)


def test_a_plain_model_answers_with_its_own_names_only(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LGDError, match="can't be asked about other names"):
        load("resnet18", names=["a", "b"])


def test_turned_pictures_are_seen_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.rotate(-90, expand=True).save(tmp_path / "upright.png")
    turned, upright = load(MODEL).predict([tmp_path / "turned.png", tmp_path / "upright.png"])
    assert turned.probabilities == pytest.approx(upright.probabilities, abs=1e-6)


def test_pictures_are_found_by_folder_file_and_pattern(folder: Path) -> None:
    names = ["a.png", "b.jpg", "below/c.webp"]
    assert find_pictures([str(folder)]) == [str(folder / name) for name in names]
    assert find_pictures([str(folder / "*.png"), str(folder)]) == [str(folder / name) for name in names]
    with pytest.raises(LGDError, match="is no picture"):
        find_pictures([str(folder / "nothing*")])


def test_what_cant_be_read_is_named(folder: Path) -> None:
    with pytest.raises(ShardError, match=r"notes\.txt: .*no image"):
        load(MODEL).predict([folder / "a.png", folder / "notes.txt"])
    with pytest.raises(LGDError, match="top_k = 0"):
        load(MODEL).predict(folder / "a.png", top_k=0)


def test_a_contact_sheet_holds_every_picture(folder: Path, tmp_path: Path) -> None:
    predictions = load(MODEL).predict(find_pictures([str(folder)]) * 3)
    with Image.open(draw_sheet(predictions, tmp_path / "new" / "sheet.png")) as sheet:
        assert sheet.size == (6 * 168 + 8, 2 * 208 + 8)
