"""The model card: what the Hub reads, what people read, and that both are true.

Each of its snippets is run as it stands.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from torch import Tensor
from torch.nn.functional import normalize

from lgd_timm import hub
from lgd_timm.config.reader import read_recipe, recipe_from_dict
from lgd_timm.config.recipe import Recipe
from lgd_timm.data.vocabulary import Vocabulary
from lgd_timm.errors import WeightsError
from lgd_timm.publish.card import Network, card_of, model_card, retarget, rewrite_card
from lgd_timm.publish.folder import load
from lgd_timm.training.distill import distill
from tests.helpers.hub_fixtures import environment, publish, read_files, run_script
from tests.helpers.hub_server import HubServer

NAME = "lgd_mobilenetv2.clip_rn50_birds"
STUDENT = {"top1": 61.256, "top5": 95.0, "chance": 10.0, "samples": 10000}
TEACHER = {"top1": 70.0, "top5": 98.5}
METRICS: dict[str, Any] = {
    "zero_shot": STUDENT,
    "teacher_zero_shot": TEACHER,
    "teacher": {"name": "clip_rn50"},
    "input": {"size": 64, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
}
TRAINING = {
    "images": 50000,
    "epochs": 10,
    "steps": 3900,
    "device": "cpu",
    "torch": "2.15",
    "timm": "1.0",
    "date": "2026-01-02",
}


def recipe(
    *,
    shards: str = "data/birds",
    teacher: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    **student: Any,
) -> Recipe:
    return recipe_from_dict(
        {
            "objective": objective or {},
            "name": "clip_rn50_birds",
            "teacher": teacher or {"kind": "open_clip", "model": "RN50"},
            "vocabulary": {"source": ["wren", "owl"]},
            "data": {"shards": shards, "val_split": "test"},
            "student": {"model": "lgd_mobilenetv2", **student},
        }
    )


def card(
    metrics: dict[str, Any] = METRICS,
    names: tuple[str, ...] = ("wren", "owl"),
    files: tuple[str, ...] = (),
    repo_id: str | None = None,
    **choices: Any,
) -> str:
    made = recipe(**choices)
    settings: dict[str, Any] = {
        "network": Network("mobilenetv2_100", 2_236_682, 1280),
        "files": files,
        "repo_id": repo_id,
    }
    return model_card(name=NAME, recipe=made, metrics=metrics, vocabulary=Vocabulary(names), **settings)


def snippets(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


# --------------------------------------------------------------------------------------------------------- front matter


def test_the_hub_reads_library_licence_and_scores() -> None:
    data = ModelCard(card()).data
    assert (data.library_name, data.license, data.pipeline_tag) == ("timm", "apache-2.0", "image-classification")
    assert data.tags is not None
    assert {"timm", "transformers", "lgd_timm"} <= set(data.tags)
    assert "open_clip" not in data.tags
    assert data.eval_results is not None
    found = [(row.task_type, row.metric_name, row.metric_type, row.metric_value) for row in data.eval_results]
    task = "zero-shot-image-classification"
    assert found == [(task, "zero-shot top-1", "accuracy", 61.26), (task, "zero-shot top-5", "accuracy", 95.0)]
    assert {(row.dataset_name, row.dataset_type, row.dataset_split) for row in data.eval_results} == {
        ("data/birds", "images", "test")
    }
    assert data.model_name == NAME


def test_a_backbone_is_not_called_a_classifier() -> None:
    assert ModelCard(card(projector="mlp")).data.pipeline_tag == "image-feature-extraction"


@pytest.mark.parametrize(
    ("shards", "expected"),
    [
        ("hf://datasets/org/birds/shards", ["org/birds"]),
        ("hf://datasets/org/birds@v1/a/b", ["org/birds"]),
        ("data/CIFAR10", None),
        ("/mnt/my images", None),
        ("https://host/datasets/org/birds", None),
        ("hf://datasets/org--x", None),
        ("größe", None),
    ],
)
def test_a_data_set_is_named_where_it_lies_on_the_hub(shards: str, expected: list[str] | None) -> None:
    assert ModelCard(card(shards=shards)).data.datasets == expected


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        ({"kind": "open_clip", "model": "RN50", "pretrained": "openai"}, {}, ["timm/resnet50_clip.openai"]),
        ({"kind": "open_clip", "model": "hf-hub:laion/CLIP-x"}, {}, ["laion/CLIP-x"]),
        ({"kind": "open_clip", "model": "hf-hub:laion/CLIP-x@v1"}, {}, ["laion/CLIP-x"]),
        ({"kind": "open_clip", "model": "RN50", "pretrained": "random"}, {}, None),
        ({"kind": "open_clip", "model": "local-dir:teacher"}, {}, None),
        ({"kind": "conse", "classifier": "resnet18", "encoder": "x"}, {}, None),
        (None, {"model": "resnet18", "pretrained": True}, ["timm/resnet18.a1_in1k"]),
        (None, {"model": "resnet18.fb_swsl_ig1b_ft_in1k", "pretrained": True}, ["timm/resnet18.fb_swsl_ig1b_ft_in1k"]),
        (None, {"model": "resnet18"}, None),
    ],
)
def test_base_models_are_those_that_the_hub_has(
    teacher: dict[str, Any] | None, student: dict[str, Any], expected: list[str]
) -> None:
    assert ModelCard(card(teacher=teacher, **student)).data.base_model == expected


def test_the_teacher_of_stored_embeddings_is_the_base_model() -> None:
    spec = {"kind": "open_clip", "model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}
    text = card(
        metrics={**METRICS, "teacher": {"name": "clip_vitb32", "teacher": spec}},
        teacher={"kind": "stored", "embeddings": "data/birds/clip"},
    )
    assert ModelCard(text).data.base_model == ["laion/CLIP-ViT-B-32-laion2B-s34B-b79K"]
    assert "lgd-timm teach hub://" in text


# -------------------------------------------------------------------------------------------------------------- numbers


def test_people_read_the_same_scores() -> None:
    text = ModelCard(card()).text
    assert "| zero-shot top-1 | 61.26 % | 70.00 % | 10.00 % |" in text
    assert "| zero-shot top-5 | 95.00 % | 98.50 % | 50.00 % |" in text
    assert "Measured on 10,000 images of `data/birds`, split `test`." in text
    assert "the teacher `clip_rn50` and the names of 2 categories" in text
    assert "This is `lgd_mobilenetv2`, a stock `mobilenetv2_100` of 2.2 million parameters" in text
    assert "a backbone of 1,280 features" in text


def test_probes_have_rows_and_results_of_their_own() -> None:
    text = card(
        metrics={
            **METRICS,
            "knn": {"top1": 70.5, "chance": 5.0},
            "teacher_knn": {"top1": 80.0},
            "linear_probe": {"top1": 75.25},
        }
    )
    assert "| k-NN top-1 | 70.50 % | 80.00 % | 5.00 % |" in text
    assert "| linear probe top-1 | 75.25 % | not measured | 10.00 % |" in text
    results = ModelCard(text).data.eval_results
    assert results is not None
    assert [(row.task_type, row.metric_name, row.metric_value) for row in results][2:] == [
        ("image-classification", "k-NN top-1", 70.5),
        ("image-classification", "linear probe top-1", 75.25),
    ]


def test_that_names_were_said_to_be_equally_frequent_is_told() -> None:
    told = card(objective={"kind": "refined", "preset": "balanced"})
    assert "about equally often (`objective.balance` 1)" in told
    assert "add `--objective.balance 0`." in told
    assert "equally" not in card(objective={"kind": "refined"})
    assert "equally" not in card()


def test_a_classifier_in_a_folder_of_the_maker_is_named() -> None:
    told = card(teacher={"kind": "conse", "classifier": "local-dir:data/mine", "encoder": "all-MiniLM-L6-v2"})
    assert "`data/birds` and for its teacher's classifier at `local-dir:data/mine`; say" in told
    assert "at `data/birds`; say" in card(
        teacher={"kind": "conse", "classifier": "resnet50", "encoder": "all-MiniLM-L6-v2"}
    )


def test_without_scores_none_are_claimed() -> None:
    text = card(metrics={})
    assert ModelCard(text).data.eval_results is None
    assert "That was not measured." in text
    assert "chance" not in text
    assert "%" not in text


def test_a_teacher_that_was_not_measured_is_not_claimed() -> None:
    text = card(metrics={**METRICS, "teacher_zero_shot": None})
    assert "| zero-shot top-1 | 61.26 % | not measured | 10.00 % |" in text


def test_other_names_than_its_own_are_said_to_have_been_scored() -> None:
    text = card(metrics={**METRICS, "zero_shot": {**STUDENT, "names": ["robin", "hawk", "crow"]}})
    assert "asked about the 3 names of that split, which are not the 2 that the student was distilled for" in text
    assert "```text\nrobin, hawk, crow\n```" in text
    assert "asked about" not in card()


def test_the_names_that_it_knows_least_are_said() -> None:
    shares = {f"bird{i}": 10.0 * i for i in range(1, 8)}
    text = card(metrics={**METRICS, "zero_shot": {**STUDENT, "per_class": shares}})
    assert "it knows least: `bird1` (10.0 %), `bird2` (20.0 %), `bird3` (30.0 %)." in text
    assert "knows least" not in card()


def test_images_that_were_made_smaller_are_said() -> None:
    said = "were encoded anew"
    assert said not in card(metrics={**METRICS, "training": TRAINING})
    resized = {split: {"short_side": 288, "quality": quality} for split, quality in (("train", 92), ("test", 95))}
    text = card(metrics={**METRICS, "training": TRAINING, "resized": resized})
    assert "images of split `train` were encoded anew, once: JPEG of quality 92, short side at most 288 pixels" in text
    assert "images of split `test` were encoded anew, once: JPEG of quality 95, short side at most 288 pixels" in text


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(None, "128 images on cpu"), (12.0, "in less than a minute"), (2659, "in 44 minutes"), (40000.0, "in 11.1 hours")],
)
def test_how_it_was_trained_is_said_where_it_is_known(seconds: float | None, says: str) -> None:
    text = card(metrics={**METRICS, "training": {**TRAINING, **({} if seconds is None else {"seconds": seconds})}})
    assert "50,000 images of `data/birds`, split `train`, 10 epochs, 3,900 steps of" in text
    assert says.replace("128", "256") in text
    assert "2026-01-02; one run, seed 0" in text
    assert "Versions: torch 2.15, timm 1.0" in text
    assert "Nothing was noted of the run." in card()


# --------------------------------------------------------------------------------------------------------------- markup


@pytest.mark.parametrize(
    ("projector", "says"), [("linear", "folded into one linear layer"), ("mlp", "it stays in `lgd.safetensors`")]
)
def test_the_head_is_described_as_it_is(projector: str, says: str) -> None:
    assert says in card(projector=projector)


def test_long_vocabularies_are_shortened() -> None:
    names = tuple(f"name{i}" for i in range(1000))
    text = card(names=names)
    assert "distilled for these 1000:" in text
    assert "name199, ... (1000 in all)" in text
    assert "name200" not in text
    assert "in all" not in card(names=names[:200])


@pytest.mark.parametrize(
    "damage", [('"size"', '"sise"'), ('"size": 64', '"size": 64,'), ('"repository": "', '"repo": "')]
)
def test_a_part_that_was_changed_by_hand_is_said(damage: tuple[str, str]) -> None:
    text = card().replace(*damage)
    with pytest.raises(WeightsError, match="was changed and can't be read"):
        retarget(text, "me/mine")


@pytest.mark.parametrize(
    "name",
    ["{0}", "größe", "a: b", "a | b", "`tick`", "``` fence", "<b>bold</b>", "--> end", "<repo>", "- [ ] #x", '"q"'],
)
def test_names_with_markup_break_nothing(name: str) -> None:
    metrics = {**METRICS, "zero_shot": {**STUDENT, "per_class": {name: 1.0, **dict.fromkeys("abcdefg", 50.0)}}}
    text = card(metrics=metrics, names=(name, "owl"), files=("open_clip_model.safetensors",), shards=f"data/{name}")
    page = ModelCard(text)
    assert page.data.eval_results is not None
    assert page.data.eval_results[0].dataset_name == f"data/{name}"
    (block,) = re.findall(r"^(`{3,})text\n(.*?)\n\1$", text, flags=re.MULTILINE | re.DOTALL)
    assert block[1] == f"{name}, owl"
    assert all(line.count("|") == 5 for line in text.splitlines() if line.startswith("| "))
    for code in snippets(text):
        compile(code, "card", "exec")
    assert f"texts = {json.dumps([name, 'owl'], ensure_ascii=False)}" in text
    assert retarget(text, "me/x") == card(
        metrics=metrics,
        names=(name, "owl"),
        files=("open_clip_model.safetensors",),
        shards=f"data/{name}",
        repo_id="me/x",
    )


def test_files_are_shown_only_where_they_are() -> None:
    bare, whole = card(), card(files=("training.png", "open_clip_config.json", "open_clip_model.safetensors"))
    assert "training.png" not in bare
    assert "open_clip" not in "".join(snippets(bare))
    assert "open_clip_model" not in bare
    assert "](training.png)" in whole
    assert "open_clip.create_model_from_pretrained" in whole
    assert "holds the teacher's text tower" in whole
    tags = ModelCard(whole).data.tags
    assert tags is not None
    assert "open_clip" in tags
    assert (len(snippets(bare)), len(snippets(whole))) == (3, 4)


# --------------------------------------------------------------------------------------------------------- repositories


def test_a_card_is_written_for_our_own_repository_and_names_the_weight() -> None:
    text = card()
    assert f'timm.create_model("{NAME}", pretrained=True)' in text
    assert text.count(f'"hf-hub:lgd-timm/{NAME}"') == 2
    assert f"lgd-timm distill hub://lgd-timm/{NAME}" in text
    assert "pull" not in snippets(text)[0]


def test_retargeting_is_writing_for_that_repository() -> None:
    ours, theirs = (
        card(files=("open_clip_model.safetensors",)),
        card(files=("open_clip_model.safetensors",), repo_id="me/birds.v2"),
    )
    assert retarget(ours, "me/birds.v2") == theirs
    assert retarget(theirs, "me/birds.v2") == theirs
    assert retarget(theirs, f"lgd-timm/{NAME}") == ours
    assert 'lgd_timm.hub.pull("me/birds.v2")' in theirs
    assert "lgd-timm/" not in theirs


@pytest.mark.parametrize(
    "text", ["", "# A card\n", "---\nlicense: mit\n---\n# x\nlgd-timm/lgd_mobilenetv2.clip_rn50_birds\n"]
)
def test_cards_of_others_are_left_alone(text: str) -> None:
    assert retarget(text, "me/x") == text


def test_names_that_no_repository_can_have_are_made_ones_it_can() -> None:
    text = model_card(
        name="hf-hub:a/b c",
        recipe=recipe(),
        metrics={},
        vocabulary=Vocabulary(("a", "b")),
        network=Network("resnet18", 1, 1),
    )
    assert '"hf-hub:lgd-timm/hf-hub-a-b-c"' in text


# ------------------------------------------------------------------------------------------------------------ real runs


def test_the_card_of_a_real_run_is_whole(published_folder: Path) -> None:
    published = load(published_folder)
    found = ModelCard.load(published_folder / "README.md")
    assert found.data.eval_results is not None
    scores = published.metrics["zero_shot"]
    assert [row.metric_value for row in found.data.eval_results] == [round(scores["top1"], 2), round(scores["top5"], 2)]
    assert (
        f"| zero-shot top-1 | {scores['top1']:.2f} % "
        f"| {published.metrics['teacher_zero_shot']['top1']:.2f} % | 33.33 % |" in found.text
    )
    assert "Input: 32 x 32 pixels" in found.text
    assert "48 images of" in found.text
    assert "3 epochs, 9 steps of 16 images in less than a minute, evaluation left out, on cpu" in found.text
    assert published.metrics["training"]["seconds"] > 0
    assert "blue, green, red" in found.text
    assert "![Losses and zero-shot accuracy while it learned](training.png)" in found.text
    for missing in ("?", "None", "nan"):
        assert missing not in found.text.replace("nano", "")


def test_a_card_can_be_written_anew(published_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(published_folder, tmp_path / "copy"))
    before = (folder / "README.md").read_text()
    for text, repo_id, expected in (
        ("---\nlicense: mit\n---\n# old\n", None, before),
        (before, "me/x", retarget(before, "me/x")),
        (retarget(before, "me/x"), None, retarget(before, "me/x")),  # for whom it was
    ):
        (folder / "README.md").write_text(text)
        assert rewrite_card(folder, repo_id=repo_id) == folder / "README.md"
        assert (folder / "README.md").read_text() == expected


@pytest.fixture(scope="module")
def cards(
    tmp_path_factory: pytest.TempPathFactory, run_folder: Path, open_clip_folder: Path
) -> Iterator[tuple[HubServer, dict[str, Path]]]:
    """A Hub with a linear student and an mlp one, and their folders; the cards are for these repositories."""
    home = tmp_path_factory.mktemp("cards")
    data = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    data = {**data, "student": {**data["student"], "projector": "mlp"}, "schedule": {**data["schedule"], "epochs": 1}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LGD_TIMM_CACHE", str(home / "cache"))
        mlp = distill(recipe_from_dict(data), out=home / "run")
    folders = {"me/linear": Path(shutil.copytree(open_clip_folder, home / "linear")), "me/mlp": mlp}
    with HubServer(home / "hub") as server:
        for repo_id, folder in folders.items():
            rewrite_card(folder, repo_id=repo_id)
            publish(server, repo_id, read_files(folder))
        yield server, folders


# Runs snippets one by one in a fresh process, those that import lgd_timm last, and prints what they made.
RUN = """
import contextlib, io, json, sys, torch
from huggingface_hub import ModelCard

