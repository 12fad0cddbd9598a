"""What a published folder must be, file by file.

Each thing that can be wrong with it is found before it is published.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lgd_timm.errors import WeightsError
from lgd_timm.hub.weights import OPEN_CLIP_FILES, REQUIRED_FILES, TIMM_FILES
from lgd_timm.publish import check as module
from lgd_timm.publish.check import check_folder
from lgd_timm.utils.files import sha256_of
from tests.helpers.hub_fixtures import make_folder, read_files

Change = Callable[[Path], Any]


@pytest.fixture
def copy(open_clip_folder: Path, tmp_path: Path) -> Path:
    """A whole published folder, with every file that there can be, to be changed."""
    return Path(shutil.copytree(open_clip_folder, tmp_path / "copy"))


def test_a_run_leaves_a_folder_that_can_be_published(open_clip_folder: Path, published_folder: Path) -> None:
    facts = check_folder(open_clip_folder)
    assert set(facts) == set(TIMM_FILES)
    assert facts["training.png"]["sha256"] == sha256_of(open_clip_folder / "training.png")
    start = time.perf_counter()
    assert set(check_folder(published_folder)) == set(TIMM_FILES) - set(OPEN_CLIP_FILES)
    assert time.perf_counter() - start < 5


def test_all_but_three_files_are_optional(copy: Path) -> None:
    for name in set(TIMM_FILES) - set(REQUIRED_FILES):
        (copy / name).unlink()
    assert set(check_folder(copy)) == set(REQUIRED_FILES)


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def weights(name: str, edit: Callable[[dict[str, Any], dict[str, str]], Any]) -> Change:
    """Change tensors or metadata of a safetensors file."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        with safe_open(folder / name, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        edit(tensors, metadata)
        save_file(tensors, folder / name, metadata=metadata)

    return change


def write(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def shift(tensors: dict[str, Any], key: str) -> None:
    tensors[key] = tensors[key][:-1].contiguous()


REFUSED: dict[str, tuple[Change, str]] = {
    "weights that are not finite": (
        weights("model.safetensors", lambda tensors, _: tensors["conv1.0.weight"].fill_(float("nan"))),
        r"asked about a black picture, the model answers \(1, 3\) numbers, not all finite",
    ),
    "an input that the model does not take": (
        lambda folder: config(
            pretrained_cfg={
                **json.loads((folder / "config.json").read_text())["pretrained_cfg"],
                "input_size": [1, 32, 32],
            }
        )(folder),
        "does not answer|does not fit test_resnet strictly",
    ),
    "other names than the classifier's": (
        config(label_names=["a", "b", "c"]),
        r"label_names \['a', 'b', 'c'\], expected \['blue', 'green', 'red'\]",
    ),
    "a text bank of another length": (
        weights("lgd.safetensors", lambda tensors, _: shift(tensors, "text_bank")),
        "text bank of rows 2, expected 3",
    ),
    "a projector of another model": (
        weights("lgd.safetensors", lambda tensors, _: shift(tensors, "projector.weight")),
        r"projector \(\d+, 15\), expected \(\d+, 16\)",
    ),
    "no projector": (
        weights("lgd.safetensors", lambda tensors, _: tensors.pop("projector.weight")),
        "lacks|holds no projector",
    ),
    "a newer format": (
        weights("lgd.safetensors", lambda _, facts: facts.update(lgd_format="lgd_timm 2")),
        "format 'lgd_timm 2'",
    ),
    "a file of nobody's": (weights("lgd.safetensors", lambda _, facts: facts.clear()), "has format None"),
    "facts that are missing": (
        weights("lgd.safetensors", lambda _, facts: facts.pop("names")),
        r"lacks what its format has \(KeyError\('names'\)\)",
    ),
    "a recipe with an unknown field": (
        write("recipe.yaml", "nme: x\n"),
        r"recipe.yaml is no recipe that this version reads: .*nme",
    ),
    "a recipe that is no YAML": (write("recipe.yaml", "a: ["), "recipe.yaml is no recipe that this version reads"),
    "metrics that are no JSON": (write("metrics.json", "{"), "metrics.json can't be read"),
    "metrics that are a list": (write("metrics.json", "[]"), "metrics.json can't be read .*must be an object"),
    "a picture that is none": (write("training.png", "GIF89a"), "training.png is no PNG"),
    "half of open_clip's files": (
        lambda folder: (folder / "open_clip_config.json").unlink(),
        "one of open_clip's two files and lacks open_clip_config.json",
    ),
    "open_clip's weights of another model": (
        weights("open_clip_model.safetensors", lambda tensors, _: shift(tensors, "visual.head.proj.weight")),
        "open_clip can't load open_clip_config.json and open_clip_model.safetensors",
    ),
    "an open_clip configuration of nobody's": (write("open_clip_config.json", "{}"), "open_clip can't load"),
    "a model-index that is none": (
        write("README.md", "---\nmodel-index:\n- results: 3\n---\n"),
        "the Hub's client refuses its front matter",
    ),
    "a model-index without a name": (
        write("README.md", "---\nmodel-index: [{name: x, results: [{task: {type: a}, metrics: []}]}]\n---\n"),
        "the Hub's client refuses its front matter",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_published_is_said(copy: Path, case: str) -> None:
    change, message = REFUSED[case]
    change(copy)
    with pytest.raises(WeightsError, match=message):
        check_folder(copy)


def test_without_open_clip_its_files_are_looked_at_only(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert set(check_folder(copy)) == set(TIMM_FILES)
    (copy / "open_clip_config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"open_clip_config.json lacks model_cfg"):
        check_folder(copy)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A published folder that timm alone has made, with a stock model and a card."""
    return make_folder(tmp_path / "small")


def test_it_gives_size_and_sha256_of_every_file(small: Path) -> None:
    contents = read_files(small)
    expected = {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in contents.items()}
    assert check_folder(small) == expected


def rename_architecture(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architecture": name}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "README.md").unlink(), r"README\.md missing"),
        (lambda folder: (folder / "README.md").write_text("# no front matter\n"), "no front matter"),
        (lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"), "not YAML"),
        (lambda folder: (folder / "config.json").write_text("{}"), "no timm config"),
        (rename_architecture("lgd_resnet18"), "'lgd_resnet18', which plain timm does not have"),
        (rename_architecture("resnet99"), "'resnet99', which plain timm does not have"),
        (rename_architecture("test_vit"), "does not fit test_vit strictly"),
        (lambda folder: shutil.copy(make_folder(folder.parent / "other", num_classes=4) / "config.json", folder),
         r"fc\.weight is \(3, \d+\) and should be \(4, \d+\)"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"garbage"), "does not open as safetensors"),
        (lambda folder: (folder / "lgd.safetensors").write_bytes(b"garbage"), r"lgd\.safetensors does not open"),
        (lambda folder: (folder / "weights.bin").write_bytes(b""), r"holds weights\.bin"),
    ],
)  # fmt: skip
def test_what_others_made_is_checked_too(small: Path, change: Callable[[Path], Any], message: str) -> None:
    change(small)
    with pytest.raises(WeightsError, match=message):
        check_folder(small)
