"""Photograph-guided (joint bilateral) smoothing, and sharpening, of maps."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.batching import PairTable, scattered
from cefam.attribution.types import Activated

GRID = (48, 48)  # rows and columns of the grid on which maps are summed and smoothed
NEAR = 0.15  # standard deviation of the distance, in side lengths of the view
ROUNDS = 2
ALIKE = 0.25  # standard deviation of the color difference, in units of the view's contrast
FLAT = 1e-3  # minimum contrast of a view
SHARPEN = 4.0  # sharpened maps are exp(SHARPEN * z-score); ranks do not change
LARGEST = 80.0  # maximum exponent, finite in single precision


def spread_apart(maps: Tensor) -> Tensor:
    """Maps (P, h, w) divided by their standard deviation; constant maps are unchanged."""
    if not len(maps):  # torch warns about the deviation of nothing
        return maps
    spread = maps.std(dim=(1, 2), keepdim=True)
    return maps / torch.where(spread > 0, spread, torch.ones_like(spread))


def sharpened(maps: Tensor) -> Tensor:
    """exp(SHARPEN x z-score) of maps (P, h, w), up to a factor per map; ranks, and therefore NRA, do not change.

    Maps with a single peak, whose z-score can reach the square root of the number of cells, are sharpened
    less to avoid overflow.
    """
    score = spread_apart(maps)
    low, high = score.amin(dim=(1, 2), keepdim=True), score.amax(dim=(1, 2), keepdim=True)
    half = ((high - low) / 2).clamp_min(1e-6)
    return ((score - (high + low) / 2) * (LARGEST / half).clamp_max(SHARPEN)).exp()


def guided(activated: Activated, maps: Tensor, image: Tensor) -> Tensor:
    """Smooth maps (P, h, w) on ``GRID``: weighted means over nearby, similar-looking cells of the images ``image`` (P,)."""
    affinity = activated.once(("affinity", GRID), lambda: alike(activated.images, GRID))
    used, place = torch.unique(image, return_inverse=True)  # a chunk of pairs has few images
    layout = PairTable(place, len(used))
    at = (layout.slot, layout.image)
    for _ in range(ROUNDS):
        coarse = scattered(F.avg_pool2d(maps.unsqueeze(1), 2).flatten(1), at, (layout.width, len(used)))
        maps = torch.einsum("bnk,sbk->sbn", affinity[used], coarse)[at].view_as(maps)
    return maps


def alike(images: Tensor, grid: Sequence[int]) -> Tensor:
    """Affinity of each grid cell with nearby, similar-looking cells; rows sum to 1 (B, N, N / 4).

    Weights of a joint bilateral filter (Petschnigg et al. 2004): a Gaussian of the distance, of the color difference in units
    of the view's contrast, and of the texture difference in units of its spread. Maps are sampled at half the resolution (N / 4
    cells), which is sufficient for a Gaussian of this width.
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
    """Horizontal and vertical gradient and local contrast of each pixel (B, 3, H, W), averaged over a few grid cells."""
    grey = pixels.mean(dim=1, keepdim=True)
    side = max(3, pixels.shape[-1] // grid[1] * 2 + 1)
    across = F.pad((grey[..., 1:] - grey[..., :-1]).abs(), (0, 1))
    along = F.pad((grey[..., 1:, :] - grey[..., :-1, :]).abs(), (0, 0, 0, 1))
    around = (grey - _averaged(grey, side)).abs()
    return _averaged(torch.cat([across, along, around], dim=1), 2 * side + 1)


def _averaged(values: Tensor, side: int) -> Tensor:
    """Mean over a square window of ``side`` pixels (odd)."""
    return F.avg_pool2d(values, side, 1, side // 2, count_include_pad=False)


def _places(grid: Sequence[int], device: torch.device) -> Tensor:
    """Centers of the grid cells (N, 2), for sides of length 1."""
    lines = ((torch.arange(n, device=device) + 0.5) / n for n in grid)
    rows, columns = torch.meshgrid(*lines, indexing="ij")
    return torch.stack([rows.flatten(), columns.flatten()], dim=1)
