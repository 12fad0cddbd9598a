"""Recipes: typed, read from YAML, checked, and kept within the working directory where they come from others."""

from .reader import read_recipe, read_teach_recipe, recipe_from_dict
from .recipe import Recipe, TeachRecipe

__all__ = ["Recipe", "TeachRecipe", "read_recipe", "read_teach_recipe", "recipe_from_dict"]