codes, cards = {arguments}
made = []
for code in sorted(codes, key=lambda code: "lgd_timm" in code):
    names, said = dict(), io.StringIO()
    assert "lgd_timm" in code or "lgd_timm" not in sys.modules
    with contextlib.redirect_stdout(said):
        exec(compile(code, "card", "exec"), names)
    values = {{k: v.tolist() for k, v in names.items() if isinstance(v, torch.Tensor)}}
    made.append({{"code": code, "said": said.getvalue(), **values}})
for card in cards:
    ModelCard.load(card).validate()
print(json.dumps(made))
"""


def run_snippets(codes: list[str], environ: dict[str, str], cards: list[str]) -> list[dict[str, Any]]:
    return run_script(RUN.format(arguments=[codes, cards]), environ)


def test_every_snippet_of_a_card_runs_as_it_stands_and_all_agree(
    cards: tuple[HubServer, dict[str, Path]], tmp_path: Path
) -> None:
    server, folders = cards
    texts = {repo_id: (folder / "README.md").read_text() for repo_id, folder in folders.items()}
    codes = [code for text in texts.values() for code in snippets(text)]
    assert len(codes) == 4 + 3
    environ = environment(server.url, tmp_path, LGD_TIMM_CACHE=str(tmp_path / "lgd"))
    made = run_snippets(codes, environ, [str(folder / "README.md") for folder in folders.values()])
    assert [request.path for request in server.log].count("/api/validate-yaml") == 2

    def of(repo_id: str, word: str) -> dict[str, Any]:
        (found,) = (row for row in made if repo_id in row["code"] and word in row["code"])
        return found

    scores = {
        word: torch.tensor(of("me/linear", word)["scores"])
        for word in ("create_transform", "transformers", "open_clip")
    }
    torch.testing.assert_close(scores["transformers"], scores["create_transform"], rtol=1e-4, atol=1e-5)
    assert len({of("me/linear", word)["said"].split()[0] for word in scores}) == 1, "another name elsewhere"
    torch.testing.assert_close(
        torch.tensor(of("me/mlp", "transformers")["features"]),
        torch.tensor(of("me/mlp", "create_transform")["features"]),
    )
    for repo_id, folder in folders.items():
        ours = of(repo_id, "lgd_timm.hub.pull")
        with torch.no_grad():
            expected = load(folder).student(torch.tensor(ours["pixels"], dtype=torch.uint8))
        torch.testing.assert_close(torch.tensor(ours["embeddings"]), expected, rtol=1e-5, atol=1e-5)


def test_the_snippet_of_a_weight_of_ours_finds_it_by_name(tmp_path: Path) -> None:
    name, weight = next(iter(hub.manifest().items()))
    folder = hub.locate(name)
    text = card_of(folder, repo_id=weight.repo_id)
    (code,) = (code for code in snippets(text) if "lgd_timm" in code)
    assert "pull" not in code
    environ = environment("http://127.0.0.1:9", tmp_path, LGD_TIMM_HUB=str(folder.parent), LGD_TIMM_CACHE=str(tmp_path))
    (made,) = run_snippets([code], environ, [])
    with torch.no_grad():
        expected: Tensor = load(folder).student(torch.tensor(made["pixels"], dtype=torch.uint8))
    torch.testing.assert_close(
        normalize(torch.tensor(made["embeddings"]), dim=1), normalize(expected, dim=1), rtol=1e-4, atol=1e-5
    )
    assert read_recipe(folder / "recipe.yaml").name in name


def test_a_card_does_not_say_without_labels_of_what_learned_from_them(published_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(published_folder, tmp_path / "copy"))
    assert "distilled without labels" in card_of(folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["objective"] = {"kind": "supervised"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = card_of(folder)
    assert "without labels" not in card
    assert "no label was used" not in card
    assert "Language-Guided" not in card.partition("## How good")[0].partition("# ")[2]


def test_no_raw_html_of_metrics_reaches_the_card() -> None:
    evil = "<img src=x onerror=alert(1)>"
    metrics = {**METRICS, "notes": evil, "training": {**TRAINING, "device": evil, "date": evil, "torch": evil}}
    text = card(metrics=metrics)
    assert "<img" not in text
    assert text.count("&lt;img") == 4
