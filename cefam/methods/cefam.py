"""CE-FAM as a region method: one candidate per stage, ordered by association."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cefam.classifier import ClassifierOutput, FrozenClassifier
from cefam.concepts import ConceptSet
from cefam.explain import Derivative, Explainer
from cefam.explanation import ConceptPairs
from cefam.methods.base import Candidates
from cefam.translator import Translator
from cefam.views import resize_regions


class CEFAMRegions:
    """Regions of CE-FAM (sections 3.3 and 4.4).

    Args:
        classifier: the frozen classifier.
        translator: trained for it.
        concepts: with embeddings.
        derivative: "total" or "branch".
        num_channels: K of the association.
        options: further options of :class:`cefam.explain.Explainer` (``preset``, ``memory_limit``, ``channel_share``).
    """

    def __init__(
        self,
        classifier: FrozenClassifier,
        translator: Translator,
        concepts: ConceptSet,
        derivative: Derivative = "total",
        num_channels: int = 20,
        **options: Any,
    ) -> None:
        if num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {num_channels}.")
        self.explainer = Explainer(classifier, translator, concepts, **options)
        self.derivative: Derivative = derivative
        self.num_channels = num_channels

    def regions(
        self,
        images: Tensor,
        activations: ClassifierOutput | Sequence[Tensor],
        pairs: ConceptPairs,
        size: Sequence[int],
        num_candidates: int,
    ) -> Candidates:
        """One candidate per stage, by association, descending; see :class:`cefam.methods.RegionMethod`."""
        output = activations if isinstance(activations, ClassifierOutput) else None
        encoding = self.explainer.encode(images, output)
        regions = self.explainer.regions(encoding, pairs, self.derivative)
        if len(regions.maps) == 1:  # nothing to choose
            association = regions.maps[0].new_ones(len(pairs), 1, dtype=torch.double)
        else:
            association = self.explainer.association(encoding, pairs, self.num_channels, regions)
        score, stage = association.sort(dim=1, descending=True, stable=True)
        score, stage = score[:, :num_candidates], stage[:, :num_candidates]
        maps = regions.maps[0].new_empty(*stage.shape, *size)
        for index, region in enumerate(regions.maps):
            row, place = (stage == index).nonzero(as_tuple=True)
            maps[row, place] = resize_regions(region[row], size)
        return Candidates(maps, score, stage, torch.ones_like(stage, dtype=torch.bool))
