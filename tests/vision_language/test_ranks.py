"""Two processes of torchrun learn what one does, and fill one queue."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lgd_timm.vision_language.run import distill, pretrain
from tests.helpers.runs import last_checkpoint
from tests.helpers.vl_data import recipe, write_scenes


def sorted_rows(queue: Tensor) -> Tensor:
    """Rows of a queue [1, Q, D] in an order of their own."""
    return queue[0][queue[0, :, 0].argsort()]


def on_two_ranks(command: str, recipe_text: str, folder: Path) -> None:
    """Train in two processes, in `folder/two`."""
    (folder / "recipe.yaml").write_text(recipe_text)
    words = ["vl", command, str(folder / "recipe.yaml"), "--output", str(folder / "two")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "lgd_timm.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *words], env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dropout, which each rank draws anew. Captions of several lengths: ranks put as many rows as they have."""
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "cache"))
    scenes, teacher = write_scenes(tmp_path / "scenes"), tmp_path / "teacher"
    pretrain(recipe(scenes), out=teacher)
    made = recipe(
        scenes,
        text={"tokenizer": str(teacher)},
        model={"width": 12, "dropout": 0.0},
        distillation={"teacher": str(teacher), "nce": {"queue": 400}, "hidden_mse": {"weight": 0.1}},
    )
    distill(made, out=tmp_path / "one")
    on_two_ranks("distill", made.to_yaml(), tmp_path)
    ours, theirs = last_checkpoint(tmp_path / "two"), last_checkpoint(tmp_path / "one")
    assert int(ours["distillation/nce.place"]) == int(theirs["distillation/nce.place"]) > 0
    queue = "distillation/nce.queue"
    torch.testing.assert_close(sorted_rows(ours.pop(queue)), sorted_rows(theirs.pop(queue)), rtol=1e-4, atol=1e-5)
    for key, tensor in theirs.items():
        # Attention does not depend on the keys' bias: its gradient is rounding alone, which Adam makes a whole step of
        if not key.startswith("optimizer") and not key.endswith("key.bias"):
            torch.testing.assert_close(ours[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("predict", ["next", "masked"])
def test_two_ranks_learn_by_the_scores_of_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predict: str
) -> None:
    """Each draws captions of its own images; every weight gets a gradient, else the ranks would wait for each other."""
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "cache"))
    scenes, first = write_scenes(tmp_path / "scenes"), tmp_path / "first"
    words = {"kind": "captions", "predict": predict, "words": 8}
    pretrain(recipe(scenes, task=words), out=first)
    made = recipe(
        scenes,
        task={**words, "self_critical": {"samples": 4}},
        data={"variants": 0},
        text={"tokenizer": str(first)},
        model={"init": str(first)},
    )
    on_two_ranks("pretrain", made.to_yaml(), tmp_path)
    before, after = (
        load_file(first / "model" / "model.safetensors"),
        load_file(tmp_path / "two/model/model.safetensors"),
    )
    changed = [key for key in before if key.startswith("model.") and not torch.equal(before[key], after[key])]
    assert "model.region.weight" in changed
    assert all(tensor.isfinite().all() for tensor in after.values())
