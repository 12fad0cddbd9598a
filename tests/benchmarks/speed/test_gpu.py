"""What `python -m benchmarks gpu` measures, on a CPU and in small; and where it puts its table."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.settings import Settings
from benchmarks.speed import gpu, photographs, teaching
from benchmarks.speed.pairs import Row
from lgd_timm.errors import LGDError

QUICK = Settings(
    device=torch.device("cpu"),
    rounds=1,
    workers=0,  # no other processes: seconds, also on a busy machine
    students=("lgd_resnet18",),
    batch_size=4,
    amp="none",
    compile=False,
    quick=True,
)


def blobs() -> dict[str, Image.Image]:
    """Pictures in place of the sample photographs, which an extra brings."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return {"blobs": Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)}


@pytest.mark.filterwarnings("ignore")  # of torch's profiler
def test_all_of_it_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        teaching, "online_teacher", lambda device: teaching.StandIn().to(device)
    )  # seconds, not minutes
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(photographs, "_sources", blobs)
    results = gpu.run(QUICK, limit=250)
    said = json.loads(json.dumps(results.to_dict()))
    assert [row["unit"] for row in said["rows"]] == ["images/s"] * 3 + ["ms"] * 2
    assert all(value > 0 for row in said["rows"] for value in row["values_a"] + row["values_b"])
    kernels = said["kernels"]["lgd_resnet18"]
    assert len(kernels) == 10
    assert [kernel["ms"] for kernel in kernels] == sorted((kernel["ms"] for kernel in kernels), reverse=True)
    assert said["left_out"] == ["host waits, which only CUDA has", "torch.compile, with --quick"]
    assert all(kernel["name"][:90] in results.markdown() for kernel in kernels)


def test_it_ends_in_time_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("quick", "a", "b", "ms", [1.0], [2.0])

    def slow() -> Iterator[Row]:
        time.sleep(20)
        yield row

    parts = [("first", iter([row])), ("compiled second", slow()), ("third", slow()), ("fourth", iter([row]))]
    monkeypatch.setattr(gpu, "_parts", lambda settings, results: iter(parts))
    results = gpu.run(QUICK, limit=0.5)
    assert results.rows == [row]
    assert results.seconds < 5
    assert results.left_out == ["compiled second, for lack of time", "third and what follows, for lack of time"]


def test_without_time_for_a_row_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_parts", lambda settings, results: iter([("first", iter(lambda: time.sleep(5), 0))]))
    with pytest.raises(LGDError, match=r"Nothing could be measured within 0\.2 s"):
        gpu.run(QUICK, limit=0.2)


def test_rows_that_are_all_compiled_are_refused() -> None:
    with pytest.raises(LGDError, match=r"without and with torch\.compile by itself\. Leave --compile out\."):
        gpu.run(replace(QUICK, compile=True))


def test_the_page_gets_the_table_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n" + "\nold\n".join(gpu.MARKS) + "\nafter\n")
    for _ in range(2):
        gpu.fill(page, "new")
    assert page.read_text() == f"before\n{gpu.MARKS[0]}\n\nnew\n\n{gpu.MARKS[1]}\nafter\n"
    page.write_text(gpu.MARKS[0])
    with pytest.raises(LGDError, match="lacks the lines"):
        gpu.fill(page, "new")


def test_the_benchmarks_page_has_the_marks() -> None:
    text = Path("docs/results/benchmarks.md").read_text(encoding="utf-8")
    assert text.index(gpu.MARKS[0]) < text.index(gpu.MARKS[1])
