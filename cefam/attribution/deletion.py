"""Deletion and insertion: how the class probability changes while a region is hidden, or shown alone (RISE, BMVC 2018).

A hint, never the headline: pictures with holes are new to the classifier, and what it says of them misleads (IDSDS, arXiv 2407.11910).
So every curve stands beside that of the same region at random places, and three ways to fill the holes stand side by side.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.batching import chunks, room
from cefam.errors import CefamError, near
from cefam.settings import MethodSettings
from cefam.towers.classifier import FrozenClassifier

STEPS = 10  # of a curve
SHIFTS = 3  # random places of a region
BLUR = 0.05  # standard deviation of the blur, as a share of the side
SWEEPS = 20  # of the linear infill, after a first guess from coarse to fine
NOISE = 0.01  # of the linear infill, in units of pixels in [0, 1], as ROAD adds it (ICML 2022)


def filled_with_mean(images: Tensor, hidden: Tensor) -> Tensor:
    """Hidden pixels get the mean color of what is left: (V, 3, H, W), (V, 1, H, W) boolean -> (V, 3, H, W)."""
    left = (~hidden).float()
    mean = (images * left).sum(dim=(-2, -1), keepdim=True) / left.sum(dim=(-2, -1), keepdim=True).clamp_min(1)
    return torch.where(hidden, mean, images)


def filled_with_blur(images: Tensor, hidden: Tensor) -> Tensor:
    """Hidden pixels are blurred."""
    side = min(images.shape[-2:])
    sigma = max(1.0, BLUR * side)
    reach = min(int(3 * sigma), side - 1)
    at = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    wide = F.pad(images, (reach,) * 4, mode="reflect")
    blurred = F.conv2d(F.conv2d(wide, kernel.unsqueeze(2), groups=len(kernel)), kernel.unsqueeze(3), groups=len(kernel))
    return torch.where(hidden, blurred, images)


def filled_linearly(images: Tensor, hidden: Tensor) -> Tensor:
    """Hidden pixels become the weighted mean of their neighbors (1/6 beside, 1/12 across), with a little noise: ROAD's infill."""
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 0.0, 2.0], [1.0, 2.0, 1.0]]).to(images) / 12
    kernel = kernel.expand(images.shape[1], 1, 3, 3)
    found = _coarse_to_fine(images, hidden)
    for _ in range(SWEEPS):
        around = F.conv2d(F.pad(found, (1, 1, 1, 1), mode="replicate"), kernel, groups=len(kernel))
        found = torch.where(hidden, around, images)
    generator = torch.Generator().manual_seed(0)
    noise = NOISE * torch.randn(images.shape[1:], generator=generator).to(images)
    return torch.where(hidden, (found + noise).clamp(0, 1), images)


def _coarse_to_fine(images: Tensor, hidden: Tensor) -> Tensor:
    """Hidden pixels get the mean of the smallest block around them in which something is left."""
    found, left = filled_with_mean(images, hidden), (~hidden).float()
    size, side = images.shape[-2:], 2 ** int(math.log2(min(images.shape[-2:])))
    while side > 1:
        share = F.avg_pool2d(left, side, ceil_mode=True)
        mean = F.avg_pool2d(images * left, side, ceil_mode=True) / share.clamp_min(1e-6)
        both = torch.cat([mean, share], dim=1).repeat_interleave(side, dim=-2).repeat_interleave(side, dim=-1)
        both = both[..., : size[0], : size[1]]
        found = torch.where(hidden & (both[:, -1:] > 0), both[:, :-1], found)
        side //= 2
    return found


INFILLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": filled_with_mean,
    "blur": filled_with_blur,
    "linear": filled_linearly,
}


@torch.no_grad()
def deletion_and_insertion(
    classifier: FrozenClassifier,
    views: Tensor,
    regions: Tensor,
    target: Tensor,
    infill: str = "mean",
    settings: MethodSettings | None = None,
) -> dict[str, Tensor]:
    """Mean class probability while ever more of a view is hidden, or shown.

    Args:
        classifier: the one that is explained.
        views: one per region (P, 3, H, W), uint8 or floats in [0, 1].
        regions: not negative (P, H, W); the largest values go first.
        target: classes (P,).
        infill: "mean", "blur" or "linear".
        settings: for the memory limit.

    Returns:
        "deletion", "insertion": means over the curves (P,), and "deletion, random", "insertion, random": those of the same regions at
        random places, averaged. A good region has a lower deletion and a higher insertion than that.

    Raises:
        CefamError: for another infill.
    """
    if infill not in INFILLS:
        raise CefamError(f"There is no infill {infill!r}.{near(infill, INFILLS)} There are {', '.join(INFILLS)}.")
    pixels = views.float() / 255 if views.dtype == torch.uint8 else views.float()
    memory = (settings or MethodSettings()).memory_limit
    found = _curves(classifier, pixels, regions, target, infill, memory)
    generator = torch.Generator().manual_seed(0)
    height, width = regions.shape[-2:]
    others = []
    for _ in range(SHIFTS):
        down, right = (
            int(torch.randint(side // 4, side - side // 4, (1,), generator=generator)) for side in (height, width)
        )
        moved = regions.roll((down, right), dims=(-2, -1))
        others.append(_curves(classifier, pixels, moved, target, infill, memory))
    for name in ("deletion", "insertion"):
        found[f"{name}, random"] = torch.stack([other[name] for other in others]).mean(dim=0)
    return found


def _curves(
    classifier: FrozenClassifier, pixels: Tensor, regions: Tensor, target: Tensor, infill: str, memory: float
) -> dict[str, Tensor]:
    """Means over both curves (P,), from the whole region, in steps of equal area."""
    flat = regions.flatten(1)
    area = (flat > 0).sum(dim=1).clamp_min(1)  # what is 0 is no region: it is neither hidden nor shown first
    rank = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(regions).unsqueeze(1)
    steps = torch.arange(1, STEPS + 1, device=regions.device) / STEPS
    counts = (steps.unsqueeze(0) * area.unsqueeze(1)).round()  # (P, STEPS)
    rows = torch.arange(len(regions), device=regions.device).repeat_interleave(STEPS)
    edge = counts.flatten().view(-1, 1, 1, 1)
    size = 4 * classifier.stages[0].elements
    fit = room(memory, size, size, regions.device)
    hidden: list[Tensor] = []
    shown: list[Tensor] = []
    for part in chunks(len(rows), fit):
        inside = rank[rows[part]] < edge[part]
        for holes, kept in ((inside, hidden), (~inside, shown)):
            images = INFILLS[infill](pixels[rows[part]], holes)
            probability = classifier.probabilities(classifier(images).logits)
            kept.append(probability.gather(1, target[rows[part]].unsqueeze(1)).squeeze(1))
    return {
        "deletion": torch.cat(hidden).view(-1, STEPS).mean(dim=1),
        "insertion": torch.cat(shown).view(-1, STEPS).mean(dim=1),
    }
