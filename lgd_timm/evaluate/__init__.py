"""Evaluations, each usable alone: on tensors, on any timm model, on what a person names.

find_model, extract          any timm model, published folder, run or checkpoint -> its features of a split, kept on the disk
zero_shot, knn, linear_probe, fine_tune, calibration, agreement          one measure each
draw_labels                  seeded subsets: 1 % of the labels
evaluate_all                 whatever a model allows
"""

from .agreement import Agreement, agreement
from .battery import Results, evaluate_all
from .bench import Bench
from .calibration import Calibration, calibration
from .features import Features, extract
from .fine_tune import FineTuned, FineTuning, fine_tune
from .knn import KNN, knn
from .linear_probe import LinearProbe, linear_probe
from .models import Backbone, Model, find_model
from .splits import Subset, draw_labels, read_subset
from .subject import evaluate_zero_shot, find_subject
from .zero_shot import ZeroShot, zero_shot, zero_shot_classifier

__all__ = [
    "KNN",
    "Agreement",
    "Backbone",
    "Bench",
    "Calibration",
    "Features",
    "FineTuned",
    "FineTuning",
    "LinearProbe",
    "Model",
    "Results",
    "Subset",
    "ZeroShot",
    "agreement",
    "calibration",
    "draw_labels",
    "evaluate_all",
    "evaluate_zero_shot",
    "extract",
    "find_model",
    "find_subject",
    "fine_tune",
    "knn",
    "linear_probe",
    "read_subset",
    "zero_shot",
    "zero_shot_classifier",
]
