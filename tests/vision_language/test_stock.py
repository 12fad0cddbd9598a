"""The causal student is a stock model: transformers alone loads it, bit-equal, and generates the same words."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from lgd_timm.errors import RecipeError, TeacherError, WeightsError
from lgd_timm.vision_language.losses.hidden_mse import HiddenMSEConfig
from lgd_timm.vision_language.losses.nce import NCEConfig
from lgd_timm.vision_language.recipe import DistillationRecipe
from lgd_timm.vision_language.stock import CausalLearner, CausalModel, StockModelRecipe, StockRecipe, save_stock
from lgd_timm.vision_language.text import Tokenizer, find_tokenizer

pytest.importorskip("transformers")

TINY = StockModelRecipe(
    backbone="test_efficientnet", image_size=64, output_stride=16, layers=2, width=16, heads=2, inner=32, length=8
)
CAPTIONS = ["a cat", "two dogs and a red ship"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return find_tokenizer("words", texts=CAPTIONS)


def images(count: int = 2, size: int = 64) -> list[Image.Image]:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, size, size, 3), generator=draw, dtype=torch.uint8)
    return [Image.fromarray(one.numpy()) for one in pixels]


def made(tokenizer: Tokenizer, recipe: StockModelRecipe = TINY, *, seed: int = 0) -> CausalModel:
    torch.manual_seed(seed)
    return CausalModel(recipe, tokenizer=tokenizer)


@pytest.mark.parametrize("backbone", ["lgd_resnet18", "lgd_mobilenetv2", "lgd_efficientnet_b0"])
def test_each_student_is_a_vision_tower(tokenizer: Tokenizer, backbone: str) -> None:
    torch.manual_seed(0)
    weights = timm.create_model(backbone)
    model = CausalModel(replace(TINY, backbone=backbone), tokenizer=tokenizer, backbone=weights).eval()
    logits, states = model(model.collate(images(), CAPTIONS), states=True)
    assert logits.shape == (3 + 7, len(tokenizer) + 1)
    assert states is not None
    assert [tuple(one.shape) for one in states.hidden] == [(2, 16 + 8, 16)] * 2
    assert [tuple(one.shape) for one in states.attention] == [(2, 2, 24, 24)] * 2
    taken = model.vision.timm_model.state_dict()
    assert all(torch.equal(tensor, weights.state_dict()[key]) for key, tensor in taken.items())


STRANGER = """
import sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder = sys.argv[1]
model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
processor = AutoProcessor.from_pretrained(folder)
image = Image.open(folder + "/../image.png")
inputs = processor(images=[image], text=["<image>[CLS]"], return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
    words = model.generate(**inputs, do_sample=False)
found = {"logits": logits, "words": words, "pixels": inputs["pixel_values"], "ids": inputs["input_ids"]}
torch.save(found, sys.argv[2])
assert not [name for name in sys.modules if name.startswith("lgd_timm")]
"""


def test_transformers_alone_loads_the_folder_bit_equal(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = made(tokenizer).eval()
    (image,) = images(1)
    image.save(tmp_path / "image.png")
    recipe = StockRecipe(model=TINY)
    folder = save_stock(tmp_path / "published", model, recipe=recipe, metrics={"cider": 1.5})
    assert {"config.json", "model.safetensors", "recipe.yaml", "metrics.json"} <= {p.name for p in folder.iterdir()}
    run = [sys.executable, "-c", STRANGER, str(folder), str(tmp_path / "out.pt")]
    subprocess.run(run, check=True, cwd=tmp_path, env={"PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    found = torch.load(tmp_path / "out.pt")
    ours = model.collate([image], ["a"])
    prompt = ours.ids[:, : TINY.cells + 1]
    assert torch.equal(found["ids"], prompt)
    assert torch.allclose(found["pixels"], ours.pixels, atol=2 / 255 / min(model.std))  # a resize to the same size
    model.stock.set_attn_implementation("eager")
    with torch.no_grad():
        logits = model.stock(
            input_ids=prompt, pixel_values=found["pixels"], attention_mask=torch.ones_like(prompt)
        ).logits
    assert torch.equal(found["logits"], logits)
    assert found["words"].shape[1] > prompt.shape[1]


def test_distillation_teaches_student_and_projectors_alone(tokenizer: Tokenizer) -> None:
    teacher = made(tokenizer, replace(TINY, layers=3, width=32), seed=1)
    student = made(tokenizer)
    recipe = DistillationRecipe(nce=NCEConfig(queue=64), hidden_mse=HiddenMSEConfig(weight=1.0))
    learner = CausalLearner(student, recipe=recipe, teacher=teacher).train()
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    vision = {key: tensor.clone() for key, tensor in student.vision.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=1e-2)
    batch = student.collate(images(), CAPTIONS)
    sums = []
    for _ in range(15):
        losses = learner(batch)
        assert losses.keys() == {"task", "attention", "nce", "hidden_mse", "logits"}
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update()
        sums.append(loss.item())
    assert sums[-1] < 0.8 * sums[0]
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())
    assert all(torch.equal(tensor, vision[key]) for key, tensor in student.vision.state_dict().items())
    assert not [key for key in learner.state_dict() if "teacher" in key]
    trained = {name for name, parameter in learner.named_parameters() if parameter.grad is not None}
    assert trained
    assert not [name for name in trained if "vision" in name]


def test_later_words_leave_earlier_logits_equal(tokenizer: Tokenizer) -> None:
    model = made(tokenizer).eval()
    one, other = (model.collate(images(1), [text]) for text in ("two dogs and a", "two dogs and ship"))
    with torch.no_grad():
        assert torch.equal(model(one)[0][:4], model(other)[0][:4])


def test_what_does_not_fit_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="image_size = 60 must divide"):
        replace(TINY, image_size=60)
    with pytest.raises(RecipeError, match="width = 15 must divide"):
        replace(TINY, width=15)
    with pytest.raises(RecipeError, match="vit_tiny_patch16_224"):
        made(tokenizer, replace(TINY, backbone="vit_tiny_patch16_224"))
    other = made(find_tokenizer("words", texts=["x y z"]))
    with pytest.raises(TeacherError, match="another tokenizer"):
        CausalLearner(made(tokenizer), recipe=DistillationRecipe(), teacher=other)
    with pytest.raises(TeacherError, match="another cells"):
        CausalLearner(
            made(tokenizer), recipe=DistillationRecipe(), teacher=made(tokenizer, replace(TINY, image_size=32))
        )
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="is no empty folder"):
        save_stock(tmp_path, made(tokenizer), recipe=StockRecipe(), metrics={})
    model = made(tokenizer)
    with torch.no_grad():
        model.stock.model.multi_modal_projector.linear_1.weight.fill_(1e6)
    with pytest.raises(WeightsError, match=r"does not fit torch\.float16"):
        save_stock(tmp_path / "new", model, recipe=StockRecipe(), metrics={}, dtype=torch.float16)
    assert not (tmp_path / "new").exists()
