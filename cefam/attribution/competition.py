"""Competition between the concepts of a category, which makes a map specific to its concept (docs/research/beyond.md).

Maps of different concepts are similar, because all separate figure from ground. The soft maximum over a category's maps is
subtracted from each, with a weight between 0 and 1: the agreement of the whole view and the windows on the difference.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SOFTNESS = 2.0  # of the maximum over maps, in deviations; large: their mean
FEWEST = 3  # concepts of a category that compete among themselves; those of a smaller one compete with all


def rivals_of(categories: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
    """Groups of concepts that compete.

    Returns:
        The group of every concept (T,), and the concepts of every group.

    >>> group, members = rivals_of(["part", "part", "color", "part"])
    >>> group.tolist(), [each.tolist() for each in members]
    ([1, 1, 0, 1], [[0, 1, 2, 3], [0, 1, 3]])
    """
    names = [name if categories.count(name) >= FEWEST else "" for name in categories]
    order = ["", *dict.fromkeys(name for name in names if name)]
    everything = list(range(len(names)))
    members = [[index for index in everything if names[index] == name] if name else everything for name in order]
    return torch.tensor([order.index(name) for name in names]), [torch.tensor(each) for each in members]


def standardized(maps: Tensor) -> Tensor:
    """Maps (P, h, w), each with mean 0 and deviation 1; constant maps become 0."""
    centered = maps - maps.mean(dim=(1, 2), keepdim=True)
    spread = centered.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return centered / torch.where(spread > 0, spread, torch.ones_like(spread))


def shared(maps: Tensor) -> Tensor:
    """The soft maximum (h, w) of standardized maps (P, h, w)."""
    return SOFTNESS * torch.logsumexp(maps / SOFTNESS, dim=0)


def trust(first: Tensor, second: Tensor) -> Tensor:
    """How far two sets of maps (P, h, w) of the same concepts agree on what is specific: a number in [0, 1].

    The mean correlation, over concepts, of the maps minus :func:`shared`; 0 if it is negative.
    """
    one, other = (standardized(each - shared(each)) for each in (standardized(first), standardized(second)))
    return (one * other).mean().clamp_min(0)
