"""Students: the timm entries (registered when this is imported), and the module that trains."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names
from .entrypoints import STUDENTS, stock_name

if TYPE_CHECKING:
    from .model import Student, create_student

__all__ = ["STUDENTS", "Student", "create_student", "stock_name"]

__getattr__ = lazy_names(__name__, {"Student": "model", "create_student": "model"})
