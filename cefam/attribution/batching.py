"""How pairs are worked on in batches: how many fit into memory, in which chunks, and which images together."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cefam.pairs import slots

# Bytes of one buffer on the CPU: larger ones are allocated anew at every step, which costs more than the work in them.
CPU_BUFFER = 16 * 2**20


def max_pairs(memory_limit: float, bytes_each: int, largest: int, device: torch.device) -> int:
    """Number of pairs that are worked on at once; at least 1.

    Args:
        memory_limit: megabytes.
        bytes_each: that one pair takes.
        largest: bytes of its largest buffer, which should stay out of slow memory on the CPU.
        device: where the work is done.
    """
    fit = memory_limit * 2**20 / bytes_each
    return max(1, int(min(fit, CPU_BUFFER / largest) if device.type == "cpu" else fit))


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``total``."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


class PairTable:
    """Pairs as a table: a row per image, a column per pair of that image.

    Args:
        image: index of every pair's image (P,).
        num_images: B.
    """

    def __init__(self, image: Tensor, num_images: int) -> None:
        self.image, self.num_images = image, num_images
        self.slot = slots(image, num_images)
        # The only wait for the device: tables are sized on the host.
        self.counts: list[int] = torch.bincount(image, minlength=num_images).tolist()

    @property
    def width(self) -> int:
        """The largest number of pairs of an image."""
        return max(self.counts, default=0)

    def groups(self, room: int) -> Iterator[tuple[list[int], int]]:
        """Images with about as many pairs each, and the largest of these numbers: a group is a nearly full rectangle.

        Args:
            room: pairs that a group may have, if it has more than one image.
        """
        order = sorted((i for i in range(self.num_images) if self.counts[i]), key=lambda i: -self.counts[i])
        start = 0
        while start < len(order):
            most, stop = self.counts[order[start]], start + 1
            while stop < len(order) and 4 * self.counts[order[stop]] >= 3 * most and (stop + 1 - start) * most <= room:
                stop += 1
            yield order[start:stop], most
            start = stop


def scattered(values: Tensor, at: tuple[Tensor, Tensor], shape: tuple[int, int]) -> Tensor:
    """Rows (R, C) at their places in a table (S, B, C) of zeros."""
    table = values.new_zeros(*shape, values.shape[1])
    table[at] = values
    return table
