"""Explanation data and its output formats: text, pages, figures, files. No neural network is run here.

``photograph`` (a picture and its view), ``types`` (data classes; JSON, CSV, arrays), ``maps`` (regions as small images), ``text``
(terminal output), ``page`` (one self-contained HTML file), ``figure`` (for print), ``explanation`` (all formats), ``comparison``
(two classes), ``overview`` (many images).
"""

from cefam.explanations.explanation import Explanation
from cefam.explanations.photograph import Photograph
from cefam.explanations.types import ConceptExplanation

__all__ = ["ConceptExplanation", "Explanation", "Photograph"]
