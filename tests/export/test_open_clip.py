"""Export to open_clip: the student's image tower and the teacher's text tower give the same embeddings as here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from lgd_timm import cli
from lgd_timm.config.reader import read_recipe
from lgd_timm.data.vocabulary import Vocabulary
from lgd_timm.errors import WeightsError
from lgd_timm.hub.weights import OPEN_CLIP_FILES
from lgd_timm.publish.folder import Banks, Published, load, round_weights, save
from lgd_timm.publish.open_clip import check_open_clip, write_open_clip
from lgd_timm.students.model import Student, create_student
from lgd_timm.teachers import Conse, OpenCLIP
from lgd_timm.teachers.text_bank import encode_vocabulary
from lgd_timm.training.distill import distill
from tests.helpers.hub_fixtures import environment, publish, read_files, run_script
from tests.helpers.hub_server import HubServer

PROMPTS = ["blue", "green", "red", "a photo of a cat"]

# open_clip alone, from the Hub, in a process that never imports us.
FROM_HUB = """
import json, sys, open_clip, torch
from safetensors.torch import load_file, save_file

inputs, out = {arguments}
model, _ = open_clip.create_model_from_pretrained("hf-hub:me/tiny")
tokens = open_clip.get_tokenizer("hf-hub:me/tiny")({prompts})
model.eval()
with torch.no_grad():
    images = model.encode_image(load_file(inputs)["images"], normalize=True)
    save_file({{"images": images, "texts": model.encode_text(tokens, normalize=True)}}, out)
print(json.dumps("lgd_timm" in sys.modules))
"""


@pytest.fixture(scope="module")
def published(open_clip_folder: Path) -> Published:
    return load(open_clip_folder)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Normalised input, as a model takes it."""
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def loaded(open_clip_folder: Path) -> tuple[Any, Any]:
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{open_clip_folder}")
    return model.eval(), preprocess


@torch.no_grad()
def embeddings(student: Student, images: Tensor) -> Tensor:
    return normalize(student.projector(student.backbone(images)), dim=1)


@torch.no_grad()
def test_images_and_texts_are_embedded_as_by_student_and_teacher(
    loaded: tuple[Any, Any], published: Published, images: Tensor, open_clip_folder: Path, tiny_clip: Path
) -> None:
    model, _ = loaded
    torch.testing.assert_close(
        model.encode_image(images, normalize=True), embeddings(published.student, images), rtol=0, atol=1e-5
    )
    tokens = open_clip.get_tokenizer(f"local-dir:{open_clip_folder}")(PROMPTS)
    teacher, _ = open_clip.create_model_from_pretrained(f"local-dir:{tiny_clip}")
    texts = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(texts, teacher.eval().encode_text(tokens, normalize=True), rtol=0, atol=2e-3)
    assert published.banks.templates == ("{}",)
    torch.testing.assert_close(texts[:3], published.banks.text, rtol=0, atol=2e-3)
    torch.testing.assert_close(model.logit_scale, teacher.logit_scale, rtol=1e-3, atol=0)


@torch.no_grad()
def test_its_zero_shot_answers_are_the_stock_classifiers(
    loaded: tuple[Any, Any], published: Published, images: Tensor, open_clip_folder: Path
) -> None:
    cosines = loaded[0].encode_image(images, normalize=True) @ published.banks.text.T
    logits = timm.create_model(f"local-dir:{open_clip_folder}", pretrained=True).eval()(images)
    clear = cosines.topk(2, dim=1).values.diff(dim=1).abs().flatten() > 1e-3
    assert clear.sum() >= 8
    assert torch.equal(cosines.argmax(1)[clear], logits.argmax(1)[clear])


@pytest.mark.parametrize("size", [(80, 50), (32, 32), (20, 33)])
def test_pictures_become_the_same_pixels(
    loaded: tuple[Any, Any], open_clip_folder: Path, size: tuple[int, int]
) -> None:
    noise = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.numpy())
    stock = timm.create_model(f"local-dir:{open_clip_folder}")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(stock))
    torch.testing.assert_close(loaded[1](picture), transform(picture))


def test_open_clip_loads_it_from_the_hub_without_us(
    open_clip_folder: Path, published: Published, images: Tensor, tmp_path: Path, loaded: tuple[Any, Any]
) -> None:
    inputs, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"images": images}, inputs)
    with HubServer(tmp_path / "hub") as server:
        publish(server, "me/tiny", read_files(open_clip_folder))
        script = FROM_HUB.format(arguments=[str(inputs), str(out)], prompts=PROMPTS)
        assert run_script(script, environment(server.url, tmp_path)) is False
    tensors = load_file(out)
    torch.testing.assert_close(tensors["images"], embeddings(published.student, images), rtol=0, atol=1e-5)
    torch.testing.assert_close(tensors["texts"][:3], published.banks.text, rtol=0, atol=2e-3)


