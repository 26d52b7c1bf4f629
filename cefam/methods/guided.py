"""Control for smoothing: another method's regions, smoothed."""

from collections.abc import Sequence

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
