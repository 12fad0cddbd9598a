"""Runs of vision-language models: what they leave, how they go on, which teachers they take, and what is published."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lgd_timm.errors import LGDError, RecipeError, TeacherError, WeightsError
from lgd_timm.utils.checkpoint import all_checkpoints
from lgd_timm.utils.distributed import Ranks
from lgd_timm.utils.signals import Stopped
from lgd_timm.vision_language import run as runs
from lgd_timm.vision_language.describe import Describer, caption
from lgd_timm.vision_language.folder import open_model
from lgd_timm.vision_language.run import adapted, distill, evaluate, pretrain, publish
from tests.helpers.dots import struck
from tests.helpers.runs import assert_bit_equal, last_checkpoint, losses
from tests.helpers.vl_data import raise_a_weight, recipe, write_scenes

CPU = torch.device("cpu")
EVERY = {"checkpoint_minutes": 0.0, "keep_checkpoints": 100}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("vl") / "scenes")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def teacher(scenes: Path, tmp_path: Path) -> Path:
    pretrain(recipe(scenes), out=tmp_path / "teacher")
    return tmp_path / "teacher"


def student(scenes: Path, teacher: Path, **changes: Any) -> Any:
    """Narrower than its teacher, with an attention, an NCE, a hidden and a logits loss, and a queue that wraps."""
    parts = {
        "text": {"tokenizer": str(teacher)},
        "model": {"width": 12, "layers": 1},
        "distillation": {"teacher": str(teacher), "nce": {"queue": 50}, "hidden_mse": {"weight": 0.1}},
    }
    for name, values in changes.items():
        parts[name] = {**parts.get(name, {}), **values}
    return recipe(scenes, **parts)


def test_a_run_leaves_its_files(scenes: Path, tmp_path: Path) -> None:
    metrics = pretrain(recipe(scenes), out=tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()} - {"tensorboard"}
    assert names == {"recipe.yaml", "log.jsonl", "checkpoints", "model", "metrics.json"}
    files = {"config.json", "model.safetensors", "tokenizer.json", "recipe.yaml", "metrics.json"}
    assert {path.name for path in (tmp_path / "run" / "model").iterdir()} == files
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["task"], metrics["samples"], metrics["steps"]) == ("captions", 12, 6)
    opened = open_model(tmp_path / "run")
    assert opened.recipe == recipe(scenes)
    saved = load_file(all_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "student.safetensors")
    assert_bit_equal(dict(opened.model.state_dict()), saved)


TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "each next word": ({"kind": "captions", "predict": "next", "words": 8}, "exact"),
    "masked words of captions": (
        {"kind": "captions", "predict": "masked", "share": 0.5, "most": 0, "words": 8},
        "exact",
    ),
    "answers": ({"kind": "answers", "dropout": 0.0}, "accuracy"),
    "pre-training": ({"kind": "masked_words"}, "word_accuracy"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_learned(tmp_path: Path, name: str) -> None:
    """On scenes that were not seen, far better than by chance."""
    pytest.importorskip("pycocoevalcap")
    task, score = TASKS[name]
    train, val = write_scenes(tmp_path / "train", count=96), write_scenes(tmp_path / "val", count=24, seed=1)
    made = recipe(
        train,
        task=task,
        data={"val": {"kind": "json_lines", "path": str(val)}, "batch_size": 8, "variants": 0},
        model={"width": 32, "dropout": 0.0},
        optimizer={"lr": 5e-3},
        schedule={"epochs": 25, "warmup": 0.1},
        run={"evaluate_every": 25},
    )
    scores = pretrain(made, out=tmp_path / "run")["scores"]
    assert scores[score] > 70
    assert evaluate(tmp_path / "run", device="cpu") == pytest.approx(scores, abs=0.01)


def test_a_distillation_goes_on_anywhere_and_ends_bit_equal(scenes: Path, teacher: Path, tmp_path: Path) -> None:
    """Weights, projectors, queue and its place; the queue has wrapped by then."""
    made = student(scenes, teacher, run=EVERY)
    distill(made, out=tmp_path / "whole")
    whole = last_checkpoint(tmp_path / "whole")
    assert "distillation/nce.queue" in whole
    for step in (1, 4):
        killed = Path(shutil.copytree(tmp_path / "whole", tmp_path / f"killed{step}"))
        shutil.rmtree(killed / "model")
        (killed / "metrics.json").unlink()
        for path in all_checkpoints(killed / "checkpoints")[step:]:
            shutil.rmtree(path)
        distill(made, out=killed, resume=True)
        assert_bit_equal(last_checkpoint(killed), whole)


def test_a_notice_saves_and_the_run_goes_on(
    scenes: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = student(scenes, teacher)
    distill(made, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        struck(patch, step=3, strike=lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match=r"stopped by SIGTERM at step 4 of 6"):
            distill(made, out=tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "model").exists()
    distill(made, out=tmp_path / "stopped", resume=True)
    assert_bit_equal(last_checkpoint(tmp_path / "stopped"), last_checkpoint(tmp_path / "whole"))
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_gradients_are_the_students_and_the_projectors_alone(scenes: Path, teacher: Path, tmp_path: Path) -> None:
    parts, job, _ = runs._prepare(student(scenes, teacher), tmp_path / "run", runs.Process(CPU, Ranks()))
    teaching = job.teacher._model  # type: ignore[union-attr]
    before = {key: value.clone() for key, value in teaching.state_dict().items()}
    batch = next(iter(job.batches()))
    queue = job.learner.distillation.nce.queue.clone()  # type: ignore[union-attr]
    job.losses(batch)["loss"].backward()
    assert torch.equal(queue, job.learner.distillation.nce.queue)  # type: ignore[union-attr]
    trained = {name for name, parameter in job.learner.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in job.learner.named_parameters()}
    assert {name.partition(".")[0] for name in trained} == {"student", "distillation"}
    assert {name.split(".")[2] for name in trained if name.startswith("distillation")} == {"projectors"}
    frozen = [*teaching.parameters(), *parts.extract.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    job.optimizer.step()
    job.after_step()
    assert_bit_equal(dict(teaching.state_dict()), before)
    assert not torch.equal(queue, job.learner.distillation.nce.queue)  # type: ignore[union-attr]


def trained(folder: Path) -> dict[str, Tensor]:
    return dict(open_model(folder).model.state_dict())


def test_a_stored_teacher_is_the_one_that_is_computed(scenes: Path, teacher: Path, tmp_path: Path) -> None:
    """But for float16. The states are computed once, and not taken for another student's data."""
    distill(student(scenes, teacher), out=tmp_path / "online")
    stored = {"distillation": {"stored": str(tmp_path / "states")}}
    distill(student(scenes, teacher, **stored), out=tmp_path / "stored")
    assert losses(tmp_path / "stored") == pytest.approx(losses(tmp_path / "online"), rel=1e-3)
    written = (tmp_path / "states" / "hidden.npy").stat().st_mtime_ns
    distill(student(scenes, teacher, **stored), out=tmp_path / "again")
    assert (tmp_path / "states" / "hidden.npy").stat().st_mtime_ns == written
    assert_bit_equal(trained(tmp_path / "stored"), trained(tmp_path / "again"))
    with pytest.raises(TeacherError, match=r"states of another teacher or other data: seed differ"):
        distill(student(scenes, teacher, **stored, run={"seed": 1}), out=tmp_path / "other")


