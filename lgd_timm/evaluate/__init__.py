"""Evaluations, each usable alone on any timm model."""

from .zero_shot import ZeroShot, zero_shot, zero_shot_classifier

__all__ = ["ZeroShot", "zero_shot", "zero_shot_classifier"]
