"""One map per concept, summed over all stages (beyond the paper, see docs/research/beyond.md).

To first order, the score is a sum over stages and positions: S ~ const + sum_l mean_x (v^l . A^l(x)), where v^l is the
concept's direction in the space of the stage's pooled activations. The map is therefore the sum of all stages' maps.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.batching import PairTable
from cefam.attribution.competition import rivals_of, shared, standardized, trust
from cefam.attribution.directions import concept_directions, mean_activations, probe_directions, regressed_directions
from cefam.attribution.encoding import Networks
from cefam.attribution.evidence import Evidence
from cefam.attribution.smoothing import GRID, guided, spread_apart
from cefam.attribution.types import Activated
from cefam.attribution.weights import fuse
from cefam.errors import CefamError
from cefam.images.views import resize_regions
from cefam.io.identity import weights_fingerprint
from cefam.pairs import ConceptPairs
from cefam.probe.stored import Probe
from cefam.towers.wrapping import check_default_precision

ENLARGED = (1.7, 4.0)  # minimum and maximum enlargement of windows
SEAM = 0.05  # weight of a window's map at its border; 1 at its center
AGAINST = 0.5  # weight of negative evidence; 1 for positive evidence


class FusedMaps:
    """Sum of the maps of all stages, over the view and windows of it, smoothed by :func:`cefam.attribution.smoothing.guided`.

    Needs no masks, no labels, no choice of a stage, and no backward pass per image.

    Args:
        networks: classifier, translator and concepts.
        probe: of the same classifier and vision-language model, or ``None``.
        regression: take concept directions from a regression on the probe and the translator together (see
            :func:`cefam.attribution.directions.probe_directions`); otherwise from the translator's gradient at the probe's
            mean activations, or at zero without a probe. ``None``: true if there is a probe.
        scales: factors by which the view is enlarged and then classified in windows of its original size; 1: the whole view.
            ``None``: see :func:`usual_scales`.
        guide: smooth the map within similar-looking areas of the photograph.
        compete: subtract what the maps of a category's concepts share (:mod:`cefam.attribution.competition`); needs two scales.
    """

    def __init__(
        self,
        networks: Networks,
        probe: Probe | None = None,
        regression: bool | None = None,
        scales: Sequence[float] | None = None,
        guide: bool = True,
        compete: bool = True,
    ) -> None:
        if scales is not None and (not scales or min(scales) < 1):
            raise CefamError(f"`scales` says how much the view is enlarged: numbers from 1 on, got {list(scales)}.")
        check_default_precision()
        self.networks, self.scales, self.guide, self.compete = networks, scales, guide, compete
        self.group, self.members = rivals_of([concept.category for concept in networks.concepts.concepts])
        self.made_for = weights_fingerprint(networks.translator)
        self.evidence_of: Evidence | None = None
        if probe is None:
            self.directions = concept_directions(networks, [torch.zeros(n) for n in networks.classifier.channels])
        elif regression is False:
            self.directions = concept_directions(networks, mean_activations(probe))
        else:
            regressed = regressed_directions(networks, probe)
            self.directions = probe_directions(networks, probe, regressed)
            self.evidence_of = Evidence(networks, probe, regressed)

    def __call__(self, activated: Activated, pairs: ConceptPairs) -> Tensor:
        """Maps of pairs for display (P, 48, 48).

        The mean over the view is subtracted, and negative values are set to 0: an unshifted map looks uniform, and a sharpened
        one shows only its peak.
        """
        total = self.total(activated, pairs)
        return (total - total.mean(dim=(1, 2), keepdim=True)).relu()

    def total(self, activated: Activated, pairs: ConceptPairs) -> Tensor:
        """Sum over stages and windows (P, 48, 48), against rivals if ``compete`` is set, smoothed if ``guide`` is set."""
        total = sum(self._views(activated, pairs), torch.zeros(()))
        if self.compete:
            total = self._against_rivals(activated, pairs, standardized(total))
        return guided(activated, total, pairs.image) if self.guide else total

    def evidence(self, activated: Activated, similarity: Tensor) -> Tensor:
        """Evidence for every concept (B, T): :class:`cefam.attribution.evidence.Evidence` with a probe, otherwise S."""
        if self.evidence_of is None:
            return similarity
        scales = self.scales or usual_scales(activated)
        windows = [activated.once(("windows", scale), partial(self.seen, activated, scale)) for scale in scales]
        return self.evidence_of([[activations for _, activations in each] for each in windows])

    def _views(self, activated: Activated, pairs: ConceptPairs) -> list[Tensor]:
        """Maps of pairs (P, 48, 48), one per scale, each with the weight of its scale."""
        device = activated.images.device
        used, place = torch.unique(pairs.image, return_inverse=True)  # a chunk of pairs has few images
        layout = PairTable(place, len(used))
        self.directions = [direction.to(device) for direction in self.directions]  # copied on the first call only
        weights = [direction[pairs.concept] for direction in self.directions]
        found = []
        for scale in self.scales or usual_scales(activated):
            seen, count = torch.zeros(len(pairs), *GRID, device=device), torch.zeros(GRID, device=device)
            for window, activations in activated.once(("windows", scale), partial(self.seen, activated, scale)):
                rows, columns = (_cells(n, side) for n, side in zip(GRID, window, strict=True))
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                weight = _tent(shape, device)
                seen[:, rows, columns] += weight * self._summed([a[used] for a in activations], weights, layout, shape)
                count[rows, columns] += weight
            found.append(resolution(activated, scale) * spread_apart(seen / count))
        return found

    def _against_rivals(self, activated: Activated, pairs: ConceptPairs, maps: Tensor) -> Tensor:
        """Standardized maps (P, 48, 48) minus the trusted share of what the concepts of each one's group share."""
        groups = self.group.to(pairs.concept.device)[pairs.concept]
        found = torch.empty_like(maps)
        for image, group in {*zip(pairs.image.tolist(), groups.tolist(), strict=True)}:
            common = activated.once(("rivals", self, image, group), partial(self._common, activated, image, group))
            rows = (pairs.image == image) & (groups == group)
            found[rows] = maps[rows] - common
        return found

    def _common(self, activated: Activated, image: int, group: int) -> Tensor:
        """What the maps of a group's concepts share in an image, as far as it is trusted (48, 48)."""
        concepts = self.members[group].to(activated.images.device)
        views = self._views(activated, ConceptPairs(torch.full_like(concepts, image), concepts))
        if len(views) < 2:  # nothing says how far differences can be trusted
            return torch.zeros(GRID, device=concepts.device)
        return trust(views[0], views[1]) * shared(standardized(sum(views, torch.zeros(()))))

    def _summed(
        self, activations: list[Tensor], weights: list[Tensor], layout: PairTable, grid: Sequence[int]
    ) -> Tensor:
        """Sum of the stages' maps (P, h, w), with negative values scaled by ``AGAINST``."""
        total = torch.zeros(len(layout.image), *grid, device=activations[0].device)
        for activation, weight in zip(activations, weights, strict=True):
            part = resize_regions(fuse(activation.float(), weight, layout), grid)
            total += F.leaky_relu(part, AGAINST)
        return total

    @torch.no_grad()
    def seen(self, activated: Activated, scale: float) -> list[tuple[list[tuple[float, float]], list[Tensor]]]:
        """Windows of the view, (rows, columns) in [0, 1], each with its maps, one (B, C_l, H_l, W_l) per stage."""
        if scale == 1:
            return [([(0.0, 1.0), (0.0, 1.0)], activated.output.activations)]
        images, found = activated.images, []
        pixels = images.float() / (1 if images.is_floating_point() else 255)
        height, width = images.shape[-2:]
        for rows in windows(scale):
            for columns in windows(scale):
                part = pixels[..., _cells(height, rows), _cells(width, columns)]
                enlarged = F.interpolate(part, (height, width), mode="bilinear", align_corners=False)
                found.append(([rows, columns], self.networks.classifier(enlarged).activations))
        return found