def test_stored_states_are_of_what_recurs(scenes: Path, teacher: Path) -> None:
    with pytest.raises(RecipeError, match=r"data.variants = 0 makes new ones each epoch. Set data.variants"):
        student(scenes, teacher, data={"variants": 0}, distillation={"stored": "states"})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "other boxes": ({"regions": {"count": 1}}, r"trained on other boxes.*lgd-timm vl adapt"),
    "another tokenizer": (
        {"text": {"tokenizer": "words", "vocabulary": 3}},
        r"another tokenizer.*Set text.tokenizer to",
    ),
    "other lengths": ({"text": {"length": 9}}, r"has texts of 12 and names of 3 tokens, and the recipe 9 and 3"),
    "another task": ({"task": {"predict": "masked"}}, r"trained for captions \(next\).*for captions \(masked\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_teacher_of_other_tokens_is_refused(scenes: Path, teacher: Path, tmp_path: Path, name: str) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(TeacherError, match=message) as caught:
        distill(student(scenes, teacher, **changes), out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_adapted_teacher_looks_at_the_students_boxes(scenes: Path, tmp_path: Path) -> None:
    ours = recipe(scenes, text={"length": 10, "tags": 2})
    old = recipe(scenes, backbone={"level": 3}, regions={"kind": "grid", "rows": 1, "columns": 3})
    new = adapted(old, student=ours)
    assert (new.regions, new.text.length, new.text.tags) == (ours.regions, 10, 2)
    assert (new.backbone, new.model) == (old.backbone, old.model)
    pretrain(new, out=tmp_path / "adapted")
    pretrain(old, out=tmp_path / "unadapted")
    taught = {"distillation": {"teacher": str(tmp_path / "adapted")}, "text": {"length": 10, "tags": 2}}
    distill(student(scenes, tmp_path / "adapted", **taught), out=tmp_path / "student")
    with pytest.raises(TeacherError, match="other boxes"):
        distill(student(scenes, tmp_path / "unadapted"), out=tmp_path / "none")


def test_a_run_begins_with_anothers_weights(scenes: Path, teacher: Path, tmp_path: Path) -> None:
    text = {"tokenizer": str(teacher)}
    still = {"optimizer": {"lr": 0.0}, "text": text}
    pretrain(recipe(scenes, model={"init": str(teacher)}, **still), out=tmp_path / "next")
    assert_bit_equal(trained(tmp_path / "next"), trained(teacher))
    with pytest.raises(WeightsError, match=r"has another tokenizer than text.tokenizer"):
        pretrain(recipe(scenes, model={"init": str(teacher)}, text={"vocabulary": 4}), out=tmp_path / "no")
    with pytest.raises(WeightsError, match=r"words of \[\d+, 24\] and the recipe of \[\d+, 12\]"):
        pretrain(recipe(scenes, model={"init": str(teacher), "width": 12}, text=text), out=tmp_path / "no")


def test_pretrain_and_distill_say_which_of_them_is_meant(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="lgd-timm vl distill"):
        pretrain(recipe(scenes, distillation={"teacher": "somebody"}), out=tmp_path / "run")
    with pytest.raises(RecipeError, match=r"names no distillation\.teacher"):
        distill(recipe(scenes), out=tmp_path / "run")


def test_what_is_published_says_the_same(scenes: Path, teacher: Path, tmp_path: Path) -> None:
    folder = publish(teacher, tmp_path / "published")
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float16}
    found = caption(folder, scenes.parent, grid=2, device="cpu")
    assert found == caption(teacher, scenes.parent, grid=2, device="cpu")
    assert len(found) == 12
    with pytest.raises(WeightsError, match="exists"):
        publish(teacher, folder)


def test_weights_that_overflow_float16_are_not_published(teacher: Path, tmp_path: Path) -> None:
    raise_a_weight(teacher / "model" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"^model\.\S+ does not fit torch.float16: save with dtype=torch.float32"):
        publish(teacher, tmp_path / "published")
    assert not list(tmp_path.glob("*published*"))


def damage_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights")


def damage_tokenizer(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["vocab"]["extra"] = 99
    (folder / "tokenizer.json").write_text(json.dumps(data))


def damage_config(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "surprise": 1}))


