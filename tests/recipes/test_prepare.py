"""The archives of ImageNet and Caltech-256, in small, become shards as the paper's recipes want them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageNetInfo

from lgd_timm.data import Views, open_shards
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.subset import keys_by_class, positions, read_subset
from lgd_timm.data.vocabulary import load_vocabulary
from recipes.prepare import caltech256 as prepare_caltech256
from recipes.prepare import imagenet as prepare_imagenet

SYNSETS = ImageNetInfo("imagenet-1k").label_names()

# Some of Caltech-256's folders, and how their names are to be read; all others are made up.
FOLDERS = {
    "001.ak47": "ak47",
    "002.american-flag": "american flag",
    "063.electric-guitar-101": "electric guitar",
    "232.t-shirt": "t-shirt",
    "249.yo-yo": "yo-yo",
    "252.car-side-101": "car side",
    "256.toad": "toad",
}


def jpeg(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def caltech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256_ObjectCategories with its clutter and strays: 6 images in the first class, 4 in each other."""
    root = tmp_path_factory.mktemp("caltech") / "256_ObjectCategories"
    known = {name[:3]: name for name in FOLDERS} | {"257": "257.clutter"}
    for number in range(1, 258):
        folder = root / known.get(f"{number:03d}", f"{number:03d}.thing-{number}")
        folder.mkdir(parents=True)
        for i in range(1, 7 if number == 1 else 5):
            (folder / f"{number:03d}_{i:04d}.jpg").write_bytes(jpeg())
    (root / "198.thing-198" / "RENAME2").write_text("not an image")
    (root / "056.thing-56" / "greg").mkdir()
    (root / "056.thing-56" / "greg" / "056_0099.jpg").write_bytes(jpeg())
    return root


@pytest.fixture(scope="module")
def ct256(caltech: Path) -> Path:
    """As the script makes it, but for 3 images of a class to learn from."""
    assert prepare_caltech256.PER_CLASS == 60
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_caltech256, "PER_CLASS", 3)
        assert prepare_caltech256.main([str(caltech), str(caltech.parent / "ct256")]) == 0
    return caltech.parent / "ct256"


def test_caltech256_has_so_many_of_each_class_to_learn_from_and_the_rest_to_evaluate_on(ct256: Path) -> None:
    train, val = (keys_by_class(open_shards(ct256, split=split)) for split in ("train", "val"))
    assert list(train) == list(val) == list(range(256))
    assert {len(keys) for keys in train.values()} == {3}
    assert [len(keys) for keys in val.values()] == [3] + [1] * 255
    everything = [key for split in (train, val) for keys in split.values() for key in keys]
    assert len(everything) == len(set(everything)) == 4 * 256 + 2
    assert not any("clutter" in key or "greg" in key for key in everything)


def test_caltech256s_names_are_a_vocabulary_in_the_labels_order(ct256: Path) -> None:
    names = load_vocabulary(str(ct256 / "names.txt")).names
    folders = open_shards(ct256, split="train").class_names
    assert len(names) == len(folders) == 256
    assert {folder: names[folders.index(folder)] for folder in FOLDERS} == FOLDERS


def test_caltech256s_split_is_the_seeds(
    caltech: Path, ct256: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_caltech256, "PER_CLASS", 3)
    splits = {0: keys_by_class(open_shards(ct256, split="val"))}
    for seed in (0, 1):
        assert prepare_caltech256.main([str(caltech), str(tmp_path / str(seed)), "--seed", str(seed)]) == 0
    assert open_shards(tmp_path / "0", split="val").fingerprint == open_shards(ct256, split="val").fingerprint
    splits[1] = keys_by_class(open_shards(tmp_path / "1", split="val"))
    assert (
        150 < sum(a != b for a, b in zip(splits[0].values(), splits[1].values(), strict=True)) < 230
    )  # 3 of 4 classes: 192


