"""cefam: which concepts an image classifier sees, where, and how much each one moves its prediction.

An independent implementation of CE-FAM (Kuroki and Yamasaki, ICCV 2025), not by the paper's authors.
The public names are loaded on first use: ``import cefam`` loads neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cefam.attribution.explainer import Explainer as Explainer
    from cefam.concepts.sets import ConceptSet as ConceptSet
    from cefam.explanations import Explanation as Explanation
    from cefam.explanations import Photograph as Photograph
    from cefam.pairs import ConceptPairs as ConceptPairs
    from cefam.settings import MethodSettings as MethodSettings
    from cefam.studies import study as study
    from cefam.towers.classifier import FrozenClassifier as FrozenClassifier
    from cefam.towers.vlm import VisionLanguageModel as VisionLanguageModel
    from cefam.towers.vlm import load_vlm as load_vlm
    from cefam.towers.zoo import load_classifier as load_classifier
    from cefam.trained import Trained as Trained
    from cefam.training.module import CEFAM as CEFAM
    from cefam.translator import Translator as Translator

__version__ = "0.1.0"

_HOME = {
    "CEFAM": "training.module",
    "ConceptPairs": "pairs",
    "ConceptSet": "concepts.sets",
    "Explainer": "attribution.explainer",
    "Explanation": "explanations",
    "FrozenClassifier": "towers.classifier",
    "MethodSettings": "settings",
    "Photograph": "explanations",
    "Trained": "trained",
    "Translator": "translator",
    "VisionLanguageModel": "towers.vlm",
    "load_classifier": "towers.zoo",
    "load_vlm": "towers.vlm",
    "study": "studies",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"cefam.{_HOME[name]}"), name)
    raise AttributeError(f"module 'cefam' has no attribute {name!r}; its public names are {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
