"""Beyond the paper: one map per concept that chooses no stage. See docs/research/beyond.md.

The score is, to first order, a sum over stages and places: S ~ const + sum_l mean_x (v^l . A^l(x)), with v^l the concept's direction in
the space of the stage's pooled activations. So its map is the sum of the maps of all stages: choosing one throws the others away.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.batching import PairTable
from cefam.attribution.encoding import Encoding
from cefam.attribution.weights import fuse_signed
from cefam.errors import CefamError
from cefam.images.views import resize_regions
from cefam.methods.base import Activated, MethodContext, RegionMethod
from cefam.methods.ce_fam import encoding_of
from cefam.methods.directions import concept_directions, mean_activations, regressed_directions
from cefam.methods.guided import GRID, guided, sharpened, spread_apart
from cefam.pairs import Candidates, ConceptPairs

ENLARGED = (1.7, 4.0)  # how much windows are enlarged, at least and at most
SEAM = 0.05  # weight of a window's map at its border, of 1 in its middle
AGAINST = 0.5  # weight of what speaks against a concept, of 1 for what speaks for it


class BeyondRegions(RegionMethod):
    """The stages' maps added, over the view and windows of it, smoothed within what looks alike.

    It has no masks, no labels, no choice of a stage, and no backward pass.

    Args:
        context: with the trained translator.
        regression: whether a concept's direction comes from the context's probe, with the translator as its prior (see
            :func:`cefam.methods.directions.regressed_directions`); otherwise it is the translator's gradient at the probe's mean
            activations. ``None``: where there is a probe. Without a probe it is the gradient at zero.
        scales: how much the classifier sees the view enlarged, in windows of its usual input size; 1: the whole view. ``None``: the whole
            view, and windows in which the finest stage's cells are as small as the map's, within limits (see :func:`usual_scales`).
        guide: whether the map is smoothed where the photograph looks alike.
        sharpen: whether its high values are raised; ranks stay.

    Raises:
        CefamError: for a scale below 1, or none, and where a regression is wanted without a probe, or with one of other towers.
    """

    def __init__(
        self,
        context: MethodContext,
        regression: bool | None = None,
        scales: Sequence[float] | None = None,
        guide: bool = True,
        sharpen: bool = True,
    ) -> None:
        super().__init__(context)
        if scales is not None and (not scales or min(scales) < 1):
            raise CefamError(f"`scales` says how much the view is enlarged: numbers from 1 on, got {list(scales)}.")
        self.guide, self.sharpen, self.scales = guide, sharpen, scales
        self.explainer = context.trained.explainer()
        if regression or (regression is None and context.probe is not None):
            self.directions = regressed_directions(context, "BeyondRegions")
        elif context.probe is not None:
            self.directions = concept_directions(context, mean_activations(context, "BeyondRegions"))
        else:
            self.directions = concept_directions(context, [torch.zeros(n) for n in context.classifier.channels])

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """One candidate: the sum. Its score is the concept's."""
        pairs = pairs.to(activated.images.device)
        total = resize_regions(self._total(activated, pairs), size)
        total = sharpened(total) if self.sharpen else total.relu()
        score = self.presence(activated)[pairs.image, pairs.concept]
        one = torch.ones(len(pairs), 1, dtype=torch.bool, device=total.device)
        return Candidates(total.unsqueeze(1), score.double().unsqueeze(1), -one.long(), one)

    def maps(self, encoding: Encoding, pairs: ConceptPairs) -> Tensor:
        """Maps of pairs for the eye (P, 48, 48), as :meth:`cefam.Explainer.explain` takes them: ``fused=method.maps``.

        What of the sum is above its mean over the view: all of it would be fog, and sharpened nothing but its peak is seen.
        """
        total = self._total(Activated(encoding.images, encoding.output), pairs)
        return (total - total.mean(dim=(1, 2), keepdim=True)).relu()

    def presence(self, activated: Activated) -> Tensor:
        """The similarity S (B, T)."""
        return encoding_of(self.explainer, activated).similarity

    def _total(self, activated: Activated, pairs: ConceptPairs) -> Tensor:
        """The sum over stages and windows, smoothed where that is wanted (P, 48, 48)."""
        device = activated.images.device
        used, place = torch.unique(pairs.image, return_inverse=True)  # a chunk of pairs is of few images
        layout = PairTable(place, len(used))
        self.directions = [direction.to(device) for direction in self.directions]  # moved once, with the classifier
        weights = [direction[pairs.concept] for direction in self.directions]
        total = torch.zeros(len(pairs), *GRID, device=device)
        for scale in self.scales or usual_scales(activated):
            seen, count = torch.zeros_like(total), torch.zeros(GRID, device=device)
            for window, activations in activated.once(("windows", scale), partial(self._seen, activated, scale)):
                rows, columns = (_cells(n, side) for n, side in zip(GRID, window, strict=True))
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                trust = _tent(shape, device)
                seen[:, rows, columns] += trust * self._summed([a[used] for a in activations], weights, layout, shape)
                count[rows, columns] += trust
            total += resolution(activated, scale) * spread_apart(seen / count)
        return guided(activated, total, pairs.image) if self.guide else total

    def _summed(
        self, activations: list[Tensor], weights: list[Tensor], layout: PairTable, grid: Sequence[int]
    ) -> Tensor:
        """The sum of the stages' maps (P, h, w)."""
        total = torch.zeros(len(layout.image), *grid, device=activations[0].device)
        for activation, weight in zip(activations, weights, strict=True):
            part = resize_regions(fuse_signed(activation.float(), weight, layout), grid)
            total += F.leaky_relu(part, AGAINST)
        return total

    @torch.no_grad()
    def _seen(self, activated: Activated, scale: float) -> list[tuple[list[tuple[float, float]], list[Tensor]]]:
        """Windows of the view, and the stages' maps of each: (rows, columns) from 0 to 1, one (B, C_l, H_l, W_l) per stage."""
        if scale == 1:
            return [([(0.0, 1.0), (0.0, 1.0)], activated.output.activations)]
        images, found = activated.images, []
        pixels = images.float() / (1 if images.is_floating_point() else 255)
        height, width = images.shape[-2:]
        for rows in windows(scale):
            for columns in windows(scale):
                part = pixels[..., _cells(height, rows), _cells(width, columns)]
                enlarged = F.interpolate(part, (height, width), mode="bilinear", align_corners=False)
                found.append(([rows, columns], self.explainer.classifier(enlarged).activations))
        return found


