"""Write a report: read runs, encode images, draw, and write the page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import LGDError, MissingExtra
from ...utils.files import atomic_folder
from . import details, overview
from .collect import group_trials, read_trials
from .details import SHOWN
from .page import GENERATOR, Section, render

PAGE = "index.html"
_PICTURES = re.compile(r"[2-7]-[a-z0-9-]+\.png")  # pictures that an earlier report may have left


def report(
    runs: Sequence[str | Path],
    *,
    data: str | Path | None = None,
    split: str | None = None,
    out: str | Path = "output/report",
) -> Path:
    """Write a page about runs, and its pictures.

    Runs that differ only in run.seed form one group. Where something can't be shown, the page says why.

    Args:
        runs: run folders of `lgd-timm distill`, or published folders.
        data: shard folder of the images that are shown; None: that of each run's recipe.
        split: which split of it; None: the one that each run's recipe evaluates on.
        out: folder of the report; an earlier report in it is replaced.

    Returns:
        The page, `out/index.html`.

    Raises:
        LGDError: no run can be read, or `out` holds something else than a report.
    """
    out = Path(out)
    _check_out(out)
    trials, notes = read_trials(runs)
    groups = group_trials(trials)
    shown = details.encode_groups(groups, data=None if data is None else str(data), split=split)
    command = _command(runs, data=data, split=split, out=out)
    sections = [
        overview.headline(groups),
        _drawn("bars", "Accuracy", lambda: overview.bars(groups)),
        _drawn("curves", "Training", lambda: overview.curves(groups)),
        _drawn("confusion", "What it takes for what", lambda: details.confusion(shown)),
        _drawn("banks", "The two banks", lambda: details.banks(shown)),
        details.nearest(shown),
        details.mistakes(shown),
        overview.made(groups, command=command),
    ]
    looked_into = [
        _with_source(section, shown, command, len(groups)) if section.key in _DETAILS else section
        for section in sections
    ]
    page = render(looked_into, title="Language-Guided Distillation: report", lead=overview.lead(groups), notes=notes)
    _write(
        out, page, {name: png for section in sections for block in section.blocks for name, png in block.files.items()}
    )
    return out / PAGE


_DETAILS = ("confusion", "banks", "nearest", "mistakes")


def _drawn(key: str, title: str, make: Callable[[], Section]) -> Section:
    """Make a section with figures; without matplotlib, one that says so."""
    try:
        return make()
    except MissingExtra as error:
        return Section(key, title, notes=(f"Not drawn. {error}",))


def _with_source(section: Section, shown: Sequence[details.ShownRun], command: str, groups: int) -> Section:
    """Add to a section about single runs which images it shows, and the command that made it."""
    notes = list(section.notes)
    if groups > len(shown):
        notes.append(f"The first {SHOWN} of {groups} settings are looked into: give fewer runs to see others.")
    seen = [run for run in shown if run.encoded is not None and section.key != "banks"]
    sources = dict.fromkeys(run.source for run in seen)  # without repeats, as most show the same images
    return replace(
        section, notes=tuple(notes), commands=(*section.commands, ("Pictures", command)), sources=tuple(sources)
    )


def _command(runs: Sequence[str | Path], *, data: str | Path | None, split: str | None, out: Path) -> str:
    options = [("--data", data), ("--split", split), ("--out", out)]
    words = [word for option, value in options if value is not None for word in (option, str(value))]
    return shlex.join(["lgd-timm", "report", *map(str, runs), *words])


def _check_out(out: Path) -> None:
    """Check that a folder is new, empty or an earlier report. Raises: LGDError."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    page = out / PAGE
    if not page.is_file() or f'content="{GENERATOR}"' not in page.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise LGDError(f"{out} exists and holds no report. Choose another --out, or remove it.")


def _write(out: Path, page: str, pictures: dict[str, bytes]) -> None:
    with atomic_folder(out) as temporary:
        for name, png in pictures.items():
            (temporary / name).write_bytes(png)
        (temporary / PAGE).write_text(page, encoding="utf-8")
        for path in temporary.iterdir():
            path.chmod(0o644)
    for old in out.glob("*.png"):
        if _PICTURES.fullmatch(old.name) and old.name not in pictures:
            old.unlink()
