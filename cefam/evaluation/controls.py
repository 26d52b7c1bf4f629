"""Controls: the NRA of a region minus that of the same method's regions for OTHER concepts, against the same mask.

A map that only separates figure from ground has a high NRA, but a difference of 0.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cefam.attribution.types import Activated
from cefam.concepts.sets import ConceptSet
from cefam.methods.base import RegionMethod
from cefam.pairs import Candidates, ConceptPairs

OTHERS = 3  # other concepts of the category whose NRA is averaged in "specific"


def others(concepts: ConceptSet, pairs: ConceptPairs) -> Tensor:
    """Other concepts to measure every pair with (P, ``OTHERS`` + 1), -1 where there is none.

    The last column is another concept of the category with a mask in the same photograph; the others are any of the category
    (of all, if it has no other). The choice depends only on the pair's key.
    """
    categories = [concept.category for concept in concepts.concepts]
    among = {
        name: [n for n, category in enumerate(categories) if category == name] for name in dict.fromkeys(categories)
    }
    listed = list(zip(pairs.image.tolist(), pairs.concept.tolist(), pairs.keys().tolist(), strict=True))
    here: dict[tuple[int, str], set[int]] = {}
    for image, concept, _ in listed:
        here.setdefault((image, categories[concept]), set()).add(concept)
    found = []
    for image, concept, key in listed:
        category = categories[concept]
        same = [n for n in among[category] if n != concept] or [n for n in range(len(categories)) if n != concept]
        present = sorted(here[image, category] - {concept})
        draws = [same[(key + draw * -(-len(same) // OTHERS)) % len(same)] if same else -1 for draw in range(OTHERS)]
        found.append([*draws, present[key % len(present)] if present else -1])
    return torch.tensor(found, dtype=torch.long, device=pairs.image.device).view(len(listed), OTHERS + 1)


def control_values(
    method: RegionMethod,
    activated: Activated,
    pairs: ConceptPairs,
    others: Tensor,
    size: Sequence[int],
    nra: Callable[[Candidates], Tensor],
) -> dict[str, Tensor]:
    """NRA of the method's regions for other concepts, by control, each (P,), NaN where there is none.

    ``others`` is the result of :func:`others` for the P pairs; ``nra`` gives the NRA (P, Q) of candidates against their masks.
    """
    columns = []
    for other in others.unbind(dim=1):
        found = method.regions(activated, ConceptPairs(pairs.image, other.clamp_min(0), pairs.keys()), size, 1)
        undefined = (other < 0) | ~found.valid[:, 0]
        columns.append(nra(found)[:, 0].masked_fill(undefined, torch.nan))
    every = torch.stack(columns, dim=1)
    return {"specific": every[:, :OTHERS].nanmean(dim=1), "present": every[:, OTHERS]}
