"""What a distilled backbone is for: detection and segmentation, on top of any model that `lgd-timm evaluate linear-probe` takes.

recipe.py     what all of these are told: backbone, optimizer, schedule, run
backbone.py   the model that looks, as feature maps at several strides
job.py        one training, as a task describes it
loop.py       the loop that takes it from step to step, to be killed and resumed at any of them
runs.py       from a recipe to a run's folder, and back
detect/       boxes and masks: torchvision's detectors, COCO and LVIS annotations
segment/      a class for each pixel: segmentation_models_pytorch's decoders, Cityscapes and ADE20K folders
"""
