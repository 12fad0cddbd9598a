"""Self-critical training: drawn captions, their probabilities, the gradient, and runs that begin with another's."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lgd_timm.errors import LGDError, RecipeError, WeightsError
from lgd_timm.utils.signals import Stopped
from lgd_timm.vision_language.batch import Batch, Encoder, collate
from lgd_timm.vision_language.data.sample import Sample
from lgd_timm.vision_language.features import ImageRegions
from lgd_timm.vision_language.folder import open_model
from lgd_timm.vision_language.generate import sample
from lgd_timm.vision_language.model import ModelConfig, VisionLanguageModel
from lgd_timm.vision_language.recipe import Captions, SelfCriticalConfig, TextRecipe, read_vl_recipe
from lgd_timm.vision_language.run import pretrain, publish
from lgd_timm.vision_language.self_critical import SelfCritical, log_probabilities
from lgd_timm.vision_language.text import IGNORED, Tokenizer, find_tokenizer
from tests.helpers.dots import struck
from tests.helpers.runs import assert_bit_equal, last_checkpoint
from tests.helpers.vl_data import recipe, write_scenes

TEXTS = (("a red square", "red at the left"), ("a blue ball", "a blue round thing"), ("a green cat", "green"))


class Pictures:
    """Three images with captions."""

    fingerprint = "pictures"

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, index: int) -> Sample:
        return Sample(key=str(index), image=Image.new("RGB", (8, 8)), captions=TEXTS[index])


def task(predict: Any = "next", **switches: Any) -> Captions:
    return Captions(predict=predict, words=5, self_critical=SelfCriticalConfig(**switches))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return find_tokenizer("words", texts=[text for texts in TEXTS for text in texts])


@pytest.fixture
def model(tokenizer: Tokenizer) -> VisionLanguageModel:
    torch.manual_seed(0)
    sizes = {"length": 12, "tags": 2, "layers": 2, "width": 16, "heads": 2, "inner": 32, "dropout": 0.0}
    return VisionLanguageModel(ModelConfig(features=4, vocabulary=len(tokenizer), causal=True, **sizes)).eval()  # type: ignore[arg-type]


@pytest.fixture
def batch(tokenizer: Tokenizer) -> Batch:
    torch.manual_seed(1)
    encoder = Encoder(task(), TextRecipe(length=12, tags=2), tokenizer=tokenizer)
    regions = [ImageRegions(torch.randn(3 - index, 4), torch.rand(3 - index, 6), ("red",)) for index in range(3)]
    return collate([encoder.train(Pictures()[i], regions[i], index=i, variant=0) for i in range(3)])


@pytest.mark.parametrize("predict", ["next", "masked"])
def test_captions_are_drawn_with_the_probability_that_the_loss_has(
    model: VisionLanguageModel, batch: Batch, tokenizer: Tokenizer, predict: Any
) -> None:
    """Captions of one word, [SEP] or not: how often each is drawn is what its log probability says."""
    asked, draws = Captions(predict=predict, words=1), 4000
    rows = sample(model, batch, tokenizer=tokenizer, task=asked, count=draws)
    words = sorted({row[0] for row in rows})
    assert len(words) > 5
    assert not {*words} & {*tokenizer.unwritten}
    for word in words:
        shown = batch.with_words([[word]] * 3, first=tokenizer.cls)
        chances = log_probabilities(model, shown, tokenizer=tokenizer, task=asked).exp()
        for image, chance in enumerate(chances.tolist()):
            found = sum(row == [word] for row in rows[image * draws : (image + 1) * draws]) / draws
            assert found == pytest.approx(chance, abs=5 * math.sqrt(chance / draws) + 1e-3)


@pytest.mark.parametrize("predict", ["next", "masked"])
@torch.no_grad()
def test_probabilities_are_those_of_writing_word_by_word(
    model: VisionLanguageModel, batch: Batch, tokenizer: Tokenizer, predict: Any
) -> None:
    """Of captions of several lengths, one of them cut off: the sum over words, each seeing earlier ones alone."""
    asked = Captions(predict=predict, words=5)
    rows = [
        [*tokenizer.encode("a red square"), tokenizer.sep],
        [tokenizer.sep],
        tokenizer.encode("a blue round thing a"),
    ]
    whole = log_probabilities(model, batch.with_words(rows, first=tokenizer.cls), tokenizer=tokenizer, task=asked)
    for place, row in enumerate(rows):
        total = 0.0
        for length in range(len(row)):
            shown = batch.with_words([row[: length + 1]] * 3, first=tokenizer.cls)
            if length < len(row) - 1:  # but the next word, which can't be known
                other = batch.with_words([[*row[: length + 1], tokenizer.sep]] * 3, first=tokenizer.cls)
                ours, theirs = (_of_word(model, one, tokenizer, asked, length)[place] for one in (shown, other))
                torch.testing.assert_close(ours, theirs)
            total += float(_of_word(model, shown, tokenizer, asked, length)[place])
        assert float(whole[place]) == pytest.approx(total, abs=1e-4)


def _of_word(model: VisionLanguageModel, batch: Batch, tokenizer: Tokenizer, asked: Captions, place: int) -> Tensor:
    """The log probability of the word at a place alone."""
    kept = torch.full_like(batch.targets, IGNORED)
    kept[:, place] = batch.targets[:, place]
    return log_probabilities(model, replace(batch, targets=kept), tokenizer=tokenizer, task=asked)


def test_a_better_caption_becomes_likelier(model: VisionLanguageModel, batch: Batch, tokenizer: Tokenizer) -> None:
    """The gradient is the sum of (r - b) grad log p, over images and samples, by hand; nothing else gets one."""
    critic = SelfCritical(task(samples=4), dataset=Pictures(), tokenizer=tokenizer)
    torch.manual_seed(3)
    drawn, scores = critic.draw(model, batch)
    assert scores.shape == (3, 4)
    assert drawn.advantages is not None
    assert drawn.keys == [key for key in batch.keys for _ in range(4)]
    critic.loss(model, drawn).backward()
    weight = model.region.weight
    assert weight.grad is not None
    found, weight.grad = weight.grad.clone(), None
    for place, advantage in enumerate(drawn.advantages.tolist()):
        chance = log_probabilities(model, drawn, tokenizer=tokenizer, task=task())[place]
        (-advantage / 12 * chance).backward()
    torch.testing.assert_close(found, weight.grad, rtol=1e-4, atol=1e-6)


def test_baselines(model: VisionLanguageModel, batch: Batch, tokenizer: Tokenizer) -> None:
    """`others`: advantages of an image sum to 0; `greedy`: scores less one caption's, the same for all samples."""
    found = {}
    for baseline in ("greedy", "others"):
        critic = SelfCritical(task(samples=4, baseline=baseline), dataset=Pictures(), tokenizer=tokenizer)
        torch.manual_seed(3)
        drawn, scores = critic.draw(model, batch)
        assert drawn.advantages is not None
        found[baseline] = drawn.advantages.view(3, 4), scores
    advantages, scores = found["others"]
    torch.testing.assert_close(advantages.sum(1), torch.zeros(3), atol=1e-5, rtol=0)
    assert scores.std(1).max() > 0
    advantages, scores = found["greedy"]
    torch.testing.assert_close(scores - advantages, (scores - advantages)[:, :1].expand(-1, 4))


