"""CE-FAM as a region method: one candidate per stage, ordered by association."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from cefam.attribution.encoding import Encoding
from cefam.attribution.explainer import Explainer
from cefam.attribution.types import Activated
from cefam.images.views import resize_regions
from cefam.methods.base import MethodContext, RegionMethod, chosen_stages
from cefam.pairs import Candidates, ConceptPairs
from cefam.settings import SettingsChanges


def encoding_of(explainer: Explainer, activated: Activated) -> Encoding:
    """The encoding of a batch, computed once for all methods with the same translator and concepts."""
    key = ("encoding", explainer.translator, explainer.concepts)
    return activated.once(key, lambda: explainer.encode(activated.images, activated.output))


class CEFAMRegions(RegionMethod):
    """Regions of CE-FAM (sections 3.3 and 4.4).

    Args:
        context: must have a trained translator.
        stages: names of the candidate stages; ``None``: all.
        changes: settings to override, by name (:class:`cefam.settings.SettingsChanges`).
    """

    def __init__(
        self, context: MethodContext, stages: Sequence[str] | None = None, **changes: Unpack[SettingsChanges]
    ) -> None:
        super().__init__(context)
        names = context.classifier.stage_names
        self.stages = chosen_stages(names if stages is None else stages, names)
        self.explainer = context.trained.explainer(settings=context.settings.changed(**changes))

    def encoding(self, activated: Activated) -> Encoding:
        """The encoding of a batch, shared by methods with the same networks."""
        return encoding_of(self.explainer, activated)

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """One candidate per stage, in descending order of association; see :class:`cefam.methods.RegionMethod`."""
        explainer, encoding = self.explainer, self.encoding(activated)
        regions = explainer.regions(encoding, pairs)
        among = torch.tensor(self.stages).to(encoding.device)
        if len(self.stages) == 1:  # no choice of a stage
            association = regions.maps[0].new_ones(len(pairs), 1, dtype=torch.double)
        else:
            association = explainer.association(encoding, pairs, regions=regions).index_select(1, among)
        score, order = association.sort(dim=1, descending=True, stable=True)
        score, order = score[:, :num_candidates], order[:, :num_candidates]
        stage = among[order]
        maps = regions.maps[0].new_empty(*stage.shape, *size)
        for index, region in enumerate(regions.maps):
            row, place = (stage == index).nonzero(as_tuple=True)
            maps[row, place] = resize_regions(region[row], size)
        return Candidates(maps, score, stage, torch.ones_like(stage, dtype=torch.bool))

    def presence(self, activated: Activated) -> Tensor:
        """The similarity S (B, T)."""
        return self.encoding(activated).similarity
