"""What every runtime is given: raw pixels in; logits of the model's own names, of others, or features out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from lgd_timm.config.reader import recipe_from_dict
from lgd_timm.data.vocabulary import load_vocabulary
from lgd_timm.errors import LGDError
from lgd_timm.evaluate.zero_shot_model import open_zero_shot_model
from lgd_timm.export.graph import Graph, graph_of, views_of
from lgd_timm.export.loading import open_export_model
from lgd_timm.hub.weights import local_folder
from lgd_timm.publish.folder import load
from lgd_timm.training.distill import distill
from tests.helpers.shaken import NAMES, shaken

WEIGHT = "lgd_mobilenetv2.conse_cifar10"


@pytest.fixture(scope="module")
def mlp_folder(tiny_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a student with an mlp projector published. Read only."""
    recipe = {
        **tiny_recipe,
        "student": {"model": "test_resnet", "projector": "mlp"},
        "schedule": {"epochs": 1, "warmup_epochs": 0},
    }
    home = tmp_path_factory.mktemp("mlp")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LGD_TIMM_CACHE", str(home / "cache"))
        return distill(recipe_from_dict(recipe), out=home / "run")


@torch.no_grad()
def of(graph: Graph, pixels: Tensor) -> Tensor:
    answers: Tensor = graph.module(pixels)
    return answers


@torch.no_grad()
def asked(model: str, pixels: Tensor, vocabulary: list[str] | None = None) -> Tensor:
    """What `evaluate zero-shot` takes for the logits of these pixels."""
    student = open_zero_shot_model(model, None if vocabulary is None else load_vocabulary(vocabulary))
    return normalize(student.encoder(pixels), dim=1) @ student.bank.T


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * max(1, float(wanted.abs().max())))


@torch.no_grad()
def test_pixels_go_in_as_a_picture_has_them() -> None:
    """Against timm's own transform of a picture of the model's size."""
    graph, pixels = (
        graph_of(open_export_model(WEIGHT)),
        np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8),
    )
    model = timm.create_model(f"local-dir:{local_folder(WEIGHT)}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    wanted = model(transform(Image.fromarray(pixels))[None])
    close(of(graph, torch.from_numpy(pixels).permute(2, 0, 1)[None]), wanted)
    close(of(graph, torch.from_numpy(pixels).permute(2, 0, 1)[None].float()), wanted)
    close(graph.answers(torch.from_numpy(pixels).permute(2, 0, 1)[None]), wanted)


def test_each_channel_has_its_own_statistics() -> None:
    exported = replace(shaken("test_resnet"), mean=(0.1, 0.5, 0.9), std=(0.1, 0.2, 0.4))
    graph = graph_of(exported)
    close(of(graph, graph.pixels(2)), graph.answers(graph.pixels(2)))


def test_features_are_those_in_front_of_the_classifier(published_folder: Path) -> None:
    graph = graph_of(open_export_model(str(published_folder)), features=True)
    assert (graph.output, graph.facts()["answers"], graph.facts()["label_names"]) == ("features", "features", ())
    with torch.no_grad():
        close(of(graph, graph.pixels(2)), load(published_folder).student.features(graph.pixels(2)))


def test_asking_for_features_leaves_the_source_as_it_is() -> None:
    exported = shaken("test_resnet")
    graph_of(exported, features=True)
    assert exported.classes == len(NAMES)


def test_a_model_without_classifier_gives_features() -> None:
    graph = graph_of(shaken("test_resnet", classes=0))
    assert (graph.output, of(graph, graph.pixels(2)).shape) == ("features", (2, 96))


def test_a_student_with_an_mlp_projector_answers_by_its_names(mlp_folder: Path) -> None:
    graph = graph_of(open_export_model(str(mlp_folder)))
    found, wanted = of(graph, graph.pixels(4)), asked(str(mlp_folder), graph.pixels(4))
    temperature = open_zero_shot_model(str(mlp_folder), None).student_temperature
    assert temperature is not None
    close(found, wanted / temperature)
    assert torch.equal(found.argmax(1), wanted.argmax(1))
    assert (graph.output, graph.model.label_names) == ("logits", ("blue", "green", "red"))


def test_features_of_a_student_with_an_mlp_projector(mlp_folder: Path) -> None:
    graph = graph_of(open_export_model(str(mlp_folder)), features=True)
    with torch.no_grad():
        close(of(graph, graph.pixels(2)), load(mlp_folder).student.features(graph.pixels(2)))


@pytest.mark.parametrize("form", [list, lambda names: f"[{', '.join(names)}]"])
def test_a_student_answers_by_other_names(published_folder: Path, form: Callable[[list[str]], Any]) -> None:
    names = ["teal", "rust", "navy", "sand"]
    graph = graph_of(open_export_model(str(published_folder)), vocabulary=form(names), templates="a photo of {}")
    assert graph.model.label_names == tuple(names)
    student = open_zero_shot_model(str(published_folder), load_vocabulary(names, templates="a photo of {}"))
    assert student.student_temperature is not None
    with torch.no_grad():
        wanted = normalize(student.encoder(graph.pixels(3)), dim=1) @ student.bank.T / student.student_temperature
    close(of(graph, graph.pixels(3)), wanted)


def test_pictures_are_shown_as_in_evaluation() -> None:
    views = views_of(replace(shaken("test_resnet"), crop_pct=0.9, interpolation="bilinear"))
    assert (views.size, views.crop, views.interpolation, views.augmentation) == (64, 0.9, "bilinear", "none")
    assert views_of(replace(shaken("test_resnet"), interpolation="lanczos")).interpolation == "bicubic"


# ------------------------------------------------------------------------------------------------------------- refusals


def test_features_have_no_names(published_folder: Path) -> None:
    with pytest.raises(LGDError, match="--features are no answers by name"):
        graph_of(open_export_model(str(published_folder)), features=True, vocabulary="[a, b]")


def test_a_plain_model_can_not_be_asked_about_other_names() -> None:
    with pytest.raises(
        LGDError, match="'test_resnet' is no published student, so it has no projector that other names"
    ):
        graph_of(shaken("test_resnet"), vocabulary="[a, b]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda answers: answers + 1e-3,
            r"--to x: the runtime's logits are 0\.000\d+ from timm's, and 0\.0001 is allowed",
        ),
        (lambda answers: answers * float("nan"), "are nan from timm's"),
        (lambda answers: answers[:, :3], r"the runtime answers \[1, 3\] for \[1, 7\]"),
    ],
)
def test_a_runtime_that_answers_otherwise_is_noticed(change: Callable[[Any], Any], message: str) -> None:
    graph = graph_of(shaken("test_resnet"))

    def honest(images: Any) -> Any:
        return graph.answers(torch.from_numpy(images)).numpy()

    assert graph.compare(honest, to="x") == 0
    with pytest.raises(LGDError, match=message):
        graph.compare(lambda images: change(honest(images)), to="x")
