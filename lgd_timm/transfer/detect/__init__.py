"""Boxes, or boxes and masks: torchvision's detectors on a timm backbone.

recipe.py       what a detector is told
annotations.py  COCO and LVIS v1 files, read and checked
pictures.py     what a training step sees: sizes, flips, how often a picture comes
model.py        Mask R-CNN, Faster R-CNN, RetinaNet
scores.py       AP of boxes and masks
drawing.py      what a model sees, drawn into the picture
task.py         all of these as one job
"""

from .model import create
from .recipe import DetectRecipe as RECIPE
from .task import prepare
from .visualize import draw

__all__ = ["RECIPE", "create", "draw", "prepare"]
