"""open_clip models as teachers, against open_clip itself. Random weights: this proves wiring."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lgd_timm.errors import LGDError, MissingExtra, WeightsError
from lgd_timm.teachers import OpenCLIP, spec_from_dict

PROMPTS = ["a photo of a cat.", "a photo of a blue whale.", "two dogs"]
SMALL = "ViT-S-32-alt"  # open_clip's own smallest


@pytest.fixture
def spec(tiny_clip) -> OpenCLIP:
    return OpenCLIP(f"local-dir:{tiny_clip}")


@pytest.fixture
def changed_clip(tiny_clip, tmp_path):
    """The tiny CLIP's folder, copied, with one number of one tensor changed: call it with the tensor's prefix."""

    def change(prefix: str) -> OpenCLIP:
        folder = tmp_path / f"changed_{prefix.replace('.', '_')}"
        shutil.copytree(tiny_clip, folder)
        weights = load_file(folder / "open_clip_model.safetensors")
        key = next(key for key in sorted(weights) if key.startswith(prefix) and weights[key].ndim > 1)
        weights[key].view(-1)[0] += 0.5
        save_file(weights, folder / "open_clip_model.safetensors")
        return OpenCLIP(f"local-dir:{folder}")

    return change


def picture(size: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def smooth_picture(size: int) -> torch.Tensor:
    y, x = np.mgrid[0:size, 0:size] / size
    return torch.from_numpy(
        np.stack([40 + 150 * y, 200 - 150 * x, 60 + 60 * (x + y)], axis=-1).round().astype(np.uint8)
    )


def theirs(tiny_clip, image: torch.Tensor) -> torch.Tensor:
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{tiny_clip}")
    with torch.no_grad():
        return model.eval().encode_image(transform(Image.fromarray(image.numpy()))[None])


def test_image_embeddings_are_open_clips_own(spec, tiny_clip):
    image = picture(32)
    ours = spec.image()(image.permute(2, 0, 1)[None])
    torch.testing.assert_close(ours, theirs(tiny_clip, image), rtol=1e-5, atol=1e-5)
    assert ours.dtype == torch.float32


def test_images_of_another_size_are_brought_to_its_own(spec, tiny_clip):
    image = smooth_picture(48)
    ours = spec.image()(image.permute(2, 0, 1)[None])
    other = theirs(tiny_clip, smooth_picture(48).flip(0))
    gap = (ours - theirs(tiny_clip, image)).abs().max()
    assert gap < 0.1 * (ours - other).abs().max(), "resized bytes may differ by one from Pillow's, no more"


def test_its_statistics_and_size_are_its_own(spec):
    teacher = spec.image()
    assert teacher.preprocess.size == 32
    assert teacher.preprocess.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert teacher.preprocess.std.flatten().tolist() == pytest.approx([0.2, 0.3, 0.25])
    assert teacher.preprocess.interpolation == "bicubic"
    assert teacher.embed_dim == 16
    assert teacher.name == "clip_tiny_clip"


def test_text_embeddings_are_open_clips_own(spec, tiny_clip):
    model = open_clip.create_model(f"local-dir:{tiny_clip}").eval()
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer(f"local-dir:{tiny_clip}")(PROMPTS))
    ours = spec.text().encode(PROMPTS)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert ours.dtype == torch.float32
    assert (ours[0] - ours[1]).abs().max() > 1e-3


def test_towers_share_a_space_and_keep_nothing_of_each_other(spec):
    image, text = spec.image(), spec.text()
    assert text.encode(PROMPTS).shape == (3, image.embed_dim)
    assert not [key for key in image.state_dict() if "text" in key or "token" in key]
    assert not hasattr(text._model, "visual")


def test_it_is_frozen_and_never_trains(spec):
    teacher = spec.image().train()
    assert not [module for module in teacher.modules() if module.training]
    assert not [parameter for parameter in teacher.parameters() if parameter.requires_grad]
    assert teacher(torch.zeros(1, 3, 32, 32)).is_inference()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "pure_fp16", "pure_bf16"])
def test_lower_precisions_give_nearly_the_same_embeddings(spec, tiny_clip, precision):
    low = OpenCLIP(spec.model, precision=precision)
    image = picture(32).permute(2, 0, 1)[None]
    exact, text = spec.image()(image), spec.text().encode(PROMPTS)
    for ours, expected in ((low.image()(image), exact), (low.text().encode(PROMPTS), text)):
        assert ours.dtype == torch.float32
        assert torch.cosine_similarity(ours, expected).min() > 0.99
        assert not torch.equal(ours, expected), "that was float32"
    assert low.image().fingerprint != spec.image().fingerprint
    assert low.text().fingerprint != spec.text().fingerprint


# Fingerprints


def test_fingerprints_name_the_weights_of_their_tower(spec, changed_clip):
    image, text = spec.image().fingerprint, spec.text().fingerprint
    assert (spec.image().fingerprint, spec.text().fingerprint) == (image, text)
    assert len({image, text}) == 2
    other_image, other_text = changed_clip("visual."), changed_clip("transformer.")
    assert other_image.image().fingerprint != image
    assert other_image.text().fingerprint == text, "the text bank does not depend on the image tower"
    assert other_text.image().fingerprint == image
    assert other_text.text().fingerprint != text


def test_the_image_fingerprint_names_the_preprocessing(spec, tiny_clip, tmp_path):
    folder = tmp_path / "other_statistics"
    shutil.copytree(tiny_clip, folder)
    config = folder / "open_clip_config.json"
    config.write_text(config.read_text().replace("0.4", "0.45"))
    other = OpenCLIP(f"local-dir:{folder}")
    assert other.image().fingerprint != spec.image().fingerprint
    assert other.text().fingerprint == spec.text().fingerprint


def test_fingerprints_are_the_same_in_another_process(spec):
    code = (
        f"from lgd_timm.teachers import OpenCLIP; spec = OpenCLIP({spec.model!r}); "
        "print(spec.image().fingerprint, spec.text().fingerprint)"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert answer.split() == [spec.image().fingerprint, spec.text().fingerprint]


# What can go wrong


def test_random_weights_are_given_when_asked_for():
    if SMALL not in open_clip.list_models() or open_clip.get_model_config(SMALL)["vision_cfg"]["width"] > 384:
        pytest.skip(f"this open_clip has no small {SMALL}")
    spec = spec_from_dict({"kind": "open_clip", "model": SMALL, "pretrained": "random"})
    teacher, text = spec.image(), spec.text()
    assert text.encode(PROMPTS).shape == (3, teacher.embed_dim)
    assert teacher(torch.zeros(1, 3, 20, 20)).isfinite().all()
    assert teacher.name == "clip_vits32alt"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (OpenCLIP("ViT-Z-99"), r"teacher\.model 'ViT-Z-99' is unknown to open_clip .*list_models"),
        (OpenCLIP("RN50"), r"teacher\.pretrained is missing for 'RN50'\. Tags: .*openai.*'random'"),
        (OpenCLIP(SMALL), r"teacher\.pretrained is missing .*none; give a \.safetensors file"),
        (OpenCLIP("RN50", "closedai"), r"'closedai' is no tag of 'RN50' and no \.safetensors file\. Tags: .*openai"),
        (OpenCLIP("local-dir:/nowhere"), r"teacher\.model 'local-dir:/nowhere': no such folder"),
        (OpenCLIP("RN50", "random", precision="int3"), r"teacher\.precision 'int3' is unknown; choose one of fp32, "),
    ],
)
def test_teachers_that_open_clip_can_not_build_are_refused(spec, message):
    for tower in (spec.image, spec.text):
        with pytest.raises(LGDError, match=message):
            tower()


def test_a_folder_without_weights_is_refused(tiny_clip, tmp_path):
    shutil.copy(tiny_clip / "open_clip_config.json", tmp_path)
    with pytest.raises(WeightsError, match=r"teacher\.model '.*' lacks open_clip_model\.safetensors\.$"):
        OpenCLIP(f"local-dir:{tmp_path}").image()


def test_a_missing_library_names_its_extra(spec, monkeypatch):
    def absent(name, *rest):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingExtra, match=r"'open_clip' can't be imported.*pip install 'lgd_timm\[open-clip\]'"):
        spec.image()
