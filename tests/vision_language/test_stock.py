"""A student of transformers' own class: it takes our batches and losses, and transformers alone says the same words."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lgd_timm.errors import LGDError, RecipeError, WeightsError
from lgd_timm.vision_language.batch import Batch, Encoder, collate
from lgd_timm.vision_language.data.sample import Sample
from lgd_timm.vision_language.describe import caption
from lgd_timm.vision_language.features import regions_of
from lgd_timm.vision_language.folder import open_model
from lgd_timm.vision_language.generate import generate, sample
from lgd_timm.vision_language.learner import Distillation, Learner, task_logits
from lgd_timm.vision_language.losses.hidden_mse import HiddenMSEConfig
from lgd_timm.vision_language.losses.nce import NCEConfig
from lgd_timm.vision_language.recipe import Captions, DistillationRecipe, GridRegions, TextRecipe, VisionRecipe
from lgd_timm.vision_language.regions import Grid
from lgd_timm.vision_language.run import adapted, distill, evaluate, pretrain, publish
from lgd_timm.vision_language.self_critical import log_probabilities
from lgd_timm.vision_language.stock import CausalConfig, CausalModel
from lgd_timm.vision_language.teacher import OnlineTeacher
from lgd_timm.vision_language.text import Tokenizer, find_tokenizer
from lgd_timm.vision_language.tower import TowerFeatures, open_tower
from tests.helpers.vl_data import raise_a_weight, recipe, write_scenes

pytest.importorskip("transformers")

CELLS = 4
TASK = Captions(predict="next", label_smoothing=0.0, words=6)
CAPTIONS = ["a cat", "two dogs and a red ship"]
FASTVLM: dict[str, Any] = {
    "model": {"form": "fastvlm", "dropout": 0.0},
    "text": {"tags": 0},
    "regions": {"kind": "grid", "rows": CELLS, "columns": CELLS},
    "backbone": {"level": 4},
    "task": {"kind": "captions", "predict": "next", "words": 8, "label_smoothing": 0.0},
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return find_tokenizer("words", texts=CAPTIONS)


@pytest.fixture(scope="module")
def tower() -> TowerFeatures:
    return open_tower(VisionRecipe(model="test_efficientnet", pretrained=False, image_size=64), cells=CELLS, seed=0)


def made(tokenizer: Tokenizer, tower: TowerFeatures, *, layers: int = 2, width: int = 16, seed: int = 0) -> CausalModel:
    torch.manual_seed(seed)
    sizes = CausalConfig(len(tokenizer), length=12, layers=layers, width=width, heads=2, inner=32)
    return CausalModel(sizes, tokenizer=tokenizer, tower=tower)


def images(count: int = 2, size: int = 64) -> list[Image.Image]:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, size, size, 3), generator=draw, dtype=torch.uint8)
    return [Image.fromarray(one.numpy()) for one in pixels]


def batch_of(tokenizer: Tokenizer, tower: TowerFeatures, captions: list[str]) -> Batch:
    encoder = Encoder(TASK, TextRecipe("words", length=12, tags=0), tokenizer=tokenizer)
    grid, encoded = Grid(GridRegions(CELLS, CELLS)), []
    for index, (image, text) in enumerate(zip(images(len(captions)), captions, strict=True)):
        made_of = Sample(key=str(index), image=image, captions=(text,))
        regions = regions_of(image, grid.find(image, made_of), tower)
        encoded.append(encoder.train(made_of, regions, index=index, variant=0)._replace(teacher=regions))
    return collate(encoded).to(torch.device("cpu"))


@pytest.mark.parametrize("backbone", ["lgd_resnet18", "lgd_mobilenetv2", "lgd_efficientnet_b0"])
def test_each_student_is_a_vision_tower(tokenizer: Tokenizer, backbone: str) -> None:
    tower = open_tower(VisionRecipe(model=backbone, pretrained=False, image_size=64), cells=CELLS, seed=0)
    model, batch = made(tokenizer, tower).eval(), batch_of(tokenizer, tower, CAPTIONS)
    out = model(batch, states=True)
    assert task_logits(model, out, batch).shape == (3 + 7, len(tokenizer))
    assert [tuple(one.shape) for one in out.states.hidden] == [(2, 8 + 16, 16)] * 2
    assert [tuple(one.shape) for one in out.states.attention] == [(2, 2, 24, 24)] * 2


def test_our_forward_pass_is_the_stock_one(tokenizer: Tokenizer, tower: TowerFeatures) -> None:
    """Words come first in ours, cells in transformers'."""
    model, batch = made(tokenizer, tower).eval(), batch_of(tokenizer, tower, CAPTIONS[1:])
    pixels = tower.processor(images=images(1), return_tensors="pt")["pixel_values"]
    (features,) = model.stock.model.vision_tower(pixels).last_hidden_state.flatten(2).transpose(1, 2)
    assert torch.equal(batch.features[0], features.half().float())
    ids = torch.cat([torch.full((1, CELLS**2), len(tokenizer)), batch.words], 1)
    with torch.no_grad():
        out = model(batch, states=True)
        stock = model.stock(input_ids=ids, pixel_values=pixels, output_attentions=True)
    ours, theirs = model.word_logits(out.last[:, : batch.words.shape[1]]), stock.logits[:, CELLS**2 :, :-1]
    assert torch.allclose(ours, theirs, atol=1e-3)  # features were stored in float16
    attention = stock.attentions[-1][:, :, CELLS**2 :, CELLS**2 :]
    words = ids.shape[1] - CELLS**2
    assert torch.allclose(out.states.attention[-1][:, :, :words, :words], attention, atol=1e-3)
    assert torch.equal(out.states.hidden[-1], out.last)


