"""Zero-shot evaluation: against a plain computation, each image once, and the teacher beside its student."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from lgd_timm.data import Views, open_shards
from lgd_timm.data.dataset import Batch, ShardDataset
from lgd_timm.data.stored_embeddings import find_stored
from lgd_timm.data.vocabulary import Vocabulary, class_order
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import LGDError, RecipeError, ShardError, VocabularyError, WeightsError
from lgd_timm.evaluate import zero_shot, zero_shot_classifier
from lgd_timm.evaluate.zero_shot import (
    ClassCountError,
    ZeroShot,
    match_classes,
    stored_classifier,
    warn_of_weak_teacher,
)
from lgd_timm.evaluate.zero_shot_model import evaluate_zero_shot, match_model, open_zero_shot_model
from lgd_timm.publish.folder import load
from lgd_timm.teachers import OpenCLIP
from lgd_timm.teachers.text_bank import save_bank, text_bank_name

NAMES = ("blue", "green", "red")


class Colour(nn.Module):
    """An encoder that is sometimes wrong: a fixed random projection of an image's mean colour. Counts what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return (images.float().mean((2, 3)) / 255 - 0.4) @ self.weight


def text_bank(count: int = 3, dim: int = 8) -> Tensor:
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(4)), dim=1)


@pytest.fixture
def dataset(shard_folder: Path) -> ShardDataset:
    return ShardDataset(open_shards(shard_folder, split="val"), views=Views(size=32, augmentation="none"))


def everything(dataset: ShardDataset) -> Batch:
    return dataset.__getitems__([(i, 0) for i in range(len(dataset))])


# ------------------------------------------------------------------------------------------------------ the computation


@pytest.mark.parametrize("batch_size", [1, 5, 256])
def test_scores_are_those_of_a_plain_computation(dataset: ShardDataset, batch_size: int) -> None:
    encoder, bank = Colour(), text_bank(6)
    names = (*NAMES, "cyan", "magenta", "yellow")
    score = zero_shot(zero_shot_classifier(encoder, bank), dataset, names=names, batch_size=batch_size)

    whole = everything(dataset)
    embeddings = Colour()(whole.images)
    order = [sorted(range(6), key=lambda k: -float(torch.cosine_similarity(e, bank[k], dim=0))) for e in embeddings]
    right = [ranks[0] == label for ranks, label in zip(order, whole.labels.tolist(), strict=True)]
    near = [label in ranks[:5] for ranks, label in zip(order, whole.labels.tolist(), strict=True)]
    assert score.top1 == pytest.approx(100 * sum(right) / 12)
    assert score.top5 == pytest.approx(100 * sum(near) / 12)
    assert 0 < sum(right) < 12  # the encoder is no oracle, so the comparison says something
    assert score.chance == pytest.approx(100 / 6)
    assert (score.samples, score.bad) == (12, 0)
    for label, name in enumerate(NAMES):
        hits = [hit for hit, other in zip(right, whole.labels.tolist(), strict=True) if other == label]
        assert score.per_class[name] == pytest.approx(100 * sum(hits) / len(hits))
    assert set(score.per_class) == set(NAMES)  # names without images have no accuracy


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_seen_exactly_once(dataset: ShardDataset, workers: int) -> None:
    encoder = Colour()
    score = zero_shot(zero_shot_classifier(encoder, text_bank()), dataset, names=NAMES, batch_size=5, workers=workers)
    assert score.samples == 12
    assert torch.equal(torch.cat(encoder.seen), everything(dataset).images)  # also in order, without augmentation


def test_lengths_of_embeddings_do_not_matter(dataset: ShardDataset) -> None:
    class Longer(Colour):
        def forward(self, images: Tensor) -> Tensor:
            embeddings = super().forward(images)
            return embeddings * torch.arange(1, len(embeddings) + 1)[:, None]

    scores = [
        zero_shot(zero_shot_classifier(encoder, text_bank()), dataset, names=NAMES) for encoder in (Colour(), Longer())
    ]
    assert scores[0] == scores[1]


def test_a_perfect_classifier_scores_100(dataset: ShardDataset) -> None:
    score = zero_shot(lambda batch: torch.eye(3)[batch.labels], dataset, names=NAMES)
    assert (score.top1, score.per_class) == (100.0, dict.fromkeys(NAMES, 100.0))
    assert str(score) == "top-1 100.00 % of 12 images (chance 33.33 %)"
    assert str(replace(score, chance=10.0)) == "top-1 100.00 %, top-5 100.00 % of 12 images (chance 10.00 %)"
    assert json.loads(json.dumps(score.to_dict()))["top1"] == 100.0


