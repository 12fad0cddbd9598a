"""The published folder: the same answers wherever it is loaded, stock and without pickles, whole or not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from lgd_timm import hub
from lgd_timm.config.reader import recipe_from_dict
from lgd_timm.config.recipe import Recipe
from lgd_timm.errors import WeightsError
from lgd_timm.hub import weights
from lgd_timm.publish import folder as publish
from lgd_timm.publish.folder import Banks, Published, load, round_weights, save
from lgd_timm.publish.registration import manifest_row, register
from lgd_timm.students.model import Student, create_student
from tests.helpers.hub_fixtures import environment, run_script

NAMES = ("blue", "green", "red")
STOCK = ["README.md", "config.json", "lgd.safetensors", "metrics.json", "model.safetensors", "recipe.yaml"]

# Loads the folder with plain timm and with transformers, in a process that never imports us.
ELSEWHERE = """
import json, sys, timm, torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageClassification

folder, batch, out = {arguments}
images = load_file(batch)["images"]
classifier = timm.create_model(f"local-dir:{{folder}}", pretrained=True).eval()
backbone = timm.create_model(f"local-dir:{{folder}}", pretrained=True, num_classes=0).eval()
wrapper = AutoModelForImageClassification.from_pretrained(folder).eval().float()
with torch.no_grad():
    tensors = {{"logits": classifier(images), "features": backbone(images)}}
    tensors["wrapped"] = wrapper(pixel_values=images).logits
save_file(tensors, out)
labels = AutoConfig.from_pretrained(folder).id2label
facts = {{"lgd_timm": "lgd_timm" in sys.modules, "wrapper": type(wrapper).__name__, "labels": list(labels.values())}}
data = timm.data.resolve_model_data_config(classifier)
print(json.dumps({{**facts, "data": data, "label_names": classifier.pretrained_cfg["label_names"]}}))
"""


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Normalised input, as a model takes it."""
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def published(published_folder: Path) -> Published:
    return load(published_folder)


@pytest.fixture
def copy(published_folder: Path, tmp_path: Path) -> Path:
    """A published folder, to be changed."""
    return Path(shutil.copytree(published_folder, tmp_path / "copy"))


def small_recipe(**student: Any) -> Recipe:
    """A recipe to publish with; nothing of it is read from disk."""
    return recipe_from_dict(
        {
            "name": "small",
            "teacher": {"kind": "open_clip", "model": "RN50"},
            "vocabulary": {"source": list(NAMES)},
            "data": {"shards": "data/colours"},
            "student": {"model": "test_resnet", **student},
        }
    )


def small_student(recipe: Recipe, *, seed: int = 0) -> Student:
    torch.manual_seed(seed)
    student = create_student(recipe.student.model, embed_dim=16, projector=recipe.student.projector, image_size=32)
    for _ in range(3):  # batch norms that differ from their start
        student.train()(torch.rand(8, 3, 32, 32))
    return round_weights(student).eval()


def small_banks(*, visual: bool = True) -> Banks:
    draw = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(3, 16, generator=draw), dim=1)
    rows = normalize(torch.randn(3, 16, generator=draw), dim=1).half().float() if visual else None
    return Banks(NAMES, ("a photo of a {}",), text, rows, torch.tensor([True, False, True]) if visual else None, "0123")


def save_small(out: Path, **changes: Any) -> Path:
    recipe = changes.pop("recipe", small_recipe())
    settings = {
        "student": small_student(recipe),
        "banks": small_banks(),
        "metrics": {},
        "name": "test_resnet.small",
        **changes,
    }
    return save(out, recipe=recipe, **settings)


