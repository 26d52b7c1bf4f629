"""Explanations as values, and how they are shown and stored: text, pages, pictures, files. Data in, never a network.

``photograph`` (a picture and the view of it), ``types`` (what is found), ``maps`` (regions as small images), ``text``
(the terminal), ``page`` (one self-contained HTML file), ``figure`` (for print), ``stored`` (JSON, CSV, arrays), ``explanation`` (all of
these), ``comparison`` (two classes).
"""

from cefam.explanations.explanation import Explanation
from cefam.explanations.photograph import Photograph
from cefam.explanations.types import ConceptExplanation

__all__ = ["ConceptExplanation", "Explanation", "Photograph"]
