"""Where to run when nobody said, and how to run well on a CPU."""

from __future__ import annotations

import ctypes
import platform

import torch

from ..errors import LGDError


def pick_device(name: str = "auto") -> str:
    """`auto` is cuda, then mps, then cpu. Raises: LGDError for a device that this machine lacks."""
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise LGDError(
            f"device {name!r} can't be used here ({str(error).splitlines()[0]}). Use cpu, or auto."
        ) from error
    return name


# mallopt's parameters (glibc, malloc.h) and what they are set to: nothing by mmap, nothing given back, 256 MiB more at a time
_MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 256 << 20)}


def keep_memory() -> bool:
    """Let this process keep the memory that it frees. Returns whether it could be told so (glibc only).

    A training step on a CPU frees and takes gigabytes. glibc gives large blocks back to the system, which zeroes them anew: a
    quarter of a step's time, for a seventh less memory. It holds for the whole process, so programs choose it, not libraries.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) for parameter, value in _MALLOPT.values())
