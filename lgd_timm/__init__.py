"""Small timm backbones that know your category names: Language-Guided Distillation (arXiv 2406.11689).

Importing this package registers its students with timm: `timm.create_model("lgd_mobilenetv2", pretrained=True)`.
Where timm is not imported yet, they are registered when it is, so that this import takes no time.
"""

from typing import TYPE_CHECKING

from . import hub
from .errors import LGDError, MissingExtra
from .utils.lazy import lazy_names, when_imported

if TYPE_CHECKING:
    from . import students
    from .evaluate.predict import load

__version__ = "0.1.0"

__all__ = ["LGDError", "MissingExtra", "__version__", "distill_folder", "hub", "load", "students"]

__getattr__ = lazy_names(__name__, {"distill_folder": "training.auto", "load": "evaluate.predict", "students": ""})


def _register_students() -> None:
    from . import students  # noqa: F401  # which registers them


when_imported("timm", _register_students)
