"""Controls of region methods: another method's regions, smoothed; and its regions for another concept."""

from collections.abc import Sequence

import torch

from cefam.attribution.smoothing import GRID, guided, sharpened
from cefam.attribution.types import Activated
from cefam.images.views import resize_regions
from cefam.methods.base import MethodContext, MethodFactory, RegionMethod
from cefam.pairs import Candidates, ConceptPairs


class GuidedRegions(RegionMethod):
    """The first candidate of another method, smoothed and sharpened: a control for the effect of smoothing.

    Args:
        context: context of the other method.
        method: the other method.
    """

    def __init__(self, context: MethodContext, method: MethodFactory) -> None:
        super().__init__(context)
        self.method = method(context)

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """One candidate; see :class:`cefam.methods.RegionMethod`."""
        pairs = pairs.to(activated.images.device)
        found = self.method.regions(activated, pairs, GRID, 1)
        maps = sharpened(resize_regions(guided(activated, found.maps[:, 0], pairs.image), size))
        return Candidates(maps.unsqueeze(1), found.score, found.stage, found.valid)


class AnotherConceptRegions(RegionMethod):
    """A method's regions for ANOTHER concept of the same category; a control for accuracy due to figure-ground separation.

    The choice depends only on the photograph's pixels and the concept. If the category has no other concept, it is made among
    all others.

    Args:
        context: context of the other method.
        method: the other method.
    """

    def __init__(self, context: MethodContext, method: MethodFactory) -> None:
        super().__init__(context)
        self.method = method(context)
        categories = [concept.category for concept in context.concepts.concepts]
        self.others = [_others(categories, index) for index in range(len(categories))]

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """See :class:`cefam.methods.RegionMethod`."""
        images = activated.images
        pixels = (images * 255).round() if images.is_floating_point() else images
        drawn = pixels.long().sum(dim=(1, 2, 3)).tolist()
        chosen = []
        for image, concept in zip(pairs.image.tolist(), pairs.concept.tolist(), strict=True):
            others = self.others[concept]
            chosen.append(others[drawn[image] % len(others)])
        another = torch.tensor(chosen).to(pairs.image)
        return self.method.regions(activated, ConceptPairs(pairs.image, another, pairs.keys()), size, num_candidates)


def _others(categories: Sequence[str], index: int) -> list[int]:
    """Other concepts of the same category, in cyclic order from ``index``; all other concepts if there are none."""
    circle = [*range(index + 1, len(categories)), *range(index)]
    return [other for other in circle if categories[other] == categories[index]] or circle or [index]
