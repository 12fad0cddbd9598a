"""Captions of foreign shards, and scenes made of labelled tiles."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from lgd_timm.data import open_shards
from lgd_timm.errors import LGDError, ShardError, VocabularyError
from lgd_timm.vision_language.data.mosaics import CELLS, NOTHING, Mosaics, MosaicsDataset
from lgd_timm.vision_language.data.shards import CaptionShards
from tests.helpers.vl_files import NAMES, SHADES, png, write_shards, write_tiles


def record(**fields: object) -> bytes:
    return json.dumps({"url": "http://example.invalid", "key": "0", "status": "success", **fields}).encode()


def test_captions_are_those_of_txt_or_else_of_json(tmp_path: Path) -> None:
    samples = [
        {"jpg": png(10), "txt": b"A cat \n", "json": record(caption="another")},
        {"png": png(20), "json": record(caption="a dog")},
        {"png": png(30), "json": record(caption=["one", "two"])},
    ]
    dataset = CaptionShards(str(write_shards(tmp_path / "s", samples, per_tar=2))).open()
    assert [dataset[index].captions for index in range(3)] == [("A cat",), ("a dog",), ("one", "two")]
    assert [dataset[index].load().getpixel((0, 0))[0] for index in (2, 0, 1)] == [30, 10, 20]
    assert pickle.loads(pickle.dumps(dataset))[1].load().size == (8, 8)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, r"neither txt nor json among its fields \(png\)"),
        ({"txt": b" "}, r"the caption \[' '\]"),
        ({"txt": b"\xff"}, "a txt that is no UTF-8"),
        ({"txt": b"a" * 70_000}, "a txt of 70000 bytes, more than 65536"),
        ({"json": b"{"}, "a json that can't be read"),
        ({"json": b"[" * 100_000}, "a json that can't be read"),
        ({"json": b"[]"}, r"the caption \[None\]"),
        ({"json": record(caption=3)}, r"the caption \[3\]"),
        ({"json": record(caption=["a", None])}, r"the caption \['a', None\]"),
        ({"json": record(caption=[])}, r"the caption \[\]"),
    ],
)
def test_a_sample_without_a_usable_caption_is_named(tmp_path: Path, fields: dict[str, bytes], complaint: str) -> None:
    dataset = CaptionShards(str(write_shards(tmp_path / "s", [{"png": png(1), **fields}]))).open()
    with pytest.raises(ShardError, match=f"sample '000000000' has {complaint}"):
        dataset[0]


def test_a_damaged_shard_and_a_sample_without_image_say_so(tmp_path: Path) -> None:
    root = write_shards(
        tmp_path / "s", [{"txt": b"a"}, {"png": b"no image", "txt": b"a"}, {"png": png(1), "txt": b"a"}]
    )
    dataset = CaptionShards(str(root)).open()
    with pytest.raises(ShardError, match="000000000 has no image among its fields"):
        dataset[0].load()
    with pytest.raises(ShardError, match=r"000000001 .* no image"):
        dataset[1].load()
    tar = root / "t-train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:1024])
    with pytest.raises(ShardError, match="is incomplete"):
        CaptionShards(str(root)).open()[2]


def scenes(root: Path, **settings: object) -> MosaicsDataset:
    return Mosaics(str(root), **{"scenes": 200, **settings}).open()  # type: ignore[arg-type]


def test_a_scene_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    root = write_tiles(tmp_path / "s")
    one, again, more = scenes(root), scenes(root), scenes(root, scenes=300)
    assert [one[index] for index in range(50)] == [again[index] for index in reversed(range(50))][::-1]
    assert [one[index] for index in range(50)] == [more[index] for index in range(50)]
    assert one.fingerprint == again.fingerprint
    others = [scenes(root, seed=1), scenes(root, task="question"), scenes(root, last=8), more]
    assert len({dataset.fingerprint for dataset in [one, *others]}) == 5
    assert one[0].captions != scenes(root, seed=1)[0].captions or one[1].captions != scenes(root, seed=1)[1].captions


def test_captions_and_boxes_say_what_the_image_shows(tmp_path: Path) -> None:
    dataset = scenes(write_tiles(tmp_path / "s"))
    counts = set()
    for index in range(100):
        sample, scene = dataset[index], dataset.scene(index)
        pixels = np.asarray(sample.load())
        assert pixels.shape == (16, 16, 3)
        assert sample.boxes is not None
        counts.add(len(sample.boxes))
        for box, label, cell in zip(sample.boxes.long().tolist(), scene.labels, scene.cells, strict=True):
            left, top, right, bottom = box
            assert (pixels[top:bottom, left:right] == SHADES[label]).all()
            phrase = f"{CELLS[cell]} {'an' if NAMES[label] == 'airplane' else 'a'} {NAMES[label]}"
            assert len(sample.captions) == 5
            assert all(phrase in caption for caption in sample.captions)
        named = [sum(caption.count(cell) for cell in CELLS) for caption in sample.captions]
        assert named == [len(sample.boxes)] * 5
    assert counts == {2, 3, 4}


def test_answers_are_right(tmp_path: Path) -> None:
    dataset = scenes(write_tiles(tmp_path / "s"), task="question")
    kinds = set()
    for index in range(200):
        sample, scene = dataset[index], dataset.scene(index)
        question, (answer,) = str(sample.question), sample.answers or {}
        names = [NAMES[label] for label in scene.labels]
        asked = next((name for name in NAMES if f" {name}?" in question), None)
        kinds.add(question.split()[1])
        if "how many pictures are" in question:
            assert answer == str(len(names))
        elif asked is None:
            cell = next(number for number, name in enumerate(CELLS) if name in question)
            assert answer == (names[scene.cells.index(cell)] if cell in scene.cells else NOTHING)
        else:
            found = names.count(asked)
            assert answer == (str(found) if "how many" in question else "yes" if found else "no")
        assert answer in dataset.vocabulary
        assert not sample.captions
    assert kinds == {"is", "many", "there"}


def test_ranges_of_tiles_make_disjoint_splits(tmp_path: Path) -> None:
    root = write_tiles(tmp_path / "s")
    used = [
        {position for index in range(200) for position in scenes(root, **part).scene(index).positions}
        for part in ({"last": 12}, {"first": 12})
    ]
    assert used[0] == set(range(12))
    assert used[1] == set(range(12, 20))


def test_bad_input_of_scenes_is_refused(tmp_path: Path) -> None:
    root = write_tiles(tmp_path / "s")
    with pytest.raises(LGDError, match="positions from 0 to 19"):
        scenes(root, last=21)
    with pytest.raises(LGDError, match="of 0 tiles"):
        scenes(root, first=5, last=5)
    bare = write_shards(tmp_path / "bare", [{"png": png(1), "cls": b"0"}])
    with pytest.raises(VocabularyError, match="names no classes"):
        scenes(bare)
    odd = write_shards(tmp_path / "odd", [{"png": png(1), "cls": b"9"}], names=NAMES)
    with pytest.raises(LGDError, match="label b'9', which is none of 4 classes"):
        scenes(odd)
    with pytest.raises(IndexError):
        MosaicsDataset(open_shards(root, split="train"), tiles=range(4), scenes=2, seed=0)[2]
