"""Concept activation vectors (TCAV, Kim et al., ICML 2018) from text: gradients of the translator replace example images.

A concept's vector at a stage is the normalized gradient of its similarity S at the mean activations of a probe set; it is the
same for all images. The region is the projection of the activations onto it; the score for a class is TCAV's sensitivity.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.directions import concept_directions, mean_activations
from cefam.attribution.types import Activated
from cefam.images.views import resize_regions
from cefam.methods.base import MethodContext, RegionMethod, chosen_stages
from cefam.methods.neurons import classifier_probe
from cefam.methods.www import class_slopes
from cefam.pairs import Candidates, ConceptPairs


def concept_vectors(context: MethodContext) -> list[Tensor]:
    """Unit vectors of all concepts at every stage: (T, C_l)."""
    networks = context.trained.explainer().networks
    found = concept_directions(networks, mean_activations(classifier_probe(context, "TCAV")))
    return [F.normalize(direction, dim=1) for direction in found]


class TCAVRegions(RegionMethod):
    """Positive part of the activations' projection onto the concept's vector; one candidate per stage.

    Args:
        context: must have a trained translator and a probe.
        stages: names of the candidate stages; ``None``: the last stage.
    """

    def __init__(self, context: MethodContext, stages: Sequence[str] | None = None) -> None:
        super().__init__(context)
        names = context.classifier.stage_names
        # From deep to shallow: TCAV does not score stages, and the last stage is the usual choice.
        self.stages = chosen_stages(names[-1:] if stages is None else stages, names)[::-1]
        self.classifier, self.vectors = context.classifier, concept_vectors(context)

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """See :class:`cefam.methods.RegionMethod`."""
        device, chosen = activated.images.device, self.stages[:num_candidates]
        pairs = pairs.to(device)
        maps = [self._projected(activated, stage)[pairs.image, pairs.concept].relu() for stage in chosen]
        resized = torch.stack([resize_regions(region, size) for region in maps], dim=1)
        return Candidates.ranked(resized, torch.tensor(chosen).to(device))

    def _projected(self, activated: Activated, stage: int) -> Tensor:
        """Projections of the activations onto every concept's vector: (B, T, H, W)."""

        def project() -> Tensor:
            vectors = self.vectors[stage].to(activated.images.device)
            return torch.einsum("tc,bchw->bthw", vectors, activated.output.activations[stage].float())

        return activated.once((type(self), self, stage), project)

    def sensitivity(self, activated: Activated, target: Tensor | None = None) -> Tensor:
        """Derivative of a class's output along every concept's vector at the last stage: (B, T).

        Args:
            activated: images and the classifier's output for them.
            target: the class of each image (B,); ``None``: the most probable one.
        """
        slope = class_slopes(self.classifier, activated, target)
        return slope @ self.vectors[-1].to(slope.device).T