# ------------------------------------------------------------------------------------------------------------- refusals


def test_images_without_labels_are_refused(image_folder: Path, tmp_path: Path) -> None:
    shards = write_shards(image_folder, tmp_path / "shards", split="val", labels=False)
    dataset = ShardDataset(shards, views=Views(size=32, augmentation="none"))
    with pytest.raises(ShardError, match=r"shards \(val\) has images without a label; evaluation needs field cls"):
        zero_shot(zero_shot_classifier(Colour(), text_bank()), dataset, names=NAMES)


def test_more_labels_than_names_are_refused(dataset: ShardDataset) -> None:
    with pytest.raises(
        VocabularyError, match=r"\(val\) has label 2, the vocabulary only 2 names\. Give the names of these classes"
    ):
        zero_shot(zero_shot_classifier(Colour(), text_bank(2)), dataset, names=NAMES[:2])


@pytest.mark.parametrize("names", [NAMES[:2], (*NAMES, "cyan")])
def test_another_number_of_classes_is_refused_with_both_numbers(dataset: ShardDataset, names: tuple[str, ...]) -> None:
    assert match_classes(dataset.shards, NAMES) is None
    with pytest.raises(ClassCountError, match=rf"3 classes and {len(names)} names do not fit") as caught:
        match_classes(dataset.shards, names)
    assert (caught.value.classes, caught.value.names) == (3, len(names))


@pytest.mark.parametrize("names", [("green", "red", "blue"), ("Green", "RED", "blue")])
def test_the_classes_in_another_order_are_matched_by_name(
    dataset: ShardDataset, names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    assert match_classes(dataset.shards, names) == [2, 0, 1]
    assert "in another order, so each class takes the name that it equals: 0 blue = blue, 1 green" in caplog.text


def test_underscores_are_spaces_where_classes_are_compared() -> None:
    assert class_order(["zebra", "sea otter"], ["sea_otter", "zebra"]) == [1, 0]
    assert class_order(["sea otter", "zebra"], ["sea_otter", "zebra"]) is None
    assert class_order(["a b", "zebra"], ["a b", "a_b"]) is None


def test_other_names_are_paired_aloud_and_a_misplaced_one_is_warned_of(
    dataset: ShardDataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert match_classes(dataset.shards, ("sky", "grass", "blood")) is None
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "0 blue = sky, 1 green = grass, 2 red = blood" in caplog.text
    caplog.clear()
    assert match_classes(dataset.shards, ("green", "grass", "red")) is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "Check the names' order: name 0 'green' is class 1" in caplog.text
    caplog.clear()
    assert match_classes(dataset.shards, NAMES) is None
    assert not caplog.records


def test_answers_that_are_not_finite_have_no_score(dataset: ShardDataset) -> None:
    with pytest.raises(WeightsError, match="answers are not finite"):
        zero_shot(lambda batch: torch.full((len(batch.keys), 3), float("nan")), dataset, names=NAMES)


def test_a_teacher_that_guesses_is_said_loudly(caplog: pytest.LogCaptureFixture) -> None:
    score = ZeroShot(top1=34.0, top5=100.0, chance=100 / 3, samples=300, bad=0, per_class={})
    warn_of_weak_teacher(score)
    assert "NO BETTER THAN CHANCE" in caplog.text
    caplog.clear()
    warn_of_weak_teacher(replace(score, top1=60.0))
    warn_of_weak_teacher(None)
    assert not caplog.records


def test_bad_images_do_not_count_and_too_many_are_refused(shard_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shard_folder, tmp_path / "copy"))
    tar = copy / open_shards(copy, split="val").filenames[0]
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b"\xff\xd8\xff", b"\0\0\0", 1))  # the beginning of the first JPEG
    dataset = ShardDataset(open_shards(copy, split="val"), views=Views(size=32, augmentation="none"))
    classify = zero_shot_classifier(Colour(), text_bank())
    score = zero_shot(classify, dataset, names=NAMES, max_bad=0.1)
    assert (score.samples, score.bad) == (11, 1)
    with pytest.raises(ShardError, match="1 of 12 samples can't be read"):
        zero_shot(classify, dataset, names=NAMES, max_bad=0.01)


# -------------------------------------------------------------------------------------------------------------- teacher


