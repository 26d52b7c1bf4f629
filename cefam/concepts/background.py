"""Background concepts, with which the scores of a few concepts compete."""

from dataclasses import replace

from cefam.concepts.categories import BACKGROUND
from cefam.concepts.sets import ConceptSet

ENOUGH = 100  # concepts need no others
FIRST = 1_000_001  # number of the first background concept, above those of masks


def with_background(concepts: ConceptSet, name: str = "broden") -> ConceptSet:
    """A set and, if it has fewer than 100 concepts, those of another set as background.

    A softmax over a few words says little: every photograph has one of them. Scores compete with the background, which is not
    shown. The result has no embeddings yet.

    >>> found = with_background(ConceptSet.from_words(["striped fur", "wing"]))
    >>> len(found), found.shown
    (1198, [0, 1])
    """
    if len(concepts.shown) >= ENOUGH or len(concepts.shown) < len(concepts):
        return concepts
    known = {word.lower() for word in concepts.words}
    others = [concept for concept in ConceptSet.load(name).concepts if concept.word.lower() not in known]
    numbered = enumerate(others, start=FIRST)
    added = [replace(other, number=number, categories=(BACKGROUND,)) for number, other in numbered]
    return ConceptSet((*concepts.concepts, *added))
