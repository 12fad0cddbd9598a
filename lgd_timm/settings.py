"""The only module that reads the environment. Each setting is read when it is asked for, so tests can change it.

LGD_TIMM_HUB      folder with published weights that is looked in before the Hub   [the checkout's hub/]
LGD_TIMM_CACHE    folder for text banks and other things that can be made again   [~/.cache/lgd_timm]
"""

from __future__ import annotations

import os
from pathlib import Path


def hub_folder() -> Path:
    """Folder with one published folder per weight, laid out as on the Hub."""
    return Path(os.environ.get("LGD_TIMM_HUB") or Path(__file__).resolve().parent.parent / "hub")


def cache_folder() -> Path:
    """Folder for what can be made again, such as text banks."""
    return Path(os.environ.get("LGD_TIMM_CACHE") or Path.home() / ".cache" / "lgd_timm")
