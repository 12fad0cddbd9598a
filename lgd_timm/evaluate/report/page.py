"""Render sections as one HTML page: pictures are inside it, and it forbids the browser to load anything else.

Its text comes from files that others may have written, so the template (page.html) escapes everything.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, StrictUndefined

GENERATOR = "lgd-timm report"  # in the page's metadata, by which an earlier report is recognised


@dataclass(frozen=True)
class Picture:
    """A PNG with its alternative text. `scale`: its pixels for one pixel of the page."""

    png: bytes
    alt: str
    caption: tuple[str, ...] = ()
    scale: float = 1.0

    @property
    def uri(self) -> str:
        """The PNG as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the page in pixels, so that text does not move while it loads."""
        width, height = struct.unpack(">II", self.png[16:24])
        return round(width / self.scale), round(height / self.scale)


@dataclass(frozen=True)
class Block:
    """Pictures that belong together. `files`: name -> PNG of the files that are written beside the page."""

    title: str
    sentence: str
    pictures: tuple[Picture, ...]
    files: dict[str, bytes]
    layout: Literal["figures", "rows", "tiles"] = "figures"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its heading."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
        key: its anchor.
        title: its heading.
        sentence: what it shows.
        tables: of it.
        blocks: pictures of it.
        notes: what can't be shown, and why.
        commands: (what was made, command that made it).
        sources: which data it is made of.
        texts: (title, content) of files.
    """

    key: str
    title: str
    sentence: str = ""
    tables: tuple[Table, ...] = ()
    blocks: tuple[Block, ...] = ()
    notes: tuple[str, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    sources: tuple[str, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()


def render(sections: Sequence[Section], *, title: str, lead: str, notes: Sequence[str] = ()) -> str:
    """Render the page as HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["units"] = lambda text: text.replace(" %", "\u00a0%")  # no line break between number and unit
    template = environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    return template.render(sections=sections, title=title, lead=lead, notes=notes, generator=GENERATOR)
