"""The fused maps of all stages as a region method, and the control for their smoothing."""

from collections.abc import Sequence

from torch import Tensor

from cefam.attribution.fused import FusedMaps
from cefam.attribution.smoothing import GRID, guided, sharpened
from cefam.attribution.types import Activated
from cefam.images.views import resize_regions
from cefam.methods.base import MethodContext, MethodFactory, RegionMethod
from cefam.methods.ce_fam import encoding_of
from cefam.methods.neurons import classifier_probe
from cefam.pairs import Candidates, ConceptPairs
from cefam.towers.identity import VLM_KEYS, check_identity


class BeyondRegions(RegionMethod):
    """Sum of the maps of all stages: :class:`cefam.attribution.fused.FusedMaps`, which explains the arguments.

    Args:
        context: must have a trained translator.
        regression: take concept directions from the context's probe, too; ``None``: if there is one.
        scales: factors by which the view is enlarged.
        guide: smooth the map within similar-looking areas of the photograph.
        compete: subtract what the maps of a category's concepts share.
        sharpen: emphasize high values of the map; ranks do not change.

    Raises:
        CefamError: for invalid ``scales``, and for a regression without a probe or with one of other towers.
    """

    def __init__(
        self,
        context: MethodContext,
        regression: bool | None = None,
        scales: Sequence[float] | None = None,
        guide: bool = True,
        compete: bool = True,
        sharpen: bool = True,
    ) -> None:
        super().__init__(context)
        self.sharpen, self.explainer, probe = sharpen, context.trained.explainer(), None
        if regression or context.probe is not None:
            probe, stored = classifier_probe(context, "BeyondRegions"), context.trained.vlm_identity
            if stored is not None and regression is not False:
                check_identity("vision-language model", stored, probe.manifest.vlm, VLM_KEYS)
        self.maps = FusedMaps(self.explainer.networks, probe, regression, scales, guide, compete)

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """One candidate, the summed map, scored by the evidence."""
        pairs = pairs.to(activated.images.device)
        total = resize_regions(self.maps.total(activated, pairs), size)
        total = sharpened(total) if self.sharpen else total.relu()
        score = self.presence(activated)[pairs.image, pairs.concept]
        return Candidates.ranked(total.unsqueeze(1), score=score.unsqueeze(1))

    def presence(self, activated: Activated) -> Tensor:
        """The evidence (B, T), see :meth:`cefam.attribution.fused.FusedMaps.evidence`."""
        similarity = encoding_of(self.explainer, activated).similarity
        return activated.once(("evidence", self), lambda: self.maps.evidence(activated, similarity))


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
