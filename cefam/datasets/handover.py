"""How views come from data workers into the training process."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import torch
from PIL import Image
from torch import Tensor

Draw = Callable[[Image.Image], Tensor]
PREFETCH = 2  # tasks of a data worker that are on the way: torch's default


class Packed(TypedDict):
    """Views of several sizes: their ``pixels`` one after the other, uint8, and their ``shapes``."""

    pixels: Tensor
    shapes: list[list[int]]


def pack(views: Sequence[Tensor]) -> Packed:
    """Views, each of its own size, as one tensor."""
    return {"pixels": torch.cat([view.flatten() for view in views]), "shapes": [list(view.shape) for view in views]}


def unpack(packed: Packed) -> list[Tensor]:
    """The inverse of :func:`pack`."""
    sizes = [math.prod(shape) for shape in packed["shapes"]]
    parts = torch.split(packed["pixels"], sizes)
    return [part.view(shape) for part, shape in zip(parts, packed["shapes"], strict=True)]


@dataclass(frozen=True)
class Views:
    """What data workers draw of photographs, and what the training process makes of it.

    Args:
        draw: a view of a photograph, uint8.
        join: views to a batch.
        size: bytes of a view, usually.
    """

    draw: Draw
    join: Callable[[list[Tensor]], Any]
    size: int


class Handed(NamedTuple):
    """What a data worker gives back for a task: shapes of views, their pixels unless they lie in a slot, and why others are missing."""

    shapes: list[list[int]]
    pixels: Tensor | None
    reasons: list[str]


class Handover:
    """Shared memory that data workers write views to, one slot per task, used again and again.

    Left to itself, torch takes fresh shared memory for every batch, and first use of a page is dear: a tenth of a view's time
    (docs/performance.md). At most ``PREFETCH`` tasks per worker are on the way, and one is being taken: with one slot for each,
    task n writes to slot n modulo their number when the task that had it is taken.

    Args:
        workers: data workers; without any, nothing is shared.
        size: bytes for the views of a task. What is larger travels as torch has it.
    """

    def __init__(self, workers: int, size: int) -> None:
        slots = workers * PREFETCH + 1 if workers else 0
        self.slots: Tensor = torch.empty(slots, size, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]

    def put(self, task: int, views: Sequence[Tensor], reasons: list[str]) -> Handed:
        """Hand views over, in a data worker.

        Args:
            task: its number; all are taken in order.
            views: uint8.
            reasons: why others are missing.
        """
        sizes = [view.numel() for view in views]
        slot = self._slot(task, sum(sizes))
        pixels = torch.empty(sum(sizes), dtype=torch.uint8) if slot is None else slot
        for part, view in zip(torch.split(pixels, sizes), views, strict=True):
            part.view(view.shape).copy_(view)
        return Handed([list(view.shape) for view in views], pixels if slot is None else None, reasons)

    def take(self, task: int, handed: Handed) -> list[Tensor]:
        """The views of a task, in the training process: to be copied before the next task is waited for."""
        size = sum(math.prod(shape) for shape in handed.shapes)
        pixels = self._slot(task, size) if handed.pixels is None else handed.pixels
        assert pixels is not None
        return unpack({"pixels": pixels, "shapes": handed.shapes})

    def _slot(self, task: int, size: int) -> Tensor | None:
        slots, room = self.slots.shape
        return self.slots[task % slots, :size] if slots and size <= room else None
