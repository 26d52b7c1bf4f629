"""Brodenette, the embedded miniature world: a drawn Broden in which everything is known.

``vocabulary`` (what there is), ``rules`` (the classes), ``scenes`` (a scene as a value), ``drawing`` (pixels and masks),
``captions``, ``broden`` (Broden's on-disk format); none of these knows torch. ``towers`` holds the two networks that were
trained on this world and come with the package.
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