def usual_scales(activated: Activated) -> tuple[float, float]:
    """Scale 1, and the scale at which the finest stage matches the map's resolution, within ``ENLARGED``."""
    least, most = ENLARGED
    return 1.0, min(max(GRID[0] / _finest(activated), least), most)


def resolution(activated: Activated, scale: float) -> float:
    """Weight of a scale: proportional to the finest stage's resolution, 1 if its cells are at most two map cells wide."""
    return min(1.0, 2 * scale * _finest(activated) / GRID[0])


def _finest(activated: Activated) -> int:
    """Number of cells of the finest stage along its shorter side."""
    return max(min(activation.shape[-2:]) for activation in activated.output.activations)


def windows(scale: float) -> list[tuple[float, float]]:
    """The smallest number of windows of length 1 / ``scale`` that cover [0, 1], evenly spaced.

    >>> windows(1.6)
    [(0.0, 0.625), (0.375, 1.0)]
    """
    side, steps = 1 / scale, math.ceil(scale) - 1
    starts = [step * (1 - side) / max(steps, 1) for step in range(steps + 1)]
    return [(start, start + side) for start in starts]


def _cells(length: int, window: tuple[float, float]) -> slice:
    return slice(round(length * window[0]), round(length * window[1]))


def _tent(shape: Sequence[int], device: torch.device) -> Tensor:
    """Weights (h, w) that decrease from the center to the border, to blend overlapping windows."""
    rows, columns = (1 - ((torch.arange(n, device=device) + 0.5) / n * 2 - 1).abs() for n in shape)
    return rows[:, None] * columns + SEAM
