"""Detection of boxes and masks: torchvision's detectors on a timm backbone.

recipe.py       settings of data and head
annotations.py  read and check COCO and LVIS v1 files
dataset.py      samples and batches: sizes, flips, how often an image is repeated
model.py        Mask R-CNN, Faster R-CNN, RetinaNet
metrics.py      AP of boxes and masks
visualize.py    draw predictions into their image
task.py         all of these as one job
"""

from .model import create
from .recipe import DetectRecipe as RECIPE
from .task import prepare
from .visualize import draw

__all__ = ["RECIPE", "create", "draw", "prepare"]
