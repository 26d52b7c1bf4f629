"""Network Dissection (Bau et al., CVPR 2017): label neurons by the IoU of their thresholded maps with masks. Supervised."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cefam.concepts.categories import CATEGORIES
from cefam.errors import CefamError
from cefam.images.views import resize_regions
from cefam.methods.associations import Associations, AssociationsAbout
from cefam.methods.base import MethodContext
from cefam.methods.masked import Masked, MaskedShards, thresholds
from cefam.methods.neurons import NeuronRegions

SHARE, DETECTOR = 0.005, 0.04  # P(a > T); minimum IoU of a detector


class Overlaps:
    """Pixel counts over the photographs, for the neurons of one stage: |M and L|, |M| per category, |L|.

    |M| is counted only on photographs that have a label of the category.
    """

    def __init__(self, threshold: Tensor, categories: Tensor) -> None:
        self.threshold, self.categories = threshold, categories
        count = int(categories.max()) + 1
        self.both = torch.zeros(len(threshold), len(categories), dtype=torch.double)
        self.active = torch.zeros(len(threshold), count, dtype=torch.double)
        self.label = torch.zeros(len(categories), dtype=torch.double)

    def add(self, batch: Masked, stage: int) -> None:
        """Add the pixel counts of a batch."""
        if not len(batch.mask):
            return
        size = batch.mask.shape[-2:]
        self.label.index_add_(0, batch.concept, batch.mask.flatten(1).sum(dim=1).double())
        for image in batch.image.unique_consecutive().tolist():  # type: ignore[no-untyped-call]
            rows = batch.image == image
            enlarged = resize_regions(batch.maps[stage][image], size)
            above = (enlarged > self.threshold.view(-1, 1, 1)).flatten(1).float()
            both = above @ batch.mask[rows].flatten(1).float().T  # integers below 2^24, exact in float32
            self.both.index_add_(1, batch.concept[rows], both.double())
            present = self.categories[batch.concept[rows]].unique()  # type: ignore[no-untyped-call]
            self.active[:, present] += above.sum(dim=1, keepdim=True).double()

    def iou(self) -> Tensor:
        """IoU of every neuron with every concept (C, T); 0 for concepts without a mask."""
        union = self.active[:, self.categories] + self.label - self.both
        return self.both / union.clamp_min(1)


@torch.no_grad()
def dissect_by_masks(
    context: MethodContext, shards: str, every: bool = True, share: float = SHARE, detector: float = DETECTOR
) -> Associations:
    """Associate neurons with concepts by their IoU over all photographs of ``shards``."""
    if not 0 < share < 1:
        raise CefamError(f"share must lie between 0 and 1, got {share}.")
    photographs = MaskedShards(context.classifier, context.concepts, shards, title="network dissection")
    names = [*CATEGORIES, *sorted({c.category for c in context.concepts.concepts} - {*CATEGORIES})]
    categories = torch.tensor([names.index(concept.category) for concept in context.concepts.concepts])
    sums = [Overlaps(threshold, categories) for threshold in thresholds(photographs, share)]
    for batch in photographs:
        for stage, overlaps in enumerate(sums):
            overlaps.add(batch, stage)
    found = []
    for stage, overlaps in enumerate(sums):
        iou = overlaps.iou()
        if every:
            channel, concept = (iou > 0).nonzero(as_tuple=True)
        else:
            best, label = iou.max(dim=1)
            channel = (best > detector).nonzero().squeeze(1)
            concept = label[channel]
        found.append((stage, channel, concept, iou[channel, concept]))
    options = {"shards": photographs.digests, "every": every, "share": share, "detector": detector}
    return Associations.of_stages(AssociationsAbout.of(context, "network_dissection", options), found)


class NetworkDissectionRegions(NeuronRegions):
    """Regions of the neurons that overlap a concept's masks most; a reference method supervised by masks.

    Args:
        context: provides the classifier.
        shards: training photographs with masks, disjoint from the evaluation photographs.
        every: rank all neurons for each concept; false: each detector (IoU above 0.04) gets only one concept.
        stages: names of the stages whose neurons are used; ``None``: all.
        associations: folder of existing associations, instead of ``shards``.
    """

    def __init__(
        self,
        context: MethodContext,
        shards: str | None = None,
        every: bool = True,
        stages: Sequence[str] | None = None,
        associations: str | None = None,
    ) -> None:
        if (shards is None) == (associations is None):
            raise CefamError("Network Dissection is fitted to masks: set `shards` (or `associations`, if it has been).")
        found = (
            dissect_by_masks(context, str(shards), every) if associations is None else Associations.read(associations)
        )
        super().__init__(context, found, "raw", stages)
