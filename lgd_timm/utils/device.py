"""Choose a device, and tune memory allocation on a CPU."""

from __future__ import annotations

import ctypes
import platform

import torch

from ..errors import LGDError


def pick_device(name: str = "auto") -> str:
    """Choose a device.

    Args:
        name: a device; "auto": cuda, else mps, else cpu.

    Raises:
        LGDError: this machine lacks the device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.device(name).type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise LGDError(
            f"device {name!r} can't be used here ({str(error).splitlines()[0]}). Use cpu, or auto."
        ) from error
    return name


# mallopt's parameters (glibc, malloc.h) and their values: no block by mmap, no memory returned, grow by 256 MiB
_MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 256 << 20)}


def keep_memory() -> bool:
    """Make this process keep the memory that it frees.

    A training step on a CPU allocates and frees gigabytes. glibc returns large blocks to the system, which zeroes them
    at the next allocation: a quarter of a step's time, for a seventh less memory. It holds for the whole process, so
    that programs should call this and libraries should not.

    Returns:
        Whether it is in force: only with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) for parameter, value in _MALLOPT.values())
