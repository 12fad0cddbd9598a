"""Show how far long work is: tqdm's bar in a terminal, and where there is none a line of the log now and then."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)

FIRST, MOST = 10.0, 60.0  # seconds until the first line, and between two at most; each wait is twice the one before
UNITS = {"img": "images", "it": "", "B": "bytes"}  # tqdm's, in words


def progress_bar(items: Iterable[Any] | None = None, *, disable: bool = False, **options: Any) -> tqdm:
    """Make a progress bar.

    Args:
        items: are passed through and counted; None: `update` counts.
        disable: show nothing, as on all ranks but the first.
        options: tqdm's, such as total, unit, desc, initial.

    Returns:
        A bar of tqdm; where standard error is no terminal, one that logs lines instead, at level INFO.
    """
    kind = tqdm if sys.stderr.isatty() else _Lines
    return kind(items, disable=disable, **options)


class _Lines(tqdm):
    """Logs what a bar would show."""

    monitor_interval = 0  # no thread that makes a bar move

    def __init__(self, items: Iterable[Any] | None, **options: Any) -> None:
        super().__init__(
            items, **{**options, "file": io.StringIO(), "leave": False, "mininterval": FIRST, "miniters": 1}
        )

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def __str__(self) -> str:
        parts = [self._done(), *self._pace(), *([str(self.postfix)] if self.postfix else [])]
        return f"{self.desc.removesuffix(': ')}: {', '.join(parts)}"

    def _done(self) -> str:
        if not self.total:
            return f"{self._spell(self.n)} {self._unit}".rstrip()
        return (
            f"{self._spell(self.n)} of {self._spell(self.total)} {self._unit}".rstrip()
            + f" ({self.n / self.total:.0%})"
        )

    def _pace(self) -> Iterator[str]:
        facts = self.format_dict
        rate = facts["rate"] or (self.n - self.initial) / max(facts["elapsed"], 1e-9)
        yield f"{self._spell(rate) if rate >= 10 else f'{rate:.2g}'} {self._unit or 'steps'}/s"
        if self.total and rate:
            yield f"{tqdm.format_interval((self.total - self.n) / rate)} left"

    @property
    def _unit(self) -> str:
        return UNITS.get(self.unit, self.unit)

    def _spell(self, number: float) -> str:
        return str(tqdm.format_sizeof(number)) if self.unit == "B" else f"{number:.0f}"

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None and self.n > self.initial:  # not at the start, nor to wipe the bar at the end
            log.info("%s", str(self))  # now, and not when it is written
            self.mininterval = min(2 * self.mininterval, MOST)
