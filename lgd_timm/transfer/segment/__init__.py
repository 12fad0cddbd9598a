"""Semantic segmentation: a class for each pixel, by segmentation_models_pytorch's decoders on any timm model or student.

recipe.py     what it is told: data and head, beside what all transfers are
layouts.py    Cityscapes, ADE20K and plain folders as pairs of files, with the names of their classes
pictures.py   what is read from them, and what is drawn at random in training
model.py      backbone and decoder as one module, its loss, its answer for a whole picture
scores.py     mIoU and accuracies
task.py       all of this as one job
drawing.py    a picture with what was seen in it
"""

from .model import create
from .recipe import SegmentRecipe
from .task import prepare
from .visualize import draw

RECIPE = SegmentRecipe

__all__ = ["RECIPE", "create", "draw", "prepare"]