@pytest.mark.parametrize("damage", [damage_weights, damage_tokenizer, damage_config])
def test_a_damaged_folder(teacher: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = publish(teacher, tmp_path / "published")
    damage(folder)
    with pytest.raises(WeightsError, match="can't be read") as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)


def test_plain_pictures(scenes: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(LGDError, match=r"the picture has no boxes, and regions.kind is data.*--grid"):
        caption(teacher, scenes.parent / "0.png", device="cpu")
    with pytest.raises(LGDError, match="trained for captions, not for answers"):
        Describer(teacher, grid=2, device="cpu").answer(None, "what ?")  # type: ignore[arg-type]
    with pytest.raises(LGDError, match="holds no pictures"):
        caption(teacher, tmp_path / "nowhere", device="cpu")


def test_evaluation_needs_data(scenes: Path, teacher: Path) -> None:
    with pytest.raises(RecipeError, match=r"no data\.val"):
        evaluate(teacher, device="cpu")


FOREIGN: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "no end of blocks": (("model", "layers"), 10**9, "layers = 1000000000 is outside"),
    "no end of numbers": (("model", "width"), 60_000, "describes a model of|must divide|multiple"),
    "texts longer than there are places": (("text", "length"), 4000, "texts of 4000"),
    "fewer tokens than the tokenizer": (("model", "vocabulary"), 3, "tokenizer of"),
    "answers that the model lacks": (("answers",), ["a", "b"], "2 answers"),
    "an image of many pixels": (("backbone", "image_size"), 10**6, "image_size = 1000000 is outside"),
    "a backbone of elsewhere": (("backbone", "architecture"), "hf-hub:evil/model", "no architecture of timm"),
    "a backbone far larger": (
        ("backbone", "architecture"),
        "eva02_enormous_patch14_clip_224",
        "describes a model of 17",
    ),
    "pixels that are divided by 0": (("backbone", "std"), [0.0, 0.5, 0.5], "not those of three colours"),
}


def test_a_strange_folder_is_refused_in_one_line(scenes: Path, tmp_path: Path) -> None:
    pretrain(recipe(scenes), out=tmp_path / "run")
    folder = tmp_path / "run" / "model"
    config = json.loads((folder / "config.json").read_text())
    for place, value, message in FOREIGN.values():
        changed = json.loads(json.dumps(config))
        part = changed
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(WeightsError, match=message) as refused:
            open_model(folder)
        assert len(str(refused.value).splitlines()) == 1
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    next(tensor for key, tensor in state.items() if key.endswith("weight")).fill_(float("nan"))
    save_file(state, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="not finite"):
        open_model(folder)
