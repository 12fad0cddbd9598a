"""The only module that reads the environment. Each setting is read when it is asked for, so tests can change it.

LGD_TIMM_HUB             folder with published weights that is looked in before the Hub   [the checkout's hub/]
LGD_TIMM_CACHE           folder for text banks, stamps of verified files, shards from elsewhere and the like, which can all be had
                         again   [~/.cache/lgd_timm]
LGD_TIMM_HUB_TIMEOUT     seconds that the Hub, or a server of shards, may take for an answer, or for the next bytes of a file   [5]
LGD_TIMM_HUB_PATIENCE    seconds for which a request that fails is repeated   [10]
LGD_TIMM_SHARD_PATIENCE  the same for a shard, which a running training waits for   [60]
LGD_TIMM_PUSH_TIMEOUT    seconds that it may take to accept a file or a commit, which it checks and stores first   [30]
LGD_TIMM_LOCK_TIMEOUT    seconds to wait for another process that downloads the same repository or shard   [600]

Of the Hub client's own settings HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) counts here too, also when it is set after the
client was imported.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from .errors import LGDError


def hub_folder() -> Path:
    """Folder with one published folder per weight, laid out as on the Hub."""
    return Path(os.environ.get("LGD_TIMM_HUB") or Path(__file__).resolve().parent.parent / "hub")


def cache_folder() -> Path:
    """Folder for what can be made again, such as text banks."""
    return Path(os.environ.get("LGD_TIMM_CACHE") or Path.home() / ".cache" / "lgd_timm")


def hub_timeout() -> float:
    return _seconds("LGD_TIMM_HUB_TIMEOUT", 5)


def hub_patience() -> float:
    return _seconds("LGD_TIMM_HUB_PATIENCE", 10)


def shard_patience() -> float:
    return _seconds("LGD_TIMM_SHARD_PATIENCE", 60)


def push_timeout() -> float:
    return _seconds("LGD_TIMM_PUSH_TIMEOUT", 30)


def lock_timeout() -> float:
    return _seconds("LGD_TIMM_LOCK_TIMEOUT", 600)


def offline() -> bool:
    """Whether the user forbids requests. The Hub's client looks at this only once, when it is imported."""
    return any(
        (os.environ.get(name) or "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _seconds(name: str, default: float) -> float:
    """Raises: LGDError for what is no positive number."""
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise LGDError(f"{name}={text!r} is no number of seconds above 0. Correct or unset it.")
    return value
