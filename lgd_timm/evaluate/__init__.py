"""Evaluate models: each measure works on tensors, and on any model that is named.

find_model, extract          a timm model, published folder, run or checkpoint -> its features of a split, cached on the
disk zero_shot, knn, linear_probe, fine_tune, calibration, agreement          one measure each draw_labels
seeded subsets of the labels, such as 1 % evaluate_all                 every measure that a model and its data allow
"""

from ..data.subset import Subset, draw_labels, read_subset
from .agreement import Agreement, agreement
from .calibration import Calibration, calibration
from .feature_splits import FeatureSplits
from .features import Features, extract
from .fine_tune import FineTuned, FineTuning, fine_tune
from .knn import KNN, knn
from .linear_probe import LinearProbe, linear_probe
from .models import Backbone, Model, find_model
from .suite import Results, evaluate_all
from .zero_shot import ZeroShot, zero_shot, zero_shot_classifier
from .zero_shot_model import evaluate_zero_shot, open_zero_shot_model

__all__ = [
    "KNN",
    "Agreement",
    "Backbone",
    "Calibration",
    "FeatureSplits",
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
    "fine_tune",
    "knn",
    "linear_probe",
    "open_zero_shot_model",
    "read_subset",
    "zero_shot",
    "zero_shot_classifier",
]