def test_distillation_teaches_student_and_projectors_alone(tokenizer: Tokenizer, tower: TowerFeatures) -> None:
    teacher = made(tokenizer, tower, layers=3, width=32, seed=1)
    student = made(tokenizer, tower)
    config = DistillationRecipe(nce=NCEConfig(queue=64), hidden_mse=HiddenMSEConfig(weight=1.0))
    learner = Learner(student, task=TASK, distillation=Distillation(config, student=student, teacher=teacher)).train()
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=1e-2)
    batch, ask, sums = batch_of(tokenizer, tower, CAPTIONS), OnlineTeacher(teacher), []
    for _ in range(15):
        taught = ask(batch)
        losses = learner(batch, taught)
        assert losses.keys() == {"task", "attention", "nce", "hidden_mse", "logits"}
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.distillation.update(taught.states)
        sums.append(loss.item())
    assert sums[-1] < 0.8 * sums[0]
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())
    assert not [key for key in learner.state_dict() if "teacher" in key]
    trained = {name for name, parameter in learner.named_parameters() if parameter.grad is not None}
    assert trained
    assert not [name for name in trained if "vision" in name]
    assert not any(part.training for part in student.stock.model.vision_tower.modules())


def test_later_words_leave_earlier_logits_equal(tokenizer: Tokenizer, tower: TowerFeatures) -> None:
    model = made(tokenizer, tower).eval()
    one, other = (batch_of(tokenizer, tower, [text]) for text in ("two dogs and a", "two dogs and ship"))
    with torch.no_grad():
        assert torch.equal(model(one).last[:, :4], model(other).last[:, :4])


def test_captions_from_stored_features_are_those_from_pixels(tokenizer: Tokenizer, tower: TowerFeatures) -> None:
    model, batch = made(tokenizer, tower).eval(), batch_of(tokenizer, tower, ["a", "a"])
    model.stock.generation_config.update(**model._search(TASK))
    said = generate(model, batch, tokenizer=tokenizer, task=TASK)
    assert said == model.caption(images(), tower)
    assert all(len(text.split()) <= TASK.words for text in said)
    assert not any("<image>" in text or "[" in text for text in said)


