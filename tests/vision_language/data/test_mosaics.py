"""Generated scenes: which tiles a caption names rightly."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd_timm.vision_language.data.mosaics import CELLS, Mosaics
from tests.helpers.vl_files import write_tiles


def test_tiles_named_rightly_are_those_of_the_right_class_in_the_right_place(tmp_path: Path) -> None:
    scenes = Mosaics(str(write_tiles(tmp_path / "s")), scenes=20).open()
    for index in range(20):
        scene, (caption, *_) = scenes.scene(index), scenes[index].captions
        assert scenes.named_rightly(caption, index) == 1
        assert scenes.named_rightly(caption.replace(",", " ,"), index) == 1  # as tokens are joined
        here, name = CELLS[scene.cells[0]], scenes.names[scene.labels[0]]
        first = f"{here} {'an' if name == 'airplane' else 'a'} {name}"
        wrong = f"{here} a {'dog' if name == 'cat' else 'cat'}"
        assert scenes.named_rightly(first, index) == pytest.approx(1 / len(scene.cells))
        assert scenes.named_rightly(caption.replace(first, wrong), index) == pytest.approx(1 - 1 / len(scene.cells))
        assert scenes.named_rightly("", index) == 0
    every = ", ".join(f"{cell} a {name}" for name in scenes.names for cell in CELLS)
    assert scenes.named_rightly(every, 0) == pytest.approx(len(scenes.scene(0).cells) / 16)