@torch.no_grad()
def answers(folder: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and features of the folder as timm loads it here."""
    models = (
        timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs).eval()
        for kwargs in ({}, {"num_classes": 0})
    )
    logits, features = (model(images) for model in models)
    return logits, features


# --------------------------------------------------------------------------------------------------- the same elsewhere


@pytest.fixture(scope="module")
def elsewhere(
    published_folder: Path, images: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What plain timm and transformers make of the folder, and what they say of it."""
    home = tmp_path_factory.mktemp("elsewhere")
    batch, out = home / "batch.safetensors", home / "out.safetensors"
    save_file({"images": images}, batch)
    script = ELSEWHERE.format(arguments=[str(published_folder), str(batch), str(out)])
    facts = run_script(script, environment("http://127.0.0.1:9", home, HF_HUB_OFFLINE="1"))
    return load_file(out), facts


def test_plain_timm_answers_the_same_without_us(
    elsewhere: tuple[dict[str, Tensor], dict[str, Any]], published: Published, published_folder: Path, images: Tensor
) -> None:
    tensors, facts = elsewhere
    assert facts["lgd_timm"] is False
    logits, features = answers(published_folder, images)
    assert torch.equal(tensors["logits"], logits)
    assert torch.equal(tensors["features"], features)
    with torch.no_grad():
        assert torch.equal(published.student.backbone(images), features)


def test_transformers_answers_the_same_without_us(elsewhere: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
    tensors, facts = elsewhere
    assert facts["wrapper"] == "TimmWrapperForImageClassification"
    assert facts["labels"] == list(NAMES)
    torch.testing.assert_close(tensors["wrapped"], tensors["logits"], rtol=1e-5, atol=1e-5)


def test_plain_timm_knows_names_and_input(
    elsewhere: tuple[dict[str, Tensor], dict[str, Any]], published: Published
) -> None:
    facts = elsewhere[1]
    preprocess = published.student.preprocess
    assert facts["label_names"] == list(NAMES)
    assert facts["data"]["input_size"] == [3, 32, 32]
    assert facts["data"]["crop_pct"] == 1.0
    assert facts["data"]["mean"] == pytest.approx(preprocess.mean.flatten().tolist())
    assert facts["data"]["std"] == pytest.approx(preprocess.std.flatten().tolist())


# ------------------------------------------------------------------------------------------------------ the classifier


def test_the_classifier_is_the_zero_shot_classifier(
    published: Published, published_folder: Path, images: Tensor
) -> None:
    """Folded logits are the zero-shot logits times a positive number an image, but for float16."""
    logits, _ = answers(published_folder, images)
    with torch.no_grad():
        embeddings = published.student.projector(published.student.backbone(images))
    cosines = normalize(embeddings, dim=1) @ published.banks.text.T
    scale = (logits * cosines).sum(1) / cosines.square().sum(1)
    assert (scale > 0).all()
    torch.testing.assert_close(logits, scale[:, None] * cosines, rtol=0, atol=2e-3 * logits.abs().max().item())
    for row, reference in zip(logits, cosines, strict=True):
        assert torch.corrcoef(torch.stack([row, reference]))[0, 1] > 0.999
    margin = cosines.topk(2, dim=1).values.diff(dim=1).abs().flatten()
    clear = margin > 1e-3
    assert clear.sum() >= 8
    assert torch.equal(logits.argmax(1)[clear], cosines.argmax(1)[clear])


def test_the_classifiers_scale_is_the_students_own_softmax(tmp_path: Path, images: Tensor) -> None:
    """Where the embedding has the mean length, logits are cosine / student temperature."""
    student = small_student(small_recipe())
    with torch.no_grad():
        embeddings = student.projector(student.backbone(images))
    norms = embeddings.norm(dim=1)
    logits, _ = answers(save_small(tmp_path / "out", student=student, embedding_norm=float(norms.mean())), images)
    cosines = normalize(embeddings, dim=1) @ small_banks().text.T
    expected = cosines / 0.2 * (norms / norms.mean())[:, None]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-2 * expected.abs().max().item())


def test_an_mlp_projector_stays_beside_the_backbone(tmp_path: Path, images: Tensor) -> None:
    recipe = small_recipe(projector="mlp")
    student = small_student(recipe)
    folder = save_small(tmp_path / "out", recipe=recipe, student=student)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_classes"] == 0
    assert "label_names" not in config
    assert {key for key in load_file(folder / "model.safetensors") if key.startswith("fc")} == set()
    again = load(folder)
    with torch.no_grad():
        assert torch.equal(
            again.student.projector(again.student.backbone(images)), student.projector(student.backbone(images))
        )
    logits, features = answers(folder, images)
    assert torch.equal(logits, features)  # plain timm gives the backbone


# -------------------------------------------------------------------------------------------------------- what is in it


def test_the_folder_holds_seven_files_and_no_pickle(published_folder: Path) -> None:
    assert sorted(path.name for path in published_folder.iterdir()) == sorted([*STOCK, "training.png"])
    assert all(
        not path.read_bytes().startswith((b"\x80", b"PK")) for path in published_folder.iterdir()
    )  # pickle, torch's zip


def test_config_names_the_stock_architecture_and_no_source(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "out", recipe=small_recipe(model="lgd_resnet18"), name="lgd_resnet18.small")
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "resnet18"
    assert config["label_names"] == list(NAMES)
    assert config["num_classes"] == 3
    assert {"url", "file", "hf_hub_id", "state_dict"} & config["pretrained_cfg"].keys() == set()
    stock = timm.create_model("resnet18", num_classes=3).state_dict()
    assert {key: tensor.shape for key, tensor in load_file(folder / "model.safetensors").items()} == {
        key: tensor.shape for key, tensor in stock.items()
    }


def test_config_has_the_students_own_input(tmp_path: Path) -> None:
    recipe = small_recipe()
    torch.manual_seed(0)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    student = create_student("test_resnet", embed_dim=16, image_size=48, mean=mean, std=std)
    folder = save_small(tmp_path / "out", recipe=recipe, student=round_weights(student))
    cfg = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert cfg["input_size"] == [3, 48, 48]
    assert cfg["mean"] == pytest.approx(mean)
    assert cfg["std"] == pytest.approx(std)
    again = load(folder).student.preprocess
    assert torch.equal(again.mean, student.preprocess.mean)
    assert (again.size, again.interpolation) == (48, student.preprocess.interpolation)


@pytest.mark.parametrize("visual", [True, False], ids=["with visual bank", "without"])
def test_everything_saved_loads_again(tmp_path: Path, images: Tensor, visual: bool) -> None:
    recipe, banks = small_recipe(), small_banks(visual=visual)
    student = small_student(recipe)
    again = load(
        save_small(tmp_path / "out", recipe=recipe, student=student, banks=banks, metrics={"summary": {"top1": 1.5}})
    )
    assert (again.banks.names, again.banks.templates, again.banks.text_fingerprint) == (
        NAMES,
        ("a photo of a {}",),
        "0123",
    )
    assert torch.equal(again.banks.text, banks.text)  # exact: it is float32
    for ours, theirs in ((again.banks.visual, banks.visual), (again.banks.seen, banks.seen)):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)  # type: ignore[arg-type]
    assert again.recipe == recipe
    assert again.metrics == {"summary": {"top1": 1.5}}
    assert again.label_names == NAMES
    pixels = (images.clamp(0, 1) * 255).byte()
    with torch.no_grad():
        assert torch.equal(again.student(pixels), student(pixels))
    assert not again.student.training


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    first, second = (save_small(tmp_path / name) for name in ("first", "second"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    with safe_open(first / "lgd.safetensors", framework="pt") as file:
        assert list(json.loads(file.metadata()["names"])) == list(NAMES)


def test_names_of_any_script_come_back(tmp_path: Path) -> None:
    names = ("größe", "猫", 'a "quoted" \\ name')
    banks = small_banks()
    folder = save_small(tmp_path / "out", banks=Banks(names, banks.templates, banks.text, None, None, "0"))
    assert load(folder).banks.names == names
    assert json.loads((folder / "config.json").read_text())["label_names"] == list(names)


def test_rounding_before_measuring_is_what_saving_does(tmp_path: Path, images: Tensor) -> None:
    """A student that was rounded answers as the folder does; one that was not does not."""
    recipe = small_recipe()
    torch.manual_seed(0)
    exact = create_student("test_resnet", embed_dim=16, image_size=32).eval()
    with torch.no_grad():
        before = exact.backbone(images)
        _, features = answers(save_small(tmp_path / "out", recipe=recipe, student=exact), images)
        assert not torch.equal(before, features)
        assert torch.equal(round_weights(exact).backbone(images), features)


def test_the_card_is_for_the_repository_that_is_named(tmp_path: Path) -> None:
    assert '"hf-hub:me/x"' in (save_small(tmp_path / "theirs", repo_id="me/x") / "README.md").read_text()
    assert '"hf-hub:lgd-timm/test_resnet.small"' in (save_small(tmp_path / "ours") / "README.md").read_text()


def test_a_picture_that_is_given_is_published_and_shown(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "out", curve=b"\x89PNG\r\n")
    assert (folder / "training.png").read_bytes() == b"\x89PNG\r\n"
    assert "](training.png)" in (folder / "README.md").read_text()
    assert "training.png" not in (save_small(tmp_path / "bare") / "README.md").read_text()


def test_float32_can_be_published(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "out", dtype=torch.float32)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float32, torch.int64}


# ------------------------------------------------------------------------------------------------------------- refusals


def test_weights_that_overflow_float16_are_refused(tmp_path: Path) -> None:
    recipe = small_recipe()
    student = small_student(recipe)
    key = next(key for key, tensor in student.backbone.state_dict().items() if tensor.ndim == 4)
    with torch.no_grad():
        student.backbone.state_dict()[key].view(-1)[0] = 1e5
    with pytest.raises(WeightsError, match=rf"{key} does not fit torch.float16: save with dtype=torch.float32"):
        save_small(tmp_path / "out", recipe=recipe, student=student)
    assert list(tmp_path.iterdir()) == []
    assert save_small(tmp_path / "out", recipe=recipe, student=student, dtype=torch.float32).is_dir()


def test_a_projector_that_overflows_float16_is_refused(tmp_path: Path) -> None:
    recipe = small_recipe(projector="mlp")
    student = small_student(recipe)
    with torch.no_grad():
        next(student.projector.parameters()).view(-1)[0] = 1e5
    with pytest.raises(WeightsError, match=r"projector.0.weight does not fit torch.float16"):
        save_small(tmp_path / "out", recipe=recipe, student=student)


def test_weights_that_are_not_finite_are_refused_in_any_type(tmp_path: Path) -> None:
    recipe = small_recipe()
    student = small_student(recipe)
    with torch.no_grad():
        next(student.backbone.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(WeightsError, match=r"holds values that are not finite\. The training diverged"):
        save_small(tmp_path / "out", recipe=recipe, student=student, dtype=torch.float32)
    with pytest.raises(WeightsError, match=r"^backbone\.\S+ holds values that are not finite"):
        round_weights(student)


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(WeightsError, match=r"out exists and is no empty folder\. Choose another one"):
        save_small(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    with pytest.raises(WeightsError, match="is no empty folder"):
        save_small(tmp_path / "out" / "thesis.txt")


def test_a_failure_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> str:
        raise OSError("No space left on device")

    monkeypatch.setattr(publish, "card_of", failing)  # the last file
    with pytest.raises(OSError, match="No space left"):
        save_small(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "lgd.safetensors", "recipe.yaml"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(WeightsError, match=f"copy lacks {name}, so it is no folder that lgd_timm published"):
        load(copy)


def test_metrics_are_no_need(copy: Path) -> None:
    (copy / "metrics.json").unlink()
    assert load(copy).metrics == {}


def test_a_newer_format_is_refused(copy: Path) -> None:
    path = copy / "lgd.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata={**metadata, "lgd_format": "lgd_timm 2"})
    with pytest.raises(
        WeightsError, match=r"has format 'lgd_timm 2', this version reads 'lgd_timm 1'\. Upgrade lgd_timm"
    ):
        load(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "lgd.safetensors"])
def test_a_file_that_ends_early_is_refused(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"copy.*can't (be read|load).*Pull or save it again"):
        load(copy)


# ------------------------------------------------------------------------------------------------------------- manifest


def test_the_manifest_row_has_what_timm_needs(published_folder: Path) -> None:
    row = manifest_row(
        published_folder, repo_id="me/x", commit="a" * 40, files={"config.json": {"size": 1, "sha256": "0"}}
    )
    metrics = json.loads((published_folder / "metrics.json").read_text())
    assert row["metrics"] == metrics["summary"]
    assert row["cfg"]["num_classes"] == 3
    assert row["cfg"]["input_size"] == [3, 32, 32]
    assert row["cfg"]["label_names"] == list(NAMES)
    assert (row["repo_id"], row["commit"], list(row["files"])) == ("me/x", "a" * 40, ["config.json"])
    assert json.loads(json.dumps(row)) == row


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty manifest in place of the package's."""
    path = tmp_path / "manifest.json"
    path.write_text("{}")
    monkeypatch.setattr(weights, "MANIFEST", path)
    return path


def test_a_registered_folder_is_found_by_its_name(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "lgd_resnet18.small"
    folder = save_small(tmp_path / "hub" / name, recipe=small_recipe(model="lgd_resnet18"), name=name)
    register(folder, repo_id="me/x")
    monkeypatch.setenv("LGD_TIMM_HUB", str(folder.parent))
    assert hub.locate(name) == folder
    weight = hub.manifest()[name]
    assert (weight.repo_id, weight.commit, weight.cfg["num_classes"], set(weight.files)) == (
        "me/x",
        None,
        3,
        set(STOCK),
    )
    register(folder, repo_id="me/x", commit="b" * 40)  # again, once it is on the Hub
    assert {key: row.commit for key, row in hub.manifest().items()} == {name: "b" * 40}
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(WeightsError, match=r"is not what was published: README.md should have"):
        hub.locate(name)


@pytest.mark.parametrize("name", ["resnet18.small", "lgd_resnet18", "small"])
def test_a_folder_that_is_named_otherwise_is_not_registered(manifest: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(
        WeightsError, match=f"'{name}' is no weight's name. Name the folder <entry>.<tag>; entries are lgd_resnet18"
    ):
        register(save_small(tmp_path / name), repo_id="me/x")
    assert manifest.read_text() == "{}"


def test_a_folder_that_cannot_be_published_is_not_registered(manifest: Path, tmp_path: Path) -> None:
    folder = save_small(tmp_path / "lgd_resnet18.small")
    (folder / "notes.txt").write_text("x")
    with pytest.raises(WeightsError, match=r"holds notes.txt; published are only"):
        register(folder, repo_id="me/x")
    assert manifest.read_text() == "{}"
