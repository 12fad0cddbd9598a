"""Where to run when nobody said."""

from __future__ import annotations

import torch

from .errors import LGDError


def pick_device(name: str = "auto") -> str:
    """`auto` is cuda, then mps, then cpu. Raises: LGDError for a device that this machine lacks."""
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise LGDError(f"device {name!r} can't be used here ({str(error).splitlines()[0]}). Use cpu, or auto.") from error
    return name
