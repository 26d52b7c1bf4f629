"""Smoothing a map within what looks alike in the photograph, and sharpening it; alone or behind another method."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.batching import PairTable, scattered
from cefam.images.views import resize_regions
from cefam.methods.base import Activated, MethodContext, MethodFactory, RegionMethod
from cefam.pairs import Candidates, ConceptPairs

GRID = (48, 48)  # cells on which maps are added and smoothed
NEAR = 0.15  # of the side: how far a cell reaches
ROUNDS = 2
ALIKE = 0.25  # of the view's contrast: what still looks alike
FLAT = 1e-3  # contrast of a view that has none
SHARPEN = 4.0  # exp(so many times the z-score): ranks stay, the energy moves to the top
LARGEST = 80.0  # exponent that is still finite in single precision


def spread_apart(maps: Tensor) -> Tensor:
    """Maps (P, h, w) divided by their standard deviation; a constant map stays as it is."""
    spread = maps.std(dim=(1, 2), keepdim=True)
    return maps / torch.where(spread > 0, spread, torch.ones_like(spread))


def sharpened(maps: Tensor) -> Tensor:
    """exp(SHARPEN x z-score) of maps (P, h, w), up to a factor per map: their ranks, and so NRA, stay.

    A map of one peak, whose z-score is up to the root of the number of cells, is sharpened less: as far as single precision goes.
    """
    score = spread_apart(maps)
    low, high = score.amin(dim=(1, 2), keepdim=True), score.amax(dim=(1, 2), keepdim=True)
    half = ((high - low) / 2).clamp_min(1e-6)
    return ((score - (high + low) / 2) * (LARGEST / half).clamp_max(SHARPEN)).exp()


def guided(activated: Activated, maps: Tensor, image: Tensor) -> Tensor:
    """Maps (P, h, w) on ``GRID`` of the images ``image`` (P,), each cell the mean of the cells that look like it, near it."""
    affinity = activated.once(("affinity", GRID), lambda: alike(activated.images, GRID))
    used, place = torch.unique(image, return_inverse=True)  # a chunk of pairs is of few images
    layout = PairTable(place, len(used))
    at = (layout.slot, layout.image)
    for _ in range(ROUNDS):
        coarse = scattered(F.avg_pool2d(maps.unsqueeze(1), 2).flatten(1), at, (layout.width, len(used)))
        maps = torch.einsum("bnk,sbk->sbn", affinity[used], coarse)[at].view_as(maps)
    return maps


def alike(images: Tensor, grid: Sequence[int]) -> Tensor:
    """How much each cell of a grid looks like each other, near it: rows that add to 1 (B, N, N / 4).

    A Gaussian of the distance, of the difference of color, whose unit is the view's own contrast, and of the difference of texture, in
    units of its own spread: a joint bilateral filter (Petschnigg et al. 2004). The map is read on a grid half as fine (N / 4 cells),
    which a Gaussian of that width does not feel.

    Args:
        images: views (B, 3, H, W), uint8 or floats in [0, 1].
        grid: its rows and columns, even numbers.
    """
    pixels = images.float() / (1 if images.is_floating_point() else 255)
    half = [n // 2 for n in grid]
    near = torch.cdist(_places(grid, images.device), _places(half, images.device)) / NEAR
    exponent = near.square().expand(len(images), -1, -1)
    for features, unit in ((pixels, ALIKE), (_texture(pixels, grid), 1.0)):
        cells, keys = (F.interpolate(features, g, mode="area").flatten(2).transpose(1, 2) for g in (list(grid), half))
        spread = cells.std(dim=1).norm(dim=1).clamp_min(FLAT).view(-1, 1, 1)
        exponent = exponent + (torch.cdist(cells, keys) / (unit * spread)).square()
    weight = (-exponent / 2).exp()
    total: Tensor = weight / weight.sum(dim=2, keepdim=True)
    return total


def _texture(pixels: Tensor, grid: Sequence[int]) -> Tensor:
    """Roughness across, along and around every pixel (B, 3, H, W), averaged over a few cells of the grid."""
    grey = pixels.mean(dim=1, keepdim=True)
    side = max(3, pixels.shape[-1] // grid[1] * 2 + 1)
    across = F.pad((grey[..., 1:] - grey[..., :-1]).abs(), (0, 1))
    along = F.pad((grey[..., 1:, :] - grey[..., :-1, :]).abs(), (0, 0, 0, 1))
    around = (grey - _averaged(grey, side)).abs()
    return _averaged(torch.cat([across, along, around], dim=1), 2 * side + 1)


def _averaged(values: Tensor, side: int) -> Tensor:
    """The mean over a square of so many pixels, an odd number."""
    return F.avg_pool2d(values, side, 1, side // 2, count_include_pad=False)


def _places(grid: Sequence[int], device: torch.device) -> Tensor:
    """Centers of the cells of a grid (N, 2), the side being 1."""
    lines = ((torch.arange(n, device=device) + 0.5) / n for n in grid)
    rows, columns = torch.meshgrid(*lines, indexing="ij")
    return torch.stack([rows.flatten(), columns.flatten()], dim=1)


class GuidedRegions(RegionMethod):
    """The first choice of another method, smoothed within what looks alike and sharpened: a control of what smoothing alone is worth.

    Args:
        context: of the other method.
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


class AnotherConceptRegions(RegionMethod):
    """The regions that a method gives for ANOTHER concept of the same category: what of its accuracy is figure against ground.

    Which one depends on the photograph's pixels and the concept alone. Where a category has one concept, it is taken from all others.

    Args:
        context: of the other method.
        method: the other method.
    """

    def __init__(self, context: MethodContext, method: MethodFactory) -> None:
        super().__init__(context)
        self.method = method(context)
        categories = [concept.category for concept in context.concepts.concepts]
        self.others = [_others(categories, index) for index in range(len(categories))]

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """See :class:`cefam.methods.RegionMethod`."""
        images = activated.images
        pixels = (images * 255).round() if images.is_floating_point() else images
        drawn = pixels.long().sum(dim=(1, 2, 3)).tolist()
        chosen = []
        for image, concept in zip(pairs.image.tolist(), pairs.concept.tolist(), strict=True):
            others = self.others[concept]
            chosen.append(others[drawn[image] % len(others)])
        another = torch.tensor(chosen).to(pairs.image)
        return self.method.regions(activated, ConceptPairs(pairs.image, another, pairs.keys()), size, num_candidates)


def _others(categories: Sequence[str], index: int) -> list[int]:
    """The concepts of the same category after and before this one, or all others."""
    circle = [*range(index + 1, len(categories)), *range(index)]
    return [other for other in circle if categories[other] == categories[index]] or circle or [index]