STRANGER = """
import json, sys
from pathlib import Path
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, pictures = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
said = {}
for path in sorted(Path(pictures).glob("*.png")):
    inputs = processor(images=[Image.open(path).convert("RGB")], text=["<image>[CLS]"], return_tensors="pt")
    words = model.generate(**inputs)[:, inputs["input_ids"].shape[1]:]
    said[path.name] = processor.batch_decode(words, skip_special_tokens=True)[0]
assert not [name for name in sys.modules if name.startswith("lgd_timm")]
print(json.dumps(said))
"""


@torch.no_grad()
def test_drawn_captions_have_the_probability_that_self_critical_training_computes(
    tokenizer: Tokenizer, tower: TowerFeatures
) -> None:
    """Of one image, each first word about as often as its probability says, and none that no caption has."""
    model, batch, draws = made(tokenizer, tower).eval(), batch_of(tokenizer, tower, CAPTIONS[:1]), 3000
    task = replace(TASK, words=1)
    torch.manual_seed(0)
    rows = sample(model, batch, tokenizer=tokenizer, task=task, count=draws)
    assert not {row[0] for row in rows} & {*tokenizer.unwritten, len(tokenizer)}
    for word in {row[0] for row in rows}:
        shown = batch.with_words([[word]], first=tokenizer.cls)
        chance = float(log_probabilities(model, shown, tokenizer=tokenizer, task=task).exp())
        assert rows.count([word]) / draws == pytest.approx(chance, abs=5 * (chance / draws) ** 0.5)


def strangers_words(folder: Path, pictures: Path, tmp_path: Path) -> dict[str, str]:
    """What transformers says of pictures in a process that never imported us."""
    run = [sys.executable, "-c", STRANGER, str(folder), str(pictures)]
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(run, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    said: dict[str, str] = json.loads(done.stdout)
    return said


def test_adapt_distil_publish_and_strangers_say_the_same(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    data = {"val": {"kind": "json_lines", "path": str(scenes)}}
    student = recipe(scenes, **FASTVLM, name="student", data=data, distillation={"teacher": str(tmp_path / "teacher")})
    teacher = _teacher(scenes, data)
    pretrain(adapted(teacher, student=student), out=tmp_path / "teacher")
    metrics = distill(student, out=tmp_path / "run")
    assert metrics["scores"].keys() == metrics["most_frequent"].keys() == metrics["teacher_scores"].keys()
    folder = publish(tmp_path / "run", tmp_path / "published")
    ours = {file.name: text for file, text in caption(folder, tmp_path / "scenes", device="cpu").items()}
    assert strangers_words(folder, tmp_path / "scenes", tmp_path) == ours
    assert any(ours.values())
    run, published = open_model(tmp_path / "run"), open_model(folder)
    assert published.encoder.tokenizer.fingerprint == run.encoder.tokenizer.fingerprint
    assert published.regions_fingerprint == run.regions_fingerprint
    assert run.model.config == published.model.config
    assert evaluate(tmp_path / "run", device="cpu") == pytest.approx(metrics["scores"], abs=1e-3)
    with pytest.raises(LGDError, match="cells of its own"):
        caption(folder, tmp_path / "scenes", grid=2, device="cpu")
    with pytest.raises(WeightsError, match="exists"):
        publish(tmp_path / "run", tmp_path / "published")


def _teacher(scenes: Path, data: dict[str, Any]) -> Any:
    """Of another grid, which adaptation changes, and larger."""
    changes = {**FASTVLM, "model": {"form": "fastvlm", "dropout": 0.0, "width": 32}}
    changes["regions"] = {"kind": "grid", "rows": 2, "columns": 2}
    return recipe(scenes, **changes, name="teacher", data=data)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("task", {"kind": "answers"}, "task"),
        ("regions", {"kind": "data"}, "regions"),
        ("regions", {"kind": "grid", "rows": 2, "columns": 4}, "as many rows as columns"),
        ("backbone", {"level": 3}, "backbone.level 4"),
        ("backbone", {"image_size": 63}, "a multiple of 4"),
        ("text", {"tags": 3}, "text.tags 0"),
        ("model", {"dropout": 0.1}, "model.dropout 0"),
    ],
)
def test_what_fastvlm_cannot_express_is_refused(part: str, values: dict[str, Any], message: str) -> None:
    changes = {**FASTVLM, part: values if "kind" in values else {**FASTVLM.get(part, {}), **values}}
    with pytest.raises(RecipeError, match=f"model.form is fastvlm. Set .*{message}"):
        recipe(Path("scenes.jsonl"), **changes)