def test_the_teachers_stored_score_is_its_online_score(taught_folder: Path, tiny_clip: Path) -> None:
    """To float16: the logits agree, and so does every name but where two are as good as equal."""
    spec = OpenCLIP(f"local-dir:{tiny_clip}")
    image, bank = spec.image(), normalize(spec.text().encode(NAMES), dim=1)
    shards = open_shards(taught_folder, split="val")
    stored = find_stored(shards, views=None, teacher=image.fingerprint)
    assert stored is not None
    online = ShardDataset(shards, views=stored.views)
    offline = ShardDataset(shards, views=stored.views, stored=stored)
    logits = [zero_shot_classifier(image, bank)(everything(online)), stored_classifier(bank)(everything(offline))]
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-3)
    margin = logits[0].topk(2, dim=1).values.diff(dim=1).abs().min().item()
    assert margin > 2e-3, "the random teacher is undecided: give it another seed"
    scores = [
        zero_shot(zero_shot_classifier(image, bank), online, names=NAMES),
        zero_shot(stored_classifier(bank), offline, names=NAMES),
    ]
    assert scores[0] == scores[1]


# -------------------------------------------------------------------------------------------------- what a person names


def test_a_published_folder_scores_what_its_metrics_say(published_folder: Path, taught_folder: Path) -> None:
    metrics = json.loads((published_folder / "metrics.json").read_text())
    scores = evaluate_zero_shot(str(published_folder), data=taught_folder, device="cpu", batch_size=5)
    assert list(scores) == ["student", "teacher"]
    assert scores["student"] is not None
    assert scores["student"].to_dict() == metrics["zero_shot"]
    assert scores["teacher"] is not None
    assert scores["teacher"].to_dict() == metrics["teacher_zero_shot"]


def test_without_stored_embeddings_of_its_teacher_there_is_no_teachers_score(
    published_folder: Path, shard_folder: Path
) -> None:
    scores = evaluate_zero_shot(str(published_folder), data=shard_folder, device="cpu")
    assert scores["teacher"] is None
    assert scores["student"] is not None


def test_an_online_run_is_evaluated_at_the_size_of_its_views(
    recipe_dict: dict[str, Any], tmp_path: Path, shard_folder: Path
) -> None:
    """Views of 24 px, enlarged to the student's 40 on the device: evaluation later has to do the same."""
    from lgd_timm.config.reader import recipe_from_dict
    from lgd_timm.training.distill import distill

    changes = {
        "views": {"size": 24, "augmentation": "light", "interpolation": "bilinear"},
        "schedule": {"epochs": 1, "warmup_epochs": 0},
    }
    recipe = recipe_from_dict({**recipe_dict, **changes, "student": {"model": "test_resnet", "image_size": 40}})
    folder = distill(recipe, out=tmp_path / "run")
    asked: list[Views] = []
    original = ShardDataset.__init__

    def spying(self: ShardDataset, shards: Any, *, views: Views, **options: Any) -> None:
        asked.append(views)
        original(self, shards, views=views, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardDataset, "__init__", spying)
        score = evaluate_zero_shot(str(folder), data=shard_folder, device="cpu")["student"]
    assert (asked[0].size, asked[0].interpolation, asked[0].augmentation) == (24, "bilinear", "none")
    assert score is not None
    assert score.to_dict() == json.loads((folder / "metrics.json").read_text())["zero_shot"]


