"""Where to run, and memory that is kept."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from lgd_timm.errors import LGDError
from lgd_timm.utils.device import pick_device


def test_auto_takes_the_best_device_there_is() -> None:
    assert pick_device() == (
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )
    assert pick_device("cpu") == "cpu"


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(LGDError, match=r"device 'cuda:77' can't be used here .*Use cpu, or auto"):
        pick_device("cuda:77")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_was_freed_is_kept() -> None:
    """Left in the process, in MiB, after 400 were taken and freed."""
    code = """if True:
        import ctypes, sys
        sys.modules["torch"] = sys  # it is not needed, and slow to import
        source = open("lgd_timm/utils/device.py").read().replace("from ..errors import LGDError", "")
        if sys.argv[1] == "keep":
            space = {"__name__": "devices"}
            exec(source, space)
            assert space["keep_memory"]()
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
        before = resident()
        block = bytearray(400 << 20)
        del block
        print(resident() - before)
    """
    left = {
        how: int(subprocess.check_output([sys.executable, "-c", code, how], text=True)) for how in ("keep", "default")
    }
    assert left["keep"] > 350
    assert left["default"] < 50


def test_the_meta_device_is_refused_as_it_computes_nothing() -> None:
    with pytest.raises(LGDError, match="device 'meta' can't be used here"):
        pick_device("meta")
