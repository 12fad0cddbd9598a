"""Small timm backbones that know your category names: Language-Guided Distillation (arXiv 2406.11689).

Importing this package registers its students with timm: `timm.create_model("lgd_mobilenetv2", pretrained=True)`.
It stays light: no open_clip, webdataset, transformers or sentence_transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import students
from .errors import LGDError, MissingExtra

if TYPE_CHECKING:
    from . import hub

__version__ = "0.1.0"

__all__ = ["LGDError", "MissingExtra", "__version__", "hub", "students"]


def __getattr__(name: str) -> Any:
    """`lgd_timm.hub`, imported when it is first used: it brings the Hub's whole client."""
    if name == "hub":
        return importlib.import_module(f"{__name__}.hub")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