def test_the_files_are_half_precision_and_name_the_stock_architecture(open_clip_folder: Path) -> None:
    tensors = load_file(open_clip_folder / "open_clip_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float16}
    model = json.loads((open_clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    assert (model["vision_cfg"]["timm_model_name"], model["vision_cfg"]["image_size"]) == ("test_resnet", 32)
    assert (model["custom_text"], model["quick_gelu"]) == (True, False)


def test_the_rest_of_the_folder_is_what_it_is_without(open_clip_folder: Path, published_folder: Path) -> None:
    ours, plain = read_files(open_clip_folder), read_files(published_folder)
    assert set(ours) - set(plain) == set(OPEN_CLIP_FILES)
    assert [name for name, content in plain.items() if ours[name] != content] == ["README.md"]


def test_the_command_line_has_it_as_an_option(
    run_folder: Path, open_clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["save", str(run_folder), str(tmp_path / "out"), "--open-clip"]) == 0
    assert capsys.readouterr().out == f"published: {tmp_path / 'out'}\n"
    assert read_files(tmp_path / "out") == read_files(open_clip_folder)


def test_the_activation_is_that_of_the_teacher_that_taught(tiny_clip: Path, tmp_path: Path) -> None:
    clip, out = Path(shutil.copytree(tiny_clip, tmp_path / "clip")), tmp_path / "out"
    config = json.loads((clip / "open_clip_config.json").read_text())
    (clip / "open_clip_config.json").write_text(
        json.dumps({**config, "model_cfg": {**config["model_cfg"], "quick_gelu": True}})
    )
    teacher, vocabulary = OpenCLIP(f"local-dir:{clip}"), Vocabulary(("cat", "dog"), ("a {}", "the {}"))
    text = teacher.text()
    banks = Banks(
        vocabulary.names, vocabulary.templates, encode_vocabulary(text, vocabulary), None, None, text.fingerprint
    )
    student = round_weights(create_student("test_resnet", embed_dim=16, image_size=32))
    out.mkdir()
    write_open_clip(out, student=student, banks=banks, teacher=teacher, architecture="test_resnet")
    assert json.loads((out / "open_clip_config.json").read_text())["model_cfg"]["quick_gelu"] is True
    assert student.training, "the student was left in another mode"


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (
            {},
            lambda clip: Conse("resnet18", "package:x"),
            "The teacher is of kind 'conse', which has no open_clip text tower",
        ),
        ({"projector": "mlp"}, OpenCLIP, r"student.projector is 'mlp', which open_clip can't express"),
    ],
)
def test_what_open_clip_cannot_express_is_refused(
    student: dict[str, Any], teacher: Callable[[str], Any], message: str, tiny_clip: Path
) -> None:
    with pytest.raises(WeightsError, match=message):
        check_open_clip(
            create_student("test_resnet", embed_dim=16, image_size=32, **student), teacher(f"local-dir:{tiny_clip}")
        )


def test_another_interpolation_is_refused(tiny_clip: Path) -> None:
    student = create_student("test_resnet", embed_dim=16, image_size=32)
    student.preprocess.interpolation = "nearest"
    with pytest.raises(WeightsError, match="resized with 'nearest', open_clip knows bicubic and bilinear"):
        check_open_clip(student, OpenCLIP(f"local-dir:{tiny_clip}"))


def test_another_teachers_text_tower_is_refused(published: Published, tiny_clip: Path, tmp_path: Path) -> None:
    banks = replace(published.banks, text_fingerprint="0123")
    with pytest.raises(
        WeightsError, match=r"is not the one that read the student's names \(fingerprint [0-9a-f]{16}, theirs 0123\)"
    ):
        write_open_clip(
            tmp_path,
            student=published.student,
            banks=banks,
            teacher=OpenCLIP(f"local-dir:{tiny_clip}"),
            architecture="test_resnet",
        )


def test_what_comes_out_otherwise_is_refused(published: Published, tiny_clip: Path, tmp_path: Path) -> None:
    """Written files are compared: a text bank of other prompts or another architecture is noticed."""
    teacher = OpenCLIP(f"local-dir:{tiny_clip}")
    banks = replace(published.banks, text=published.banks.text.roll(1, dims=0))
    with pytest.raises(WeightsError, match="open_clip gives other text embeddings than the text bank has"):
        write_open_clip(tmp_path, student=published.student, banks=banks, teacher=teacher, architecture="test_resnet")
    with pytest.raises(
        WeightsError, match=r"open_clip can't load open_clip_config.json and open_clip_model.safetensors"
    ):
        write_open_clip(
            tmp_path, student=published.student, banks=published.banks, teacher=teacher, architecture="test_vit"
        )


def test_nothing_is_left_of_a_folder_that_could_not_be_written(
    published: Published, tiny_clip: Path, tmp_path: Path
) -> None:
    banks = replace(published.banks, text_fingerprint="0123")
    facts: dict[str, Any] = {
        "recipe": published.recipe,
        "metrics": {},
        "name": "x.y",
        "open_clip": OpenCLIP(f"local-dir:{tiny_clip}"),
    }
    with pytest.raises(WeightsError, match="is not the one that read"):
        save(tmp_path / "out", student=published.student, banks=banks, **facts)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_says_why_not_before_it_evaluates(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(run_folder / "recipe.yaml")
    distill(replace(recipe, student=replace(recipe.student, projector="mlp")), out=tmp_path / "run")
    monkeypatch.setattr("lgd_timm.training.state.Run.zero_shot", None)
    assert cli.main(["save", str(tmp_path / "run"), str(tmp_path / "out"), "--open-clip"]) == 2
    assert "student.projector is 'mlp', which open_clip can't express" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
