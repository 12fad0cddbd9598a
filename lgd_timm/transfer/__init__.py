"""Train detection and segmentation on any model that `lgd-timm evaluate linear-probe` takes.

recipe.py     settings that all tasks share: backbone, optimizer, schedule, machine
backbone.py   the backbone, and its feature maps at several strides
job.py        one transfer as the training engine sees it
run.py        from a recipe to a run's folder, and from the folder back to the model
tasks.py      what a task has to implement
detect/       boxes and masks: torchvision's detectors, COCO and LVIS annotations
segment/      a class for each pixel: segmentation_models_pytorch's decoders, Cityscapes and ADE20K folders
"""
