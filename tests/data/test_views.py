"""A view is a pure function of (seed, key, index): nothing else moves a pixel."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from lgd_timm.data.decode import EncodedImage
from lgd_timm.data.views import AUGMENTATIONS, Augmentation, Views, crop_box, generator
from lgd_timm.errors import RecipeError

MOCO = Views(size=16, augmentation="mocov2")

# What version 1 gives, written down on the day of the first stored embeddings
DRAWS = [0.667875426763913, 0.37920372114524226, 0.4896536213974465]
BOXES = [(63, 128, 374, 408), (21, 90, 424, 529)]
PIXELS = [
    [116, 181, 117, 178, 96, 68, 150, 112, 107, 95, 107, 92],
    [251, 81, 246, 64, 43, 71, 220, 242, 53, 179, 128, 226],
    [215, 255, 203, 255, 136, 148, 207, 216, 140, 86, 176, 116],
    [109, 83, 178, 152, 109, 83, 178, 152, 109, 83, 178, 152],
]


def picture(height: int = 24, width: int = 24, seed: int = 0) -> Tensor:
    """Noise: any crop, flip or colour change of it is another picture."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


def render(views: Views, image: Tensor, key: str, index: int) -> Tensor:
    """A view of these very pixels, by way of a lossless file."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return views.render(EncodedImage(file.getvalue()), key, index)


def gradient(size: int) -> Tensor:
    """Smooth in both directions, another ramp for each channel."""
    x, y = torch.meshgrid(torch.linspace(0, 255, size), torch.linspace(0, 255, size), indexing="xy")
    return torch.stack([x, y, (255 - x + y) / 2]).round().to(torch.uint8)


def sums(keys: list[tuple[str, int]]) -> dict[tuple[str, int], str]:
    return {(key, i): hashlib.sha256(render(MOCO, picture(), key, i).numpy().tobytes()).hexdigest() for key, i in keys}


WANTED = [(key, i) for key in ("a", "b_-c", "ü") for i in range(3)]


def test_views_do_not_depend_on_order_or_global_state() -> None:
    expected = sums(WANTED)
    assert len(set(expected.values())) == len(WANTED)  # each key and index has its own
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        shuffled = random.sample(WANTED, len(WANTED))
        assert sums(shuffled) == expected


def test_views_are_the_same_in_another_process() -> None:
    code = """if True:
        import hashlib, io, numpy as np, torch
        from PIL import Image
        from lgd_timm.data.decode import EncodedImage
        from lgd_timm.data.views import Views
        torch.set_num_threads(2)
        file = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 24), dtype=np.uint8)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
        for key in ("ü", "b_-c", "a"):
            for i in (2, 0, 1):
                view = Views(size=16, augmentation="mocov2").render(EncodedImage(file.getvalue()), key, i)
                print(ascii(key), i, hashlib.sha256(view.numpy().tobytes()).hexdigest())
    """
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=280).stdout
    assert sorted(said.split("\n")[:-1]) == sorted(f"{key!a} {i} {value}" for (key, i), value in sums(WANTED).items())


def test_seeds_differ() -> None:
    views = [render(Views(size=16, seed=seed), picture(), "a", 0) for seed in range(4)]
    assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


def test_the_draws_never_change() -> None:
    """Stored embeddings rely on them: whoever changes them must raise VERSION."""
    draw = generator(0, "red_-000", 0)
    assert [draw.random() for _ in range(3)] == pytest.approx(DRAWS, abs=1e-15)
    assert [crop_box(480, 640, AUGMENTATIONS["mocov2"], generator(7, key, 2)) for key in ("a", "b")] == BOXES


def test_the_pixels_never_change() -> None:
    """Coarsely: what another version of torchvision may round otherwise still passes, another order of operations does
    not.
    """
    coarse = [
        torch.nn.functional.adaptive_avg_pool2d(render(Views(size=16), gradient(32), key, 0).float(), 2)
        .round()
        .int()
        .flatten()
        .tolist()
        for key in ("a", "b", "c", "d")
    ]
    assert (torch.tensor(coarse) - torch.tensor(PIXELS)).abs().max() <= 3


@pytest.mark.parametrize("index", range(4))
def test_none_leaves_an_image_of_the_right_size_alone(index: int) -> None:
    image = picture(16, 16)
    assert torch.equal(render(Views(size=16, augmentation="none"), image, "a", index), image)


def test_none_crops_the_centre() -> None:
    image = picture(16, 40)
    assert torch.equal(render(Views(size=16, augmentation="none"), image, "a", 0), image[:, :, 12:28])
    assert torch.equal(render(Views(size=16, augmentation="none"), image.mT, "a", 0), image.mT[:, 12:28])


def test_flip_gives_the_image_or_its_mirror() -> None:
    image = picture(16, 16)
    views = [render(Views(size=16, augmentation="flip"), image, "a", i) for i in range(64)]
    mirrored = [torch.equal(view, image.flip(-1)) for view in views]
    assert all(m or torch.equal(view, image) for m, view in zip(mirrored, views, strict=True))
    assert 16 < sum(mirrored) < 48


def test_light_keeps_colours_and_mocov2_does_not() -> None:
    plain = torch.tensor([200, 60, 90], dtype=torch.uint8).view(3, 1, 1).expand(3, 24, 24)
    light = [render(Views(size=16, augmentation="light"), plain, "a", i).unique().tolist() for i in range(20)]
    assert light == [[60, 90, 200]] * 20
    moco = [render(MOCO, plain, "a", i) for i in range(200)]
    untouched = sum(view.unique().tolist() == [60, 90, 200] for view in moco)
    grey = sum(torch.equal(view[0], view[1]) and torch.equal(view[1], view[2]) for view in moco)
    assert 0.08 < untouched / 200 < 0.26  # 0.2 without jitter, of which 0.8 not grey: 0.16
    assert 0.11 < grey / 200 < 0.30  # 0.2


def test_the_blur_smooths_noise_by_sigmas_of_the_views_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AUGMENTATIONS, "flip", Augmentation(blur=1.0))
    image = picture(112, 112)
    spreads = [
        float(render(Views(size=112, augmentation="flip"), image, "a", i).float().std() / image.float().std())
        for i in range(20)
    ]
    assert 0.45 < np.median(spreads) < 0.85  # 0.64 at sigma 0.5, the middle of 0.1 to 2 pixels of 224
    assert max(spreads) - min(spreads) > 0.2


def test_what_an_image_holds_outside_the_crop_does_not_matter() -> None:
    image = picture(32, 48)
    for index in range(10):
        views = Views(size=16, augmentation="light")
        top, left, height, width = crop_box(32, 48, AUGMENTATIONS["light"], generator(0, "a", index))
        other = torch.zeros_like(image)
        other[:, top : top + height, left : left + width] = image[:, top : top + height, left : left + width]
        assert torch.equal(render(views, other, "a", index), render(views, image, "a", index))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (2, 3), (31, 32), (375, 500), (40, 4000)])
def test_the_crop_is_inside(name: str, height: int, width: int) -> None:
    for index in range(100):
        top, left, h, w = crop_box(height, width, AUGMENTATIONS[name], generator(0, "a", index))
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert min(h, w) >= 1


def test_the_crop_keeps_its_share_and_ratio_and_goes_everywhere() -> None:
    boxes = [crop_box(400, 500, AUGMENTATIONS["mocov2"], generator(0, "a", i)) for i in range(400)]
    shares = [h * w / 200_000 for _, _, h, w in boxes]
    assert 0.19 < min(shares) < 0.25
    assert 0.85 < max(shares) <= 1.0
    assert all(0.74 < w / h < 1.35 for _, _, h, w in boxes)
    assert min(top for top, *_ in boxes) < 10
    assert max(top + h for top, _, h, _ in boxes) > 390
    assert min(left for _, left, *_ in boxes) < 10
    assert max(left + w for _, left, _, w in boxes) > 490


def test_images_of_any_shape_give_a_view() -> None:
    for height, width in ((1, 1), (1, 90), (90, 1), (7, 3), (300, 20)):
        for name in AUGMENTATIONS:
            view = render(Views(size=16, augmentation=name), picture(height, width), "a", 0)
            assert (view.shape, view.dtype) == ((3, 16, 16), torch.uint8)


def test_the_image_itself_is_not_touched() -> None:
    image = picture()
    before = image.clone()
    for index in range(8):
        render(MOCO, image, "a", index)
    assert torch.equal(image, before)


def test_the_fingerprint_names_all_but_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    views = Views(size=32, augmentation="flip", seed=1, count=4)
    assert views.fingerprint == dataclasses.replace(views, count=9).fingerprint
    changes = [{"size": 33}, {"augmentation": "light"}, {"seed": 2}, {"interpolation": "bilinear"}, {"crop": 0.9}]
    names = {views.fingerprint, *(dataclasses.replace(views, **change).fingerprint for change in changes)}
    assert {field.name for field in dataclasses.fields(views)} == {
        "count",
        *(key for change in changes for key in change),
    }
    assert len(names) == 6
    monkeypatch.setitem(AUGMENTATIONS, "flip", Augmentation(flip=0.4))
    assert views.fingerprint not in names


def test_interpolation_is_used() -> None:
    bicubic, bilinear = (
        render(Views(size=16, augmentation="none", interpolation=name), picture(), "a", 0)
        for name in ("bicubic", "bilinear")
    )
    assert not torch.equal(bicubic, bilinear)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"augmentation": "heavy"}, r"views\.augmentation 'heavy' is unknown; choose one of none, flip, light, mocov2"),
        ({"size": 0}, r"views\.size \(0\) must be 2 to 4096"),
        ({"size": 1}, r"views\.size \(1\) must be 2 to 4096"),
        ({"size": 1 << 13}, r"views\.size \(8192\) must be 2 to 4096"),
        ({"count": 10**9}, r"views\.count \(1000000000\) 1 to"),
        ({"count": 0}, r"views\.count \(0\) 1 to"),
        ({"interpolation": "nearest"}, r"views\.interpolation 'nearest' is unknown; choose bilinear or bicubic"),
        (
            {"augmentation": "none", "crop": 0.0},
            r"views\.crop \(0\.0\) is the share of the short side that is kept: 0\.1 to 1",
        ),
        (
            {"augmentation": "none", "crop": 1.1},
            r"views\.crop \(1\.1\) is the share of the short side that is kept: 0\.1 to 1",
        ),
        (
            {"augmentation": "light", "crop": 0.9},
            r"views\.crop \(0\.9\) is for the centre's crop; views\.augmentation 'light' draws its own",
        ),
    ],
)
def test_bad_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Views(**values)


# What views were called before `crop` was there: embeddings that were stored then are still found by these names.
NAMES_BEFORE_CROP = {
    Views(augmentation="none"): "6d24169b83d84ce9",
    Views(augmentation="flip"): "c745630b37c22f7f",
    Views(augmentation="light"): "9a6f6d63bd11f96b",
    Views(augmentation="mocov2"): "75ed0e1aa65207a3",
    Views(size=32, augmentation="none", seed=3, interpolation="bilinear"): "5d36dff66d0e02e5",
    Views(size=32, augmentation="mocov2", seed=3, interpolation="bilinear"): "d8a334ab47d55fca",
}


def test_views_without_a_crop_are_called_what_they_were_before_there_was_one() -> None:
    assert {views.fingerprint for views in NAMES_BEFORE_CROP} == set(NAMES_BEFORE_CROP.values())
    assert all(views.fingerprint == name and "crop" not in views.to_dict() for views, name in NAMES_BEFORE_CROP.items())
    assert Views(**Views(count=3).to_dict()) == Views(count=3)
    cropped = Views(augmentation="none", crop=0.875)
    assert (cropped.to_dict()["crop"], Views(**cropped.to_dict())) == (0.875, cropped)


@pytest.mark.parametrize(
    ("width", "height", "tolerance"),
    # In a picture that is not square, Resize rounds the long side to whole pixels, and so its pixels lie up to half of
    # one aside.
    [(256, 256, 0.0), (300, 256, 0.0), (512, 512, 0.01), (375, 375, 0.5), (500, 375, 2.0), (333, 500, 2.0)],
)
def test_the_crop_is_torchvisions_resize_and_centre_crop(width: int, height: int, tolerance: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height // 25, width // 25, 3), dtype=np.uint8))
    image = noise.resize((width, height), Image.Resampling.BICUBIC)
    expected = np.asarray(transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(image)).astype(float)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    differences = {}
    for crop in (0.875, 1.0):
        view = render(Views(augmentation="none", interpolation="bilinear", crop=crop), pixels, "a", 0)
        differences[crop] = np.abs(view.permute(1, 2, 0).numpy() - expected).mean()
    assert differences[0.875] <= tolerance
    assert differences[1.0] > 20  # the whole square is another picture
