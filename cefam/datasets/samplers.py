"""Samplers that distribute rows over processes."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DistributedSampler

from cefam.datasets.world import world
from cefam.errors import CefamError


class StripedSampler(DistributedSampler[Any]):
    """Every n-th index for each process, without padding.

    ``DistributedSampler`` pads, and padded samples count twice in averages. Lightning does not replace a subclass of it.
    """

    def __init__(self, length: int, what: str) -> None:
        rank, ranks = world()
        if length < ranks:
            raise CefamError(f"{what} holds {length} row(s) for {ranks} processes: use fewer devices.")
        super().__init__(range(length), num_replicas=ranks, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.share = range(rank, length, ranks)

    def __iter__(self) -> Iterator[int]:
        return iter(self.share)

    def __len__(self) -> int:
        return len(self.share)


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
