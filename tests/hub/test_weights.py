"""The manifest, and the local folder that is looked in before the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lgd_timm import hub
from lgd_timm.errors import WeightsError
from lgd_timm.hub import weights
from lgd_timm.hub.weights import REQUIRED_FILES
from tests.helpers.hub_fixtures import NAME, flip_byte, write_manifest


def test_the_shipped_manifest_reads() -> None:
    for name, weight in hub.manifest().items():
        assert weight.name == name
        assert weight.repo_id.endswith(f"/{name}")
        assert set(REQUIRED_FILES) <= set(weight.files)


def test_manifest_rows(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MANIFEST", tmp_path / "manifest.json")
    row = write_manifest(weights.MANIFEST, small, commit="a" * 40)
    assert hub.manifest() == {NAME: hub.Weight(name=NAME, **row)}


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", '{"a": {}}', '{"a": {"repo_id": "o/a", "commit": "main", "files": {}, "metrics": {}, "cfg": {}}}'],
)
def test_a_damaged_manifest_is_named(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MANIFEST", tmp_path / "manifest.json")
    weights.MANIFEST.write_text(damage)
    with pytest.raises(WeightsError, match=r"manifest\.json can't be read"):
        hub.manifest()


def test_locate_looks_in_the_local_folder_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MANIFEST", tmp_path / "manifest.json")
    monkeypatch.setenv("LGD_TIMM_HUB", str(tmp_path))
    write_manifest(weights.MANIFEST, folder)
    assert hub.locate(NAME) == folder

    flip_byte(folder / "model.safetensors")
    with pytest.raises(WeightsError, match="is not what was published"):
        hub.locate(NAME)

    shutil.rmtree(folder)
    with pytest.raises(WeightsError, match=r"not on the Hub yet.*does not exist.*LGD_TIMM_HUB") as failure:
        hub.locate(NAME)
    assert str(folder) in str(failure.value)
    with pytest.raises(WeightsError, match=f"Did you mean {NAME}"):
        hub.locate("lgd_tst.small")
    with pytest.raises(WeightsError, match=f"It knows: {NAME}"):
        hub.pull("zzz")
