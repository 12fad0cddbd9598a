"""Keys and shapes of files are compared; prefixes of training frameworks are removed where all keys fit then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lgd_timm.errors import WeightsError
from lgd_timm.utils.state_keys import (
    differing_keys,
    key_prefixes,
    prefix_advice,
    shapes_of,
    stored_shapes,
    without_prefix,
)

WANTED = {"conv.weight": torch.zeros(2, 3), "norm.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "backbone.", "_orig_mod.", "module._orig_mod.", "model.backbone.", "encoder_q."]
)
def test_a_prefix_is_removed_with_what_stands_beside_it(prefix: str) -> None:
    state = {prefix + key: tensor + 1 for key, tensor in WANTED.items()}
    state |= {f"{prefix}fc.weight": torch.ones(1), "criterion.weight": torch.ones(1)}
    found = without_prefix(state, WANTED)
    assert set(found) == {*WANTED, "fc.weight"}
    assert all(found[key].equal(tensor + 1) for key, tensor in WANTED.items())


def test_what_fits_already_is_left_alone() -> None:
    state = {**WANTED, "model.conv.weight": torch.ones(2, 3), "model.norm.bias": torch.ones(2)}
    assert key_prefixes(state, WANTED) == []
    assert without_prefix(state, WANTED) == state


def test_several_models_in_one_file_are_not_guessed_from() -> None:
    state = {f"{part}.{key}": tensor for part in ("student", "teacher") for key, tensor in WANTED.items()}
    assert without_prefix(state, WANTED) == state
    assert "It holds the model several times, as student., teacher.." in prefix_advice(state, WANTED)


@pytest.mark.parametrize("shape", [(2, 4), None])
def test_a_prefix_under_which_not_all_fits_is_named_and_stays(shape: tuple[int, ...] | None) -> None:
    state = {"model.norm.bias": torch.zeros(2)}
    if shape is not None:
        state["model.conv.weight"] = torch.zeros(shape)
    assert without_prefix(state, WANTED) == state
    assert prefix_advice(state, WANTED) == " Its other keys begin with model.."


def test_a_files_keys_and_shapes_are_compared_with_a_models(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(WANTED, file)
    assert stored_shapes(file) == shapes_of(WANTED)
    assert differing_keys(stored_shapes(file), shapes_of(WANTED)) == []
    wanted = shapes_of({"conv.weight": torch.zeros(3, 2), "fc.bias": torch.zeros(())})
    assert differing_keys(stored_shapes(file), wanted) == ["conv.weight", "fc.bias", "norm.bias"]
    file.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match=r"model.safetensors does not open as safetensors \("):
        stored_shapes(file)
