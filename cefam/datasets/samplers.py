"""Rank and number of the processes, and the sampler that distributes training rows over them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DistributedSampler


def world() -> tuple[int, int]:
    """Rank and world size of ``torch.distributed``, or (0, 1); environment variables are ignored, as they may be stale."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class ShuffledSampler(DistributedSampler[Any]):
    """A new order every epoch in equal shares; it depends only on seed and epoch, so a resumed run gets the same order.

    Args:
        length: number of rows.
        seed: seed of the order.
        draws: yield draw numbers (epoch x length + index) instead of indices, for :class:`Views`.
    """

    def __init__(self, length: int, seed: int, draws: bool = False) -> None:
        rank, ranks = world()
        every: Any = range(length)
        super().__init__(every, num_replicas=ranks, rank=rank, shuffle=True, seed=seed, drop_last=True)
        self.length, self.draws = length, draws

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.length if self.draws else 0
        return (first + index for index in super().__iter__())
