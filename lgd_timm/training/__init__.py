"""What runs from a recipe: store a teacher's embeddings, distil a student; and the one loop that trains."""

from .distill import distill, save_run
from .teach import teach, teach_recipe

__all__ = ["distill", "save_run", "teach", "teach_recipe"]
