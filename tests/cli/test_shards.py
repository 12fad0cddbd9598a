"""`lgd-timm shards`: one command a subject, and the old spellings say the new ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd_timm import cli
from lgd_timm.data import open_shards
from tests.helpers.commands import say


def test_write(capsys: pytest.CaptureFixture[str], image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "colours"
    said = say(capsys, "shards", "write", image_folder, out, "--split", "train", "--samples-per-shard", "20")
    assert said == f"{out}: 48 images in 3 shards, 0.2 MB, split 'train'\n"
    assert open_shards(out, split="train").class_names == ("blue", "green", "red")
    say(capsys, "shards", "write", image_folder, tmp_path / "unlabelled", "--no-labels", "--min-shards", "4")
    unlabelled = open_shards(tmp_path / "unlabelled", split="train")
    assert (len(unlabelled.filenames), unlabelled.class_names) == (4, ())


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["shards", "photos/", "out"], "shards are written with `lgd-timm shards write IMAGES OUT`"),
        (["shards", "photos/", "out", "--split", "val"], "shards are written with `lgd-timm shards write IMAGES OUT`"),
        (["subset", "a", "b", "--per-class", "2"], "with `lgd-timm shards subset SHARDS FILE --per-class N`"),
    ],
)
def test_an_old_spelling_says_the_new_one(argv: list[str], advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(argv)
    captured = capsys.readouterr()
    assert captured.err.startswith("lgd-timm: error: ")
    assert captured.err.count("\n") == 1
    assert advice in captured.err
    assert captured.out == ""
