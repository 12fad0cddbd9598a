"""The published folder: saved, loaded, checked, described by a card, registered, uploaded."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from .folder import Published, load, save
    from .lgd_safetensors import Banks
    from .registration import register
    from .upload import PushResult, push

__all__ = ["Banks", "Published", "PushResult", "load", "push", "register", "save"]

__getattr__ = lazy_names(
    __name__,
    {
        "Banks": "lgd_safetensors",
        "Published": "folder",
        "PushResult": "upload",
        "load": "folder",
        "push": "upload",
        "register": "registration",
        "save": "folder",
    },
)
