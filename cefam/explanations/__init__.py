"""Explanations as values, and how they are shown and stored: text, pages, pictures, files. Data in, never a network.

``photograph`` (a picture and the view of it), ``types`` (what an explanation holds), ``maps`` (regions as small images), ``text``
(the terminal), ``page`` (one self-contained HTML file), ``stored`` (JSON, CSV, arrays, pictures).
"""

from cefam.explanations.photograph import Photograph
from cefam.explanations.types import ConceptExplanation, Explanation

__all__ = ["ConceptExplanation", "Explanation", "Photograph"]
