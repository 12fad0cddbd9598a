"""Semantic segmentation: segmentation_models_pytorch's decoders on any timm model or student.

recipe.py      settings of data and head
folders.py     files and class names of Cityscapes, ADE20K and plain folders
dataset.py     samples and batches, augmented for training
model.py       backbone and decoder as one module: its loss, its prediction for a whole image
metrics.py     mIoU and accuracies
task.py        all of this as one job
visualize.py   draw a prediction into its image
"""

from .model import create
from .recipe import SegmentRecipe
from .task import prepare
from .visualize import draw

RECIPE = SegmentRecipe

__all__ = ["RECIPE", "create", "draw", "prepare"]