def usual_scales(activated: Activated) -> tuple[float, float]:
    """The whole view, and windows in which the finest stage's cells are as small as the map's: enlarged 1.7 to 4 times."""
    least, most = ENLARGED
    return 1.0, min(max(GRID[0] / _finest(activated), least), most)


def resolution(activated: Activated, scale: float) -> float:
    """How much a view counts: 1 where the finest stage's cells are at most two of the map's wide, less in proportion to their number."""
    return min(1.0, 2 * scale * _finest(activated) / GRID[0])


def _finest(activated: Activated) -> int:
    """Cells of the finest stage along its shorter side."""
    return max(min(activation.shape[-2:]) for activation in activated.output.activations)


def windows(scale: float) -> list[tuple[float, float]]:
    """As few windows as cover a side, from 0 to 1, each 1 / ``scale`` long.

    >>> windows(1.6)
    [(0.0, 0.625), (0.375, 1.0)]
    """
    side, steps = 1 / scale, math.ceil(scale) - 1
    starts = [step * (1 - side) / max(steps, 1) for step in range(steps + 1)]
    return [(start, start + side) for start in starts]


def _cells(length: int, window: tuple[float, float]) -> slice:
    return slice(round(length * window[0]), round(length * window[1]))


def _tent(shape: Sequence[int], device: torch.device) -> Tensor:
    """Weights (h, w) that fall from the middle to the border, so that windows join without a seam."""
    rows, columns = (1 - ((torch.arange(n, device=device) + 0.5) / n * 2 - 1).abs() for n in shape)
    return rows[:, None] * columns + SEAM
