"""Evidence that a concept is in an image (beyond the paper, docs/research/which.md).

The translator's S uses each channel's mean over the image, which hides small objects. Evidence uses single cells: the
regression on the probe predicts the VLM's similarity at every cell of the view and its windows. The evidence is the mean of the
highest tenth of the cells minus the value expected for normally distributed cells with the same deviation.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.directions import mean_activations
from cefam.attribution.encoding import Networks
from cefam.probe.stored import Probe

STRONGEST = 0.1  # share of cells
USUAL = 1.755  # mean of the strongest tenth of normally distributed cells, in deviations
SIDE = 24  # cells along the side of a view or window


class Evidence:
    """The evidence for every concept in images."""

    def __init__(self, networks: Networks, probe: Probe, slopes: Sequence[Tensor]) -> None:
        self.scale, self.slopes = networks.concepts.logit_scale, list(slopes)
        mean = [value.to(networks.device) for value in mean_activations(probe)]
        with torch.no_grad():
            self.level = networks.similarity(networks.translator([value.unsqueeze(0) for value in mean]))[0]
            self.level -= self.scale * sum((d @ m for d, m in zip(self.slopes, mean, strict=True)), torch.zeros(()))

    @torch.no_grad()
    def __call__(self, views: Sequence[Sequence[Sequence[Tensor]]]) -> Tensor:
        """Evidence on the scale of S (B, T).

        Args:
            views: per scale, per window, the maps of the stages (B, C_l, H_l, W_l).
        """
        found = [self._of_image(views, image) for image in range(len(views[0][0][0]))]
        return torch.stack(found) if found else self.level.new_empty(0, len(self.level))

    def _of_image(self, views: Sequence[Sequence[Sequence[Tensor]]], image: int) -> Tensor:
        """Evidence of one image (T,); a single image bounds the memory for many concepts."""
        device = views[0][0][0].device
        self.slopes, self.level = [slope.to(device) for slope in self.slopes], self.level.to(device)
        found = torch.zeros_like(self.level)
        for windows in views:
            cells = torch.cat([self._cells([a[image] for a in activations]) for activations in windows], dim=1)
            strongest = cells.topk(max(1, int(STRONGEST * cells.shape[1])), dim=1).values.mean(dim=1)
            found += (strongest - USUAL * cells.std(dim=1)) / len(views)
        return self.level + self.scale * found

    def _cells(self, activations: Sequence[Tensor]) -> Tensor:
        """Similarity at every cell (T, SIDE * SIDE), without its level."""
        total = torch.zeros(len(self.level), SIDE, SIDE, device=activations[0].device)
        for activation, slope in zip(activations, self.slopes, strict=True):
            channels, height, width = activation.shape
            seen = (slope @ activation.float().reshape(channels, height * width)).view(1, -1, height, width)
            total += F.interpolate(seen, (SIDE, SIDE), mode="bilinear", align_corners=False)[0]
        return total.flatten(1)