def test_backbones_without_such_a_map_are_refused() -> None:
    with pytest.raises(RecipeError, match="vit_tiny_patch16_224"):
        open_tower(VisionRecipe(model="vit_tiny_patch16_224", pretrained=False, image_size=64), cells=4, seed=0)
    with pytest.raises(RecipeError, match=r"5, 5.*4 x 4 cells"):
        open_tower(VisionRecipe(model="test_efficientnet", pretrained=False, image_size=40), cells=4, seed=0)


def change(folder: Path, name: str, place: tuple[str, ...], value: Any) -> None:
    content = json.loads((folder / name).read_text())
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (folder / name).write_text(json.dumps(content))


TEXT = ("text_config",)
FOREIGN: dict[str, tuple[str, tuple[str, ...], Any, str]] = {
    "no end of blocks": (
        "config.json",
        (*TEXT, "num_hidden_layers"),
        10**9,
        "num_hidden_layers = 1000000000 is outside",
    ),
    "no end of numbers": ("config.json", (*TEXT, "intermediate_size"), 60_000_000, "is outside"),
    "many numbers": ("config.json", (*TEXT, "vocab_size"), 4_000_000, "tensors differ"),
    "a large backbone": ("config.json", ("vision_config", "architecture"), "eva02_enormous_patch14_clip_224", "model"),
    "a backbone of elsewhere": (
        "config.json",
        ("vision_config", "architecture"),
        "hf-hub:evil/x",
        "no backbone of ours",
    ),
    "arguments of others": ("config.json", ("vision_config", "model_args"), {"depth": 9}, "no backbone of ours"),
    "no end of words": ("generation_config.json", ("max_new_tokens",), 10**9, "max_new_tokens = 1000000000 is outside"),
    "another type": ("config.json", (*TEXT, "hidden_size"), "x", "hidden_size = 'x'"),
    "another type beside": ("config.json", (*TEXT, "rms_norm_eps"), "x", "damaged|can't be read"),
}


def test_a_strange_stock_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    pretrain(recipe(write_scenes(tmp_path / "scenes", count=4), **FASTVLM), out=tmp_path / "run")
    folder = tmp_path / "run" / "model"
    for name, place, value, message in FOREIGN.values():
        whole = (folder / name).read_text()
        change(folder, name, place, value)
        with pytest.raises(WeightsError, match=message) as refused:
            open_model(folder)
        assert len(str(refused.value).splitlines()) == 1, name
        (folder / name).write_text(whole)
    file = folder / "model.safetensors"
    state = load_file(file)
    key = next(key for key in state if key.endswith("q_proj.weight"))
    for wrong in ({**state, "x": torch.ones(1)}, {k: v for k, v in state.items() if k != key}):
        save_file(wrong, file, {"format": "pt"})
        with pytest.raises(WeightsError, match=r"1 tensors differ, such as"):  # transformers would draw what is missing
            open_model(folder)
    save_file({**state, key: state[key] * float("nan")}, file, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"not finite"):
        open_model(folder)
    save_file(state, file, {"format": "pt"})
    open_model(folder)


def test_weights_that_overflow_float16_are_not_published(tmp_path: Path) -> None:
    pretrain(recipe(write_scenes(tmp_path / "scenes", count=4), **FASTVLM), out=tmp_path / "run")
    raise_a_weight(tmp_path / "run" / "model" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"^\S+ does not fit torch.float16: save with dtype=torch.float32"):
        publish(tmp_path / "run", tmp_path / "published")
    assert not list(tmp_path.glob("*published*"))
