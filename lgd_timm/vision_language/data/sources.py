"""The data sets that a recipe can name by `kind`. Each source is a frozen dataclass with `kind` and `open()`.

Whoever adds a data set adds its dataclass to `Source`: recipes can name it then.
"""

from __future__ import annotations

from .json_lines import JsonLines

Source = JsonLines
