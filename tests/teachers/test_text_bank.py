"""The text bank: its rows against a plain statement, and when the text tower is needed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from lgd_timm.data.vocabulary import Vocabulary
from lgd_timm.errors import TeacherError
from lgd_timm.settings import cache_folder
from lgd_timm.teachers import TextTeacher
from lgd_timm.teachers.text_bank import encode_vocabulary, load_bank, save_bank, text_bank

NAMES = ("cat", "dog", "blue whale", "cup", "tin opener")
TEMPLATES = ("a photo of a {}.", "{}", "a drawing of the {}")


class Tower(TextTeacher):
    """Every prompt its own vector, of any length; remembers what it was asked."""

    fingerprint = "feed0123beef4567"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(self, prompts):
        self.calls.append(list(prompts))
        return torch.stack([vector(prompt) for prompt in prompts])


def vector(prompt: str) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4])
    return torch.randn(6, generator=torch.Generator().manual_seed(seed)) * (1 + seed % 7)


def no_tower() -> TextTeacher:
    raise AssertionError("the text tower must not be built")


def plain_row(name: str) -> np.ndarray:
    rows = [vector(template.replace("{}", name)).numpy().astype(np.float64) for template in TEMPLATES]
    mean = np.mean([row / np.linalg.norm(row) for row in rows], axis=0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("prompts_per_call", [1, 3, 7, 512])
def test_a_row_is_the_mean_direction_of_its_prompts(prompts_per_call):
    tower = Tower()
    bank = encode_vocabulary(tower, Vocabulary(NAMES, TEMPLATES), prompts_per_call=prompts_per_call)
    assert bank.dtype == torch.float32
    np.testing.assert_allclose(bank.numpy(), [plain_row(name) for name in NAMES], atol=1e-6)
    asked = [prompt for call in tower.calls for prompt in call]
    assert asked == [template.replace("{}", name) for name in NAMES for template in TEMPLATES], "each prompt once"
    assert max(map(len, tower.calls)) <= max(prompts_per_call, len(TEMPLATES))


def test_prompts_count_alike_whatever_their_embeddings_length():
    loud = Tower()
    loud.encode = lambda prompts: torch.stack([vector(p) * (1000 if "photo" in p else 1) for p in prompts])
    vocabulary = Vocabulary(NAMES, TEMPLATES)
    torch.testing.assert_close(encode_vocabulary(loud, vocabulary), encode_vocabulary(Tower(), vocabulary))


def test_a_bank_is_encoded_once_and_then_read():
    vocabulary, tower = Vocabulary(NAMES, TEMPLATES), Tower()
    first = text_bank(vocabulary, text_fingerprint=tower.fingerprint, text=lambda: tower)
    assert torch.equal(first, encode_vocabulary(Tower(), vocabulary))
    assert torch.equal(text_bank(vocabulary, text_fingerprint=tower.fingerprint, text=no_tower), first)
    assert len(list((cache_folder() / "text").iterdir())) == 1, "one file and no temporary one"


def test_a_bank_beside_the_embeddings_needs_no_tower_and_goes_before_the_cache(tmp_path):
    vocabulary, tower = Vocabulary(NAMES), Tower()
    made = text_bank(vocabulary, text_fingerprint=tower.fingerprint, text=lambda: tower)
    (cached,) = (cache_folder() / "text").iterdir()
    folder = tmp_path / "stored"
    save_bank(folder / cached.name, -made)
    found = text_bank(
        vocabulary, text_fingerprint=tower.fingerprint, text=no_tower, folders=[tmp_path / "none", folder]
    )
    assert torch.equal(found, -made)
    cached.unlink()
    assert torch.equal(
        text_bank(vocabulary, text_fingerprint=tower.fingerprint, text=no_tower, folders=[folder]), -made
    )


@pytest.mark.parametrize(
    "other",
    [
        Vocabulary(NAMES[::-1]),
        Vocabulary(NAMES[:-1]),
        Vocabulary(NAMES, TEMPLATES),
        Vocabulary((*NAMES[:-1], "can opener")),
    ],
    ids=["order", "fewer", "templates", "spelling"],
)
def test_other_names_order_or_templates_are_another_bank(other):
    tower = Tower()
    text_bank(Vocabulary(NAMES), text_fingerprint=tower.fingerprint, text=lambda: tower)
    bank = text_bank(other, text_fingerprint=tower.fingerprint, text=lambda: tower)
    assert torch.equal(bank, encode_vocabulary(Tower(), other))
    assert len(list((cache_folder() / "text").iterdir())) == 2


def test_another_tower_does_not_read_the_firsts_bank():
    tower, second = Tower(), Tower()
    second.fingerprint = "0" * 16
    text_bank(Vocabulary(NAMES), text_fingerprint=tower.fingerprint, text=lambda: tower)
    text_bank(Vocabulary(NAMES), text_fingerprint=second.fingerprint, text=lambda: second)
    assert second.calls


def test_a_tower_that_is_not_the_embeddings_own_is_refused():
    tower = Tower()
    with pytest.raises(TeacherError, match=r"fingerprint feed0123beef4567, stored 1111.*lgd-timm teach"):
        text_bank(Vocabulary(NAMES), text_fingerprint="1111", text=lambda: tower)
    assert not tower.calls
    assert not (cache_folder() / "text").exists(), "nothing of it may be cached"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_refused_and_not_cached(value):
    tower = Tower()
    tower.encode = lambda prompts: torch.stack([vector(p) * (value if p == "cup" else 1) for p in prompts])
    with pytest.raises(TeacherError, match="text tower gave embeddings that are not finite"):
        text_bank(Vocabulary(NAMES), text_fingerprint=tower.fingerprint, text=lambda: tower)
    assert not (cache_folder() / "text").exists()


def test_saved_and_loaded_banks_are_bit_equal(tmp_path):
    bank = torch.nn.functional.normalize(torch.randn(6, 4), dim=0).T  # not contiguous
    save_bank(tmp_path / "new" / "bank.safetensors", bank)
    assert torch.equal(load_bank(tmp_path / "new" / "bank.safetensors"), bank)


@pytest.mark.parametrize("place", [None, 20, -1, -50])
def test_a_damaged_bank_is_read_anew_which_is_said(place, caplog):
    vocabulary, tower = Vocabulary(NAMES), Tower()
    made = text_bank(vocabulary, text_fingerprint=tower.fingerprint, text=lambda: tower)
    (cached,) = (cache_folder() / "text").iterdir()
    content = bytearray(cached.read_bytes())
    if place is not None:
        content[place] ^= 1
    cached.write_bytes(content if place is not None else b"")
    assert torch.equal(text_bank(vocabulary, text_fingerprint=tower.fingerprint, text=Tower), made)
    assert "is damaged" in caplog.text
    assert torch.equal(text_bank(vocabulary, text_fingerprint=tower.fingerprint, text=no_tower), made)


def test_a_cache_that_cant_be_written_costs_no_bank(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "file" / "cache"))
    vocabulary, tower = Vocabulary(NAMES, TEMPLATES), Tower()
    bank = text_bank(vocabulary, text_fingerprint=tower.fingerprint, text=lambda: tower)
    assert torch.equal(bank, encode_vocabulary(Tower(), vocabulary))
    assert "can't be written" in caplog.text
    assert "Set LGD_TIMM_CACHE" in caplog.text