def scored(critic: SelfCritical, model: VisionLanguageModel, batch: Batch, rows: list[list[int]]) -> Tensor:
    """Scores of captions as if the model had drawn them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lgd_timm.vision_language.self_critical.sample", lambda *_, **__: rows)
        return critic.draw(model, batch)[1]


def test_a_caption_that_breaks_off_scores_less(model: VisionLanguageModel, batch: Batch, tokenizer: Tokenizer) -> None:
    """Its words are all in a reference, and a good part of CIDEr-D is how they go on: the end is a word of it."""
    critic = SelfCritical(task(samples=3), dataset=Pictures(), tokenizer=tokenizer)
    words, end = tokenizer.encode("a green cat"), tokenizer.sep
    whole, unended, short = [*words, end], words, [*words[:-1], end]
    scores = scored(critic, model, batch, [whole, unended, short] * 3)[2]
    assert scores[0] > 1.25 * max(scores[1], scores[2])


def test_references_are_all_captions_of_an_image(
    model: VisionLanguageModel, batch: Batch, tokenizer: Tokenizer
) -> None:
    """Also where each is a sample of its own."""

    class OneCaptionEach(Pictures):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> Sample:
            image, which = index // 2, index % 2
            return replace(Pictures()[image], captions=(TEXTS[image][which],), image_key=str(image))

    rows = [[*tokenizer.encode(text), tokenizer.sep] for text in ("a red square", "a blue ball", "red at the left")]
    together = SelfCritical(task(samples=1), dataset=Pictures(), tokenizer=tokenizer)
    apart = SelfCritical(task(samples=1), dataset=OneCaptionEach(), tokenizer=tokenizer)
    items = torch.tensor([[1, 0], [2, 0], [5, 0]])
    torch.testing.assert_close(
        scored(apart, model, replace(batch, items=items), rows),
        scored(together, model, replace(batch, items=items // 2), rows),
    )


def test_an_image_without_captions_is_refused_before_anything_is_written(scenes: Path, tmp_path: Path) -> None:
    pretrain(recipe(scenes, schedule={"epochs": 1}), out=tmp_path / "first")
    scenes.write_text(scenes.read_text() + json.dumps({"image": "0.png", "key": "bare"}) + "\n")
    with pytest.raises(LGDError, match=r"bare of data\.train has no caption"):
        pretrain(criticised(scenes, tmp_path / "first"), out=tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_the_mode_is_left_as_it_was(model: VisionLanguageModel, batch: Batch, tokenizer: Tokenizer) -> None:
    critic = SelfCritical(task(), dataset=Pictures(), tokenizer=tokenizer)
    for mode in (True, False):
        model.train(mode)
        critic.draw(model, batch)
        assert all(part.training is mode for part in model.modules())


FASTVLM: dict[str, Any] = {
    "regions": {"kind": "grid", "rows": 2, "columns": 2},
    "backbone": {"level": 4},
    "text": {"tags": 0},
    "model": {"form": "fastvlm", "dropout": 0.0},
}


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "cache"))
    return write_scenes(tmp_path / "scenes")


def criticised(scenes: Path, first: Path, *, samples: int = 3, **changes: Any) -> Any:
    parts: dict[str, Any] = {
        "task": {"kind": "captions", "predict": "next", "words": 8, "self_critical": {"samples": samples}},
        "data": {"variants": 0},
        "text": {"tokenizer": str(first)},
        "model": {"init": str(first)},
    }
    for name, values in changes.items():
        parts[name] = {**parts.get(name, {}), **values}  # of regions, whole
    return recipe(scenes, **parts)


def test_a_run_goes_on_anywhere_and_ends_bit_equal(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(recipe(scenes), out=tmp_path / "first")
    made = criticised(scenes, tmp_path / "first", run={"checkpoint_minutes": 0.0, "keep_checkpoints": 100})
    pretrain(made, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        struck(patch, step=3, strike=lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            pretrain(made, out=tmp_path / "stopped")
    pretrain(made, out=tmp_path / "stopped", resume=True)
    assert_bit_equal(last_checkpoint(tmp_path / "stopped"), last_checkpoint(tmp_path / "whole"))


@pytest.mark.parametrize("form", ["bert", "fastvlm"])
def test_a_run_that_diverges_ends_in_the_steps_own_words(scenes: Path, tmp_path: Path, form: str) -> None:
    parts = FASTVLM if form == "fastvlm" else {}
    pretrain(recipe(scenes, **parts, schedule={"epochs": 1}), out=tmp_path / "first")
    wild = {"optimizer": {"lr": 1e9, "clip_grad": None}, "run": {"max_skipped": 1}, "schedule": {"epochs": 4}}
    with pytest.raises(LGDError, match=r"Lower optimizer\.lr"):
        pretrain(criticised(scenes, tmp_path / "first", **parts, **wild), out=tmp_path / "second")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["bert, next", "bert, masked", "fastvlm, next"])
def test_scores_of_drawn_captions_rise(scenes: Path, tmp_path: Path, form: str) -> None:
    shape, _, predict = form.partition(", ")
    words = {"kind": "captions", "predict": predict, "words": 12, "label_smoothing": 0.0}
    sizes = {"form": shape, "width": 32, "heads": 2, "inner": 64, "dropout": 0.0}
    eyes = {"model": "lgd_mobilenetv2.conse_cifar10", "pretrained": True, "level": 4}
    parts: dict[str, Any] = {
        **({"regions": FASTVLM["regions"], "text": {"tags": 0}, "backbone": eyes} if shape == "fastvlm" else {}),
        "data": {"batch_size": 12, "variants": 0},
    }
    first = {"schedule": {"epochs": 40}, "optimizer": {"lr": 5e-3}}
    pretrain(recipe(scenes, task=words, model=sizes, **parts, **first), out=tmp_path / "first")
    parts["text"] = {**parts.get("text", {}), "tokenizer": str(tmp_path / "first")}
    made = recipe(
        scenes,
        task={**words, "self_critical": {"samples": 8, "baseline": "others"}},
        model={**sizes, "init": str(tmp_path / "first")},
        schedule={"epochs": 60, "name": "constant"},
        optimizer={"lr": 1e-3},
        **parts,
    )
    pretrain(made, out=tmp_path / "critical")
    lines = map(json.loads, (tmp_path / "critical" / "log.jsonl").read_text().splitlines())
    scores = [line["cider"] for line in lines if "cider" in line]
    assert len(scores) == 60
    assert fmean(scores[-10:]) > fmean(scores[:10]) + 0.3


def test_a_fastvlm_begins_with_anothers_weights(scenes: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    pretrain(recipe(scenes, **FASTVLM), out=first)
    made = criticised(scenes, first, **FASTVLM, optimizer={"lr": 0.0})
    pretrain(made, out=tmp_path / "second")
    ours, theirs = (dict(open_model(tmp_path / name).model.state_dict()) for name in ("second", "first"))
    assert_bit_equal(ours, theirs)
    assert open_model(publish(tmp_path / "second", tmp_path / "out")).encoder.task == made.task
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"It is `{first}`, trained on by the CIDEr-D" in card
    wider = {**FASTVLM, "model": {**FASTVLM["model"], "width": 48}}
    with pytest.raises(WeightsError, match="is no fastvlm of the recipe's sizes"):
        pretrain(criticised(scenes, first, **wider), out=tmp_path / "third")
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"init": None}}, "Set model.init to a captioner's run"),
        ({"data": {"variants": 2}}, "Set data.variants 0"),
        ({"distillation": {"teacher": "elsewhere"}}, "Set distillation.teacher null"),
    ],
)
def test_what_it_cannot_use_is_refused(scenes: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        criticised(scenes, tmp_path / "first", **changes)


def test_it_begins_with_a_captioner_of_the_same_task_and_sizes(scenes: Path, tmp_path: Path) -> None:
    """Else random or displaced weights would write captions that score nothing, silently."""
    short: dict[str, Any] = {"schedule": {"epochs": 1}}
    pretrain(recipe(scenes, **short), out=tmp_path / "first")
    pretrain(recipe(scenes, **short, task={"kind": "answers"}), out=tmp_path / "answers")
    pretrain(recipe(scenes, **short, **FASTVLM), out=tmp_path / "stock")
    for first, changes, message in (
        ("answers", {}, r"another task answers \(here captions \(next\)\), answers 3 \(here 0\), words False"),
        ("first", {"task": {"predict": "masked"}}, r"another task captions \(next\) \(here captions \(masked\)\)\."),
        ("first", {"text": {"tags": 0}}, r"another tags 3 \(here 0\)\."),
        ("first", {"model": {"layers": 3, "heads": 4}}, r"another layers 2 \(here 3\), heads 2 \(here 4\)\."),
        ("stock", {}, "is a fastvlm, and model.form is bert"),
        ("first", FASTVLM, "is no fastvlm of the recipe's sizes"),
    ):
        with pytest.raises(LGDError, match=message):
            pretrain(criticised(scenes, tmp_path / first, **changes), out=tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_runs_recipe_becomes_self_critical_on_the_command_line(scenes: Path, tmp_path: Path) -> None:
    """It holds `self_critical: null`."""
    first = recipe(scenes, data={"variants": 0}, model={"init": "elsewhere"})
    (tmp_path / "recipe.yaml").write_text(first.to_yaml())
    made = read_vl_recipe(tmp_path / "recipe.yaml", overrides={"task.self_critical.samples": "3"})
    assert isinstance(first.task, Captions)
    assert made == replace(first, task=replace(first.task, self_critical=SelfCriticalConfig(samples=3)))


def test_others_need_two_samples() -> None:
    with pytest.raises(RecipeError, match="samples of 2 or more"):
        SelfCriticalConfig(samples=1, baseline="others")
