"""Grad-CAM (Selvaraju et al., ICCV 2017; eq. 2 and 3 of the paper) of the class score or the concept score."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cefam.attribution.batching import PairTable
from cefam.attribution.direct import class_score_gradient
from cefam.attribution.encoding import single_precision
from cefam.attribution.scores import pool, similarity_gradient
from cefam.attribution.types import Activated
from cefam.attribution.weights import fuse
from cefam.errors import CefamError
from cefam.images.views import resize_regions
from cefam.methods.base import MethodContext, RegionMethod
from cefam.methods.ce_fam import encoding_of
from cefam.pairs import Candidates, ConceptPairs


class GradCAMRegions(RegionMethod):
    """Grad-CAM at the last stage: one candidate.

    The class map is the same for all concepts of an image: a baseline without concept information. The concept map is CE-FAM's
    region at the last stage only, with the gradient taken at the map itself.

    Args:
        context: provides the classifier, and the trained translator for concept maps.
        of: "class": explain the class's logit; "concept": explain the concept's similarity S.
    """

    def __init__(self, context: MethodContext, of: Literal["class", "concept"] = "class") -> None:
        super().__init__(context)
        if of not in ("class", "concept"):
            raise CefamError(f"of must be 'class' or 'concept', got {of!r}.")
        self.of, self.classifier, self.explainer = of, context.classifier, context.trained.explainer()

    def regions(
        self,
        activated: Activated,
        pairs: ConceptPairs,
        size: Sequence[int],
        num_candidates: int,
        target: Tensor | None = None,
    ) -> Candidates:
        """One candidate per pair; see :class:`cefam.methods.RegionMethod`.

        Args:
            activated: images and the classifier's output for them.
            pairs: P pairs.
            size: (H, W) of the regions.
            num_candidates: ignored; there is one candidate.
            target: the class of each image (B,); ``None``: the most probable one. Ignored for concept maps.
        """
        if self.of == "class":
            if target is None:
                maps = activated.once((self.of, self.classifier), lambda: self.class_maps(activated))
            else:
                maps = self.class_maps(activated, target)
            found = maps[pairs.image]
        else:
            found = self._concept_maps(activated, pairs)
        ones = found.new_ones(len(found), 1)
        stage = ones.long() * (len(self.classifier.stages) - 1)
        return Candidates(resize_regions(found, size).unsqueeze(1), ones, stage, ones.bool())

    @torch.inference_mode(False)
    def class_maps(self, activated: Activated, target: Tensor | None = None) -> Tensor:
        """ReLU(sum_k alpha_k A_k) for a class of each image, at the last stage's resolution: (B, H_L, W_L)."""
        activation = activated.output.activations[-1].float()
        gradient = class_score_gradient(self.classifier, activated.output, activated.images, target)
        every = torch.arange(len(activation), device=activation.device)
        with single_precision(activation.device):
            return fuse(activation, pool(gradient), PairTable(every, len(every))).relu()

    def _concept_maps(self, activated: Activated, pairs: ConceptPairs) -> Tensor:
        explainer, encoding = self.explainer, encoding_of(self.explainer, activated)
        pairs = pairs.to(encoding.device)
        with single_precision(encoding.device):
            text = explainer.networks.text(encoding.device)[pairs.concept]
            gradient = similarity_gradient(encoding.embedding[pairs.image], text, explainer.concepts.logit_scale)
            activation = encoding.output.activations[-1]
            weights = encoding.pull_back(gradient, pairs.image)[-1] / activation[0, 0].numel()
            return fuse(activation, weights, PairTable(pairs.image, len(encoding.images))).relu()
