"""Costs on paper: the formulas, worked by hand, and the page that shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.speed import cost

FACTS = cost.Facts()


def cells(table: list[str], row: int) -> list[str]:
    return [cell.strip() for cell in table[row + 2].strip("|").split("|")]


def test_the_page_shows_what_the_command_prints() -> None:
    page = Path("docs/results/scaling.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("<!-- python -m benchmarks.speed.cost -->")
    assert rest.partition("<!-- end -->")[0].strip() == cost.tables(FACTS)


def test_by_hand() -> None:
    facts = replace(FACTS, train={"lgd_resnet18": 1000.0}, core={"a": 300.0, "b": 1000.0}, teacher=500.0)
    assert cells(list(cost.cores(facts)), 0) == ["lgd_resnet18", "1000", "4", "1"]
    # 1,281,167 images: 0.356 h by the student; 0.712 h more by the teacher; four views of it
    assert cells(list(cost.hours(facts)), 0) == ["1.28 M", "2.8", "0.36, 1.1"]
    assert cells(list(cost.storage(facts)), 3)[1:3] == ["3.1 TB", "2.0 TB"]  # 10^9 x (512 + 2,560), (512 + 1,536)


def test_more_gpus_take_less_time_and_gain_less() -> None:
    eight, many = cells(list(cost.gpus(FACTS)), 0)[3], cells(list(cost.gpus(FACTS)), 0)[5]
    assert float(eight.split()[-2]) > 40 * float(many.split()[-2])
    assert float(eight.split("(")[1].split()[0]) > float(many.split("(")[1].split()[0])
