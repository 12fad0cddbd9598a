"""Figures: what is larger is drawn larger, equal data give equal bytes, no text is taken for mathematics."""

from __future__ import annotations

import io
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgd_timm.errors import MissingExtra
from lgd_timm.evaluate.report import figures
from lgd_timm.evaluate.report.collect import Spread
from lgd_timm.evaluate.report.figures import Bar, Line
from lgd_timm.publish.training_curve import GREY, ORANGE

RED, GREEN = "#ff0000", "#00ff00"


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def count(png: bytes, colour: str, *, tolerance: int = 8) -> int:
    """How many pixels have a colour, or that colour at the bars' opacity on white."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    shades = [wanted, (0.8 * wanted + 0.2 * 255).astype(int)]
    image = pixels(png)
    return sum(int((np.abs(image - shade) <= tolerance).all(-1).sum()) for shade in shades)


def matrix(values: torch.Tensor, names: tuple[str, ...], **options: Any) -> bytes:
    settings: dict[str, Any] = {"x": "x", "y": "y", "title": "t", "number": ".0f", "limits": (0.0, 100.0), **options}
    return figures.matrix(values, rows=names, columns=names, **settings)


def test_bars_are_as_long_as_their_means() -> None:
    png = figures.bars([Bar("a", Spread((40.0, 50.0, 60.0)), RED), Bar("b", Spread((25.0,)), GREEN)], title="Zero-shot")
    assert count(png, RED, tolerance=60) == pytest.approx(2 * count(png, GREEN, tolerance=60), rel=0.15)


def test_teacher_and_chance_are_drawn_where_they_are_known() -> None:
    plain = figures.bars([Bar("a", Spread((40.0,)), RED)], title="t")
    told = figures.bars([Bar("a", Spread((40.0,)), RED, teacher=70.0, chance=10.0)], title="t")
    assert count(plain, ORANGE) == 0 < count(told, ORANGE)
    assert count(plain, GREY, tolerance=2) < count(told, GREY, tolerance=2)


def test_curves_have_a_band_where_there_are_several_runs() -> None:
    x, mean = np.arange(10.0), np.linspace(3, 1, 10)
    alone = figures.curves([Line("a", x, mean, None, RED, 1)], title="Loss", x="step", y="loss")
    several = figures.curves([Line("a", x, mean, np.full(10, 0.5), RED, 3)], title="Loss", x="step", y="loss")
    faint = (255, 204, 204)  # the colour at a fifth of its strength
    shade = [int((np.abs(pixels(png) - faint) <= 6).all(-1).sum()) for png in (alone, several)]
    assert shade[1] > 100 * max(shade[0], 1)


def test_equal_data_give_equal_bytes() -> None:
    rows = [Bar("a", Spread((1.0, 2.0)), RED, teacher=3.0)]
    assert figures.bars(rows, title="t") == figures.bars(rows, title="t")
    values = torch.rand(3, 3)
    assert matrix(values, ("a", "b", "c")) == matrix(values, ("a", "b", "c"))


def test_rows_that_are_greyed_and_names_without_images_have_no_colour() -> None:
    values = torch.tensor([[100.0, 0, 0], [0, 100, 0], [0, 0, 100]])
    names = ("a", "b", "c")
    grey = "#d9d9d9"
    assert count(matrix(values, names), grey, tolerance=0) < 500
    assert count(matrix(values, names, greyed=[1]), grey, tolerance=0) > 10_000
    values[2] = float("nan")
    assert count(matrix(values, names), grey, tolerance=0) > 10_000


@pytest.mark.parametrize("names", [2, 20, 21, 100])
def test_matrices_of_many_names_stay_of_a_moderate_size(names: int) -> None:
    values = torch.full((names, names), 100.0 / names)
    png = matrix(values, tuple(f"a rather long name {i}" for i in range(names)))
    width, height = Image.open(io.BytesIO(png)).size
    assert max(width, height) <= 13 * figures.DPI
    assert len(png) < 400_000


@pytest.mark.parametrize("text", ["$x^$", "a$b", r"\frac{", "_hidden", "line\nbreak\x00", "", "{}%s", "x" * 500])
def test_any_text_is_drawn_as_it_is(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figures.bars([Bar(text, Spread((40.0, 41.0)), RED)], title="t")
        assert figures.curves([Line(text, np.arange(2.0), np.ones(2), None, RED, 2)], title="t", x="x", y="y")
        assert matrix(torch.rand(2, 2), (text, "b"))


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lgd_timm\[plot\]'"):
        figures.bars([Bar("a", Spread((1.0,)), RED)], title="t")