def test_what_is_not_caltech256_is_one_line_that_says_where_it_is(
    caltech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "001.ak47").mkdir()
    for folder in (tmp_path / "none", tmp_path):
        assert prepare_caltech256.main([str(folder), str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "of Caltech-256's 256 class folders" in said
        assert "https://data.caltech.edu/records/nyy15-4j048" in said
    assert prepare_caltech256.main([str(caltech), str(tmp_path / "out")]) == 2
    assert "001.ak47 holds 6 images, not more than 60" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 2 images of each synset, val/ with 1; the same images of val as the archive has them.

    Flat/ and devkit/.
    """
    root = tmp_path_factory.mktemp("imagenet")
    shades = [jpeg(shade) for shade in (20, 230)]
    order = np.random.default_rng(0).permutation(1000)  # of the validation images
    for label, synset in enumerate(SYNSETS):
        for folder in (root / "train" / synset, root / "val" / synset):
            folder.mkdir(parents=True)
        for i in range(2):
            (root / "train" / synset / f"{synset}_{i}.JPEG").write_bytes(shades[label % 2])
    (root / "flat").mkdir()
    for position, label in enumerate(order, start=1):
        for folder in (root / "flat", root / "val" / SYNSETS[label]):
            (folder / f"ILSVRC2012_val_{position:08d}.JPEG").write_bytes(shades[label % 2])
    write_devkit(root / "devkit" / "data", order)
    return root


def write_devkit(folder: Path, order: np.ndarray) -> None:
    """The devkit's two files, whose numbers of the classes are not in the order of the synsets."""
    savemat = pytest.importorskip("scipy.io").savemat
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(1).permutation(1000) + 1  # label -> number
    rows = [(numbers[label], synset, 0) for label, synset in enumerate(SYNSETS)] + [(1001, "n00001740", 2)]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kinds)})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{numbers[label]}\n" for label in order))


@pytest.fixture(scope="module")
def in1k(imagenet: Path) -> Path:
    """As the script makes it, but for subsets of 1 and 2 images of a class."""
    assert prepare_imagenet.SUBSETS == (13, 128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_imagenet, "SUBSETS", (1, 2))
        assert prepare_imagenet.main([str(imagenet / "train"), str(imagenet / "val"), str(imagenet / "in1k")]) == 0
    return imagenet / "in1k"


def test_imagenets_labels_are_the_synsets_in_sorted_order(in1k: Path) -> None:
    for split, count in (("train", 2000), ("val", 1000)):
        shards = open_shards(in1k, split=split)
        assert (len(shards), list(shards.class_names)) == (count, SYNSETS)
        batch = ShardDataset(shards, views=Views(size=8, augmentation="none"))[(5, 0)]
        assert batch.keys[0].startswith(SYNSETS[int(batch.labels[0])])
        assert bool(batch.images.float().mean() > 128) == bool(batch.labels[0] % 2)


def test_a_flat_folder_and_the_devkit_give_the_same_labels(
    imagenet: Path, in1k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_imagenet, "SUBSETS", ())
    words = [
        str(imagenet / "train"),
        str(imagenet / "flat"),
        str(tmp_path / "in1k"),
        "--devkit",
        str(imagenet / "devkit"),
    ]
    assert prepare_imagenet.main(words) == 0
    assert open_shards(tmp_path / "in1k", split="val").sha256 == open_shards(in1k, split="val").sha256


def test_the_subsets_are_what_the_linear_probe_reads(in1k: Path) -> None:
    shards = open_shards(in1k, split="train")
    small, large = (read_subset(in1k / f"subset_{count}.json") for count in (1, 2))
    assert (len(small), len(large), small.keys < large.keys) == (1000, 2000, True)
    assert len(positions(shards, small)) == 1000
    assert list(json.loads((in1k / "subset_1.json").read_text())) == SYNSETS


def test_a_second_call_makes_what_is_missing(in1k: Path, imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_imagenet, "SUBSETS", (1, 2))
    before = {path: path.read_bytes() for path in in1k.iterdir()}
    (in1k / "subset_1.json").unlink()
    assert prepare_imagenet.main([str(imagenet / "train"), str(imagenet / "val"), str(in1k)]) == 0
    assert {path: path.read_bytes() for path in in1k.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none", "val"], "none is not a folder"),
        (["devkit", "val"], "devkit lacks 1000 of ImageNet's 1000 synset folders, the first is n01440764"),
        (["train", "flat"], "flat has no synset folders. Say which image is what: --devkit"),
        (["train", "flat", "--devkit", "val"], "ILSVRC2012_validation_ground_truth.txt is missing"),
        (["train", "empty", "--devkit", "devkit"], "empty lacks ILSVRC2012_val_00000001.JPEG"),
    ],
)
def test_what_is_not_imagenet_is_one_line_that_says_where_it_is(
    imagenet: Path,
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (imagenet / "empty").mkdir(exist_ok=True)
    monkeypatch.chdir(imagenet)
    assert prepare_imagenet.main([words[0], words[1], str(tmp_path / "out"), *words[2:]]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert "https://www.image-net.org/download.php" in said
    assert not (tmp_path / "out").exists()
