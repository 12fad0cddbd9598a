"""The data sets that a recipe can name by `kind`. Each source is a frozen dataclass with `kind` and `open()`.

Whoever adds a data set adds its dataclass to `Source`: recipes can name it then.
"""

from __future__ import annotations

from .coco_captions import CocoCaptions
from .easy_vqa import EasyVqa
from .json_lines import JsonLines
from .mosaics import Mosaics
from .shards import CaptionShards
from .vqa_v2 import VqaV2

Source = JsonLines | CocoCaptions | VqaV2 | EasyVqa | Mosaics | CaptionShards
