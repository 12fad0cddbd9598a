"""Small timm backbones that know your category names: Language-Guided Distillation (arXiv 2406.11689).

Importing this package registers its students with timm: `timm.create_model("lgd_mobilenetv2", pretrained=True)`.
It stays light: no open_clip, webdataset, transformers or sentence_transformers.
"""

from . import hub, students
from .errors import LGDError, MissingExtra

__version__ = "0.1.0"

__all__ = ["LGDError", "MissingExtra", "__version__", "hub", "students"]
