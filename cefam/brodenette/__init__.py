"""Brodenette: a small synthetic version of Broden with complete ground truth.

``vocabulary`` (objects, backgrounds, colors, materials), ``rules`` (classes), ``scenes`` (scene descriptions), ``drawing``
(pixels and masks) and ``captions`` do not import torch. ``towers`` holds the networks trained on this data; their weights are
shipped with the package.
"""

from cefam.brodenette.captions import caption
from cefam.brodenette.drawing import Drawing, draw
from cefam.brodenette.rules import CLASSES, RULES, Rule
from cefam.brodenette.scenes import SPLITS, Element, Look, Scene, class_of, describe
from cefam.brodenette.vocabulary import COMPOSITIONS, LABELS, Label

__all__ = [
    "CLASSES",
    "COMPOSITIONS",
    "LABELS",
    "RULES",
    "SPLITS",
    "Drawing",
    "Element",
    "Label",
    "Look",
    "Rule",
    "Scene",
    "caption",
    "class_of",
    "describe",
    "draw",
]