def test_other_names_are_read_by_the_students_own_text_tower(
    published_folder: Path, taught_folder: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("crimson\nemerald\nnavy\n")
    asked = evaluate_zero_shot(
        str(published_folder), data=taught_folder, vocabulary=str(names), templates="a photo of {}", device="cpu"
    )
    own = evaluate_zero_shot(str(published_folder), data=taught_folder, device="cpu")
    assert asked["student"] is not None
    assert set(asked["student"].per_class) == {"crimson", "emerald", "navy"}
    assert (
        asked["student"].top1 != own["student"].top1
        or asked["student"].per_class.values() != own["student"].per_class.values()
    )


def test_names_whose_bank_is_stored_beside_the_shards_need_no_text_tower(
    published_folder: Path, taught_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Path(shutil.copytree(taught_folder, tmp_path / "shards"))
    names = Vocabulary(("a", "b", "c"))
    beside = (
        next(shards.glob("*-none-*")) / "text" / text_bank_name(load(published_folder).banks.text_fingerprint, names)
    )
    save_bank(beside, text_bank(3, dim=16))
    monkeypatch.setattr(OpenCLIP, "text", None)
    assert open_zero_shot_model(str(published_folder), names, folders=[beside.parent]).bank.equal(text_bank(3, dim=16))
    score = evaluate_zero_shot(str(published_folder), data=shards, vocabulary=["a", "b", "c"], device="cpu")["student"]
    assert score is not None
    assert set(score.per_class) == {"a", "b", "c"}


def test_another_number_of_names_than_of_classes_is_refused(published_folder: Path, taught_folder: Path) -> None:
    for names in (
        ["a", "b"],
        ["a", "b", "c", "d"],
    ):  # too few may not be noticed at the first label, and too many never
        with pytest.raises(
            VocabularyError, match=rf"\(val\) has 3 classes, .* is asked about {len(names)} names.*--vocabulary"
        ):
            evaluate_zero_shot(str(published_folder), data=taught_folder, vocabulary=names, device="cpu")


def test_a_wrong_number_of_names_is_refused_before_a_model_is_loaded(taught_folder: Path) -> None:
    with pytest.raises(VocabularyError, match="3 classes"):
        evaluate_zero_shot("no such model", data=taught_folder, vocabulary=["a", "b"])


def test_names_in_another_order_score_the_same_and_need_no_text_tower(
    published_folder: Path, taught_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenCLIP, "text", None)
    expected = evaluate_zero_shot(str(published_folder), data=taught_folder, device="cpu")
    names = ["red", "blue", "green"]
    assert evaluate_zero_shot(str(published_folder), data=taught_folder, vocabulary=names, device="cpu") == expected


def test_a_models_own_names_are_matched_with_shards_of_another_order(
    published_folder: Path, taught_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenCLIP, "text", None)
    other = Path(shutil.copytree(taught_folder, tmp_path / "other"))
    info = json.loads((other / "_info.json").read_text())
    (other / "_info.json").write_text(json.dumps({**info, "class_names": ["red", "blue", "green"]}))
    model = open_zero_shot_model(str(published_folder), None)
    matched = match_model(open_shards(other, split="val"), model, name="it")
    assert matched.vocabulary.names == ("red", "blue", "green")
    assert matched.bank.equal(model.bank[[2, 0, 1]])
    features = torch.randn(4, 96)
    assert model.classifier is not None
    assert matched.classifier is not None
    with torch.no_grad():
        assert matched.classifier()(features).equal(model.classifier()(features)[:, [2, 0, 1]])
    assert match_model(open_shards(taught_folder, split="val"), model, name="it") is model


def test_its_own_names_need_no_text_tower(
    published_folder: Path, taught_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenCLIP, "text", None)
    names = tmp_path / "names.txt"
    names.write_text("blue\ngreen\nred\n")
    scores = evaluate_zero_shot(str(published_folder), data=taught_folder, vocabulary=str(names), device="cpu")
    assert scores == evaluate_zero_shot(str(published_folder), data=taught_folder, device="cpu")


def test_new_names_of_a_folder_that_does_not_name_its_teacher_are_refused(
    published_folder: Path, taught_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(published_folder, tmp_path / "copy"))
    (folder / "metrics.json").unlink()
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    with pytest.raises(LGDError, match="does not say which teacher reads new names"):
        evaluate_zero_shot(str(folder), data=taught_folder, vocabulary=str(names), device="cpu")
    assert evaluate_zero_shot(str(folder), data=taught_folder, device="cpu")["teacher"] is None


def test_what_a_folder_of_the_hub_names_is_checked_before_it_is_opened(
    published_folder: Path, taught_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own names need nothing of the teacher, which is in another folder; new names and names in a file do."""
    folder = Path(shutil.copytree(published_folder, tmp_path / "copy"))
    monkeypatch.setattr("lgd_timm.config.reader.pull", lambda name: folder)
    assert evaluate_zero_shot("hub://me/tiny", data=taught_folder, device="cpu") == evaluate_zero_shot(
        str(published_folder), data=taught_folder, device="cpu"
    )
    with pytest.raises(
        RecipeError,
        match=r"^teacher\.model = 'local-dir:.*is an absolute path, and a recipe that came in a folder stays",
    ):
        evaluate_zero_shot("hub://me/tiny", data=taught_folder, vocabulary=["a", "b", "c"], device="cpu")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["data"]["val_vocabulary"] = "file:/etc/passwd"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match=r"^data\.val_vocabulary = 'file:/etc/passwd' is an absolute path"):
        evaluate_zero_shot("hub://me/tiny", data=taught_folder, device="cpu")


@pytest.mark.parametrize(
    "teacher",
    [[], "x", {"teacher": {"kind": "conse"}}, {"teacher": None}, {"teacher": {"kind": "stored", "embeddings": "e"}}],
)
def test_a_folder_with_nonsense_for_a_teacher_is_refused(
    published_folder: Path, taught_folder: Path, tmp_path: Path, teacher: Any
) -> None:
    folder = Path(shutil.copytree(published_folder, tmp_path / "copy"))
    (folder / "metrics.json").write_text(json.dumps({"teacher": teacher}))
    with pytest.raises(LGDError, match="teacher"):
        evaluate_zero_shot(str(folder), data=taught_folder, vocabulary=["a", "b", "c"], device="cpu")


def test_a_recipe_is_its_teacher(
    recipe_dict: dict[str, Any], published_folder: Path, shard_folder: Path, tmp_path: Path
) -> None:
    from lgd_timm.config.reader import recipe_from_dict

    (tmp_path / "recipe.yaml").write_text(recipe_from_dict(recipe_dict).to_yaml())
    scores = evaluate_zero_shot(str(tmp_path / "recipe.yaml"), data=shard_folder, device="cpu")
    assert list(scores) == ["teacher"]
    assert scores["teacher"] is not None
    assert (
        scores["teacher"].to_dict() == json.loads((published_folder / "metrics.json").read_text())["teacher_zero_shot"]
    )


def test_a_recipes_teacher_sees_as_much_of_an_image_as_its_student_will(
    recipe_dict: dict[str, Any], tmp_path: Path
) -> None:
    recipe_dict["data"]["val_crop"] = 0.875
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe_dict, "name": "tiny"}))
    assert open_zero_shot_model(str(tmp_path / "recipe.yaml"), None).views == Views(
        size=32, augmentation="none", crop=0.875
    )


def test_of_stored_embeddings_the_one_who_taught_is_evaluated(
    published_folder: Path, taught_folder: Path, tmp_path: Path
) -> None:
    scores = evaluate_zero_shot(str(published_folder / "recipe.yaml"), data=taught_folder, device="cpu")
    assert scores["teacher"] is not None
    assert (
        scores["teacher"].to_dict() == json.loads((published_folder / "metrics.json").read_text())["teacher_zero_shot"]
    )
    silent = yaml.safe_load((published_folder / "recipe.yaml").read_text())
    silent["teacher"]["taught_by"] = None
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(silent))
    with pytest.raises(LGDError, match="has stored embeddings and no teacher to run"):
        evaluate_zero_shot(str(tmp_path / "recipe.yaml"), data=taught_folder, device="cpu")


def test_a_teach_recipe_needs_names(tmp_path: Path, shard_folder: Path) -> None:
    (tmp_path / "teach.yaml").write_text("teacher: {kind: open_clip, model: RN50}\nviews: {}\nshards: x\n")
    with pytest.raises(LGDError, match=r"teach\.yaml names no vocabulary. Give one with --vocabulary"):
        evaluate_zero_shot(str(tmp_path / "teach.yaml"), data=shard_folder, device="cpu")


@pytest.mark.parametrize("model", ["resnet18", "lgd_resnet19", "nowhere"])
def test_what_cannot_be_evaluated_is_refused(model: str, shard_folder: Path) -> None:
    with pytest.raises(LGDError, match=f"'{model}' is no published folder, no lgd_ weight and no recipe"):
        evaluate_zero_shot(model, data=shard_folder, device="cpu")


@pytest.mark.parametrize("model", ["lgd_resnet18.nope", "lgd_resnet18"])
def test_a_weight_that_does_not_exist_is_refused(
    model: str, shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lgd_timm.hub.weights.manifest", dict)  # where it is looked up
    with pytest.raises(WeightsError, match=rf"'{model}.* is not a weight that this version of lgd_timm knows"):
        evaluate_zero_shot(model, data=shard_folder, device="cpu")


def test_the_bank_is_the_folders_own(published_folder: Path) -> None:
    stored = load_file(published_folder / "lgd.safetensors")["text_bank"]
    assert torch.equal(load(published_folder).banks.text, stored)
    assert torch.allclose(stored.norm(dim=1), torch.ones(3), atol=1e-6)
