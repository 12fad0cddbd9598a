"""The only module that reads environment variables. Each is read at every call, so that tests can change it.

LGD_TIMM_HUB             folder with published weights, searched before the Hub   [the checkout's hub/]
LGD_TIMM_CACHE           folder for what can be made or downloaded again: text banks, stamps of verified files, shards
                         [~/.cache/lgd_timm]
LGD_TIMM_CACHE_SIZE      bytes that fetched shards may take there, such as 20GB   [80 % of what the disk has free]
LGD_TIMM_HUB_TIMEOUT     seconds until the Hub, or a server of shards, must answer or send the next bytes   [5]
LGD_TIMM_HUB_PATIENCE    seconds for which a failing request is repeated   [10]
LGD_TIMM_SHARD_PATIENCE  the same for a shard that a running training waits for   [60]
LGD_TIMM_PUSH_TIMEOUT    seconds until the Hub must accept a file or a commit, which it checks and stores first   [30]
LGD_TIMM_LOCK_TIMEOUT    seconds to wait for another process that downloads the same repository or shard   [600]

Of the Hub client's own settings, HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE count here too, even if they are set after the
client was imported.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from pathlib import Path

from .errors import LGDError

MOST_SECONDS = 86_400.0  # a day
UNITS = ("", "k", "m", "g", "t")  # of sizes, each a thousand of the one before, or 1,024 with an i


def hub_folder() -> Path:
    """Return the folder that holds a published folder for each weight: a checkout's hub/, else the package's."""
    return Path(os.environ.get("LGD_TIMM_HUB") or _shipped("published", checkout="hub"))


def recipes_folder() -> Path:
    """Return the folder of the recipes that come with the package: a checkout's, else the package's."""
    return _shipped("recipes", checkout="recipes")


def _shipped(name: str, *, checkout: str) -> Path:
    """A folder that a wheel installs in the package, and that lies beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    return package / name if (package / name).is_dir() else package.parent / checkout


def cache_folder() -> Path:
    """Return the folder for what can be made or downloaded again, such as text banks."""
    if folder := os.environ.get("LGD_TIMM_CACHE"):
        return Path(folder)
    home = os.path.expanduser("~")
    if home != "~":
        return Path(home) / ".cache" / "lgd_timm"
    # a container's user without HOME and passwd entry
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache) / "lgd_timm" if cache else Path(tempfile.gettempdir()) / f"lgd_timm-{os.getuid()}"


def cache_size() -> int | None:
    """Return how many bytes fetched shards may take in the cache; None: a share of what the disk has free.

    Raises:
        LGDError: LGD_TIMM_CACHE_SIZE is no number of bytes.
    """
    text = os.environ.get("LGD_TIMM_CACHE_SIZE")
    if not text:
        return None
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*(?:([kmgt]?)(i?)b?)", text.strip().lower())
    size = 0 if found is None else int(float(found[1]) * (1024 if found[3] else 1000) ** UNITS.index(found[2]))
    if size < 1:
        raise LGDError(f"LGD_TIMM_CACHE_SIZE={text!r} is no number of bytes above 0. Write 20GB, 500MB or 20000000000.")
    return size


def hub_timeout() -> float:
    """Return how many seconds the Hub may take for an answer, or for the next bytes of a file."""
    return _seconds("LGD_TIMM_HUB_TIMEOUT", 5)


def hub_patience() -> float:
    """Return for how many seconds a failing request is repeated."""
    return _seconds("LGD_TIMM_HUB_PATIENCE", 10)


def shard_patience() -> float:
    """Return for how many seconds a failing request for a shard is repeated."""
    return _seconds("LGD_TIMM_SHARD_PATIENCE", 60)


def push_timeout() -> float:
    """Return how many seconds the Hub may take to accept a file or a commit."""
    return _seconds("LGD_TIMM_PUSH_TIMEOUT", 30)


def lock_timeout() -> float:
    """Return for how many seconds a process waits for another that downloads the same."""
    return _seconds("LGD_TIMM_LOCK_TIMEOUT", 600)


def offline() -> bool:
    """Return whether the user forbids requests. The Hub's client reads this only once, when it is imported."""
    return any(
        (os.environ.get(name) or "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _seconds(name: str, default: float) -> float:
    """Read a number of seconds. Raises: LGDError for what is none from above 0 to a day."""
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= MOST_SECONDS:
        raise LGDError(f"{name}={text!r} is no number of seconds above 0 and up to a day. Correct or unset it.")
    return value
