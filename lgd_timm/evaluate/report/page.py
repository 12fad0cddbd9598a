"""Sections as one HTML page that needs nothing from elsewhere: pictures are in it, and a browser is told to load nothing else.

What is said comes from files, so the template (page.html) escapes everything.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, StrictUndefined

GENERATOR = "lgd-timm report"  # how a page of ours is known


@dataclass(frozen=True)
class Picture:
    """A PNG with what it shows in words. `scale`: pixels of the picture to a pixel of the page."""

    png: bytes
    alt: str
    caption: tuple[str, ...] = ()
    scale: float = 1.0

    @property
    def uri(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the page, so that text does not jump when it appears."""
        width, height = struct.unpack(">II", self.png[16:24])
        return round(width / self.scale), round(height / self.scale)


@dataclass(frozen=True)
class Block:
    """Pictures that belong together. `files`: file name -> PNG of what stands beside the page."""

    title: str
    sentence: str
    pictures: tuple[Picture, ...]
    files: dict[str, bytes]
    layout: Literal["figures", "rows", "tiles"] = "figures"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its head."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """One thing to see. `notes`: what can't be shown, and why; `commands`: those that made its numbers, with what they made;
    `sources`: of what."""

    key: str
    title: str
    sentence: str = ""
    tables: tuple[Table, ...] = ()
    blocks: tuple[Block, ...] = ()
    notes: tuple[str, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    sources: tuple[str, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()  # title and a file's text


def render(sections: Sequence[Section], *, title: str, lead: str, notes: Sequence[str] = ()) -> str:
    """The page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["units"] = lambda text: text.replace(" %", "\u00a0%")  # a number keeps its sign beside it
    template = environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    return template.render(sections=sections, title=title, lead=lead, notes=notes, generator=GENERATOR)
