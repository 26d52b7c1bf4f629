"""Grad-CAM (Selvaraju et al., ICCV 2017; eq. 2 and 3 of the paper) of the class score or the concept score."""

import torch
from torch import Tensor

from cefam.attribution.batching import PairTable
from cefam.attribution.direct import class_score_gradient
from cefam.attribution.encoding import single_precision
from cefam.attribution.scores import pool, similarity_gradient
from cefam.attribution.types import Activated
from cefam.attribution.weights import fuse
from cefam.methods.base import MethodContext
from cefam.methods.ce_fam import encoding_of
from cefam.methods.saliency import Of, ScoreMapRegions


class GradCAMRegions(ScoreMapRegions):
    """Grad-CAM at the last stage: ReLU(sum_k alpha_k A_k).

    The class map is the same for all concepts of an image: a baseline without concept information. The concept map is CE-FAM's
    region at the last stage only, with the gradient taken at the map itself.

    Args:
        context: provides the classifier, and the trained translator for concept maps.
        of: "class": explain the class's logit; "concept": explain the concept's similarity S.
    """

    def __init__(self, context: MethodContext, of: Of = "class") -> None:
        super().__init__(context, of)
        self.stage = len(context.classifier.stages) - 1

    @torch.no_grad()
    def maps(self, activated: Activated, image: Tensor, target: Tensor) -> Tensor:
        """See :meth:`ScoreMapRegions.maps`."""
        explainer, device = self.explainer, activated.images.device
        activation = activated.output.activations[-1].float()
        with single_precision(device):
            if self.of == "class":
                gradient = class_score_gradient(explainer.classifier, activated.output, activated.images, target)
                weights = pool(gradient)
            else:
                encoding, text = encoding_of(explainer, activated), explainer.networks.text(device)[target]
                slope = similarity_gradient(encoding.embedding[image], text, explainer.concepts.logit_scale)
                weights = encoding.pull_back(slope, image)[-1] / activation[0, 0].numel()
            return fuse(activation, weights, PairTable(image, len(activation))).relu()
