"""Small timm backbones that know your category names: Language-Guided Distillation (arXiv 2406.11689).

Importing this package registers its students with timm: `timm.create_model("lgd_mobilenetv2", pretrained=True)`.
It stays light: no open_clip, webdataset, transformers or sentence_transformers.
"""

from typing import TYPE_CHECKING

from . import hub, students
from .errors import LGDError, MissingExtra
from .utils.lazy import lazy_names

if TYPE_CHECKING:
    from .evaluate.predict import load

__version__ = "0.1.0"

__all__ = ["LGDError", "MissingExtra", "__version__", "hub", "load", "students"]

__getattr__ = lazy_names(__name__, {"load": "evaluate.predict"})
