"""cefam: which concepts an image classifier sees, where, and how much each one moves its prediction.

An independent implementation of CE-FAM (Kuroki and Yamasaki, ICCV 2025), not by the paper's authors.
The public names are loaded on first use: ``import cefam`` loads neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cefam.classifier import FrozenClassifier
    from cefam.concepts import ConceptSet
    from cefam.explain import Explainer
    from cefam.explanation import ConceptPairs, Explanation
    from cefam.module import CEFAM
    from cefam.translator import Translator
    from cefam.vlm import VisionLanguageModel, load_vlm
    from cefam.zoo import load_classifier

__version__ = "0.1.0"

_HOME = {
    "CEFAM": "module",
    "ConceptPairs": "explanation",
    "ConceptSet": "concepts",
    "Explainer": "explain",
    "Explanation": "explanation",
    "FrozenClassifier": "classifier",
    "Translator": "translator",
    "VisionLanguageModel": "vlm",
    "load_classifier": "zoo",
    "load_vlm": "vlm",
}

__all__ = [
    "CEFAM",
    "ConceptPairs",
    "ConceptSet",
    "Explainer",
    "Explanation",
    "FrozenClassifier",
    "Translator",
    "VisionLanguageModel",
    "load_classifier",
    "load_vlm",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"cefam.{_HOME[name]}"), name)
    raise AttributeError(f"module 'cefam' has no attribute {name!r}; its public names are {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
