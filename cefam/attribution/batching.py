"""Batching of pairs: batch size from a memory limit, chunks, and groups of images with similar numbers of pairs."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cefam.pairs import slots

# Maximum bytes of a buffer on the CPU: larger ones are reallocated at every step, which is slower than the computation.
CPU_BUFFER = 16 * 2**20


def max_pairs(memory_limit: float, bytes_each: int, largest: int, device: torch.device) -> int:
    """Number of pairs to process at once; at least 1.

    Args:
        memory_limit: memory limit in megabytes.
        bytes_each: bytes per pair.
        largest: bytes of the largest buffer per pair; on the CPU, buffers are limited to ``CPU_BUFFER``.
        device: device of the computation.
    """
    fit = memory_limit * 2**20 / bytes_each
    return max(1, int(min(fit, CPU_BUFFER / largest) if device.type == "cpu" else fit))


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` elements that cover ``range(total)``."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


class PairTable:
    """Pairs as a table: a row per image, a column per pair of that image.

    Args:
        image: image index of every pair (P,).
        num_images: number of images B.
    """

    def __init__(self, image: Tensor, num_images: int) -> None:
        self.image, self.num_images = image, num_images
        self.slot = slots(image, num_images)
        # The only device synchronization: the host needs the table sizes.
        self.counts: list[int] = torch.bincount(image, minlength=num_images).tolist()

    @property
    def width(self) -> int:
        """Largest number of pairs per image."""
        return max(self.counts, default=0)

    def groups(self, room: int) -> Iterator[tuple[list[int], int]]:
        """Groups of images with similar numbers of pairs, each with the largest number: a group is a nearly full table."""
        order = sorted((i for i in range(self.num_images) if self.counts[i]), key=lambda i: -self.counts[i])
        start = 0
        while start < len(order):
            most, stop = self.counts[order[start]], start + 1
            while stop < len(order) and 4 * self.counts[order[stop]] >= 3 * most and (stop + 1 - start) * most <= room:
                stop += 1
            yield order[start:stop], most
            start = stop


def scattered(values: Tensor, at: tuple[Tensor, Tensor], shape: tuple[int, int]) -> Tensor:
    """Scatter rows (R, C) to the indices ``at`` of a zero table (S, B, C)."""
    table = values.new_zeros(*shape, values.shape[1])
    table[at] = values
    return table
