"""How views come from data workers into the training process.

Views travel as (h, w, 3), which is how decoders and resizing leave them in memory: a copy that reorders them takes twice as long.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from cefam.errors import CefamError

Draw = Callable[[Tensor], Tensor]
PREFETCH = 2  # tasks of a data worker that are on the way: torch's default


class Packed(TypedDict):
    """Views of several sizes: their ``pixels`` one after the other, uint8, and their ``shapes`` (h, w, 3)."""

    pixels: Tensor
    shapes: list[list[int]]


def stack(views: list[Tensor]) -> Tensor:
    """Views (h, w, 3) of one size as a batch (B, 3, h, w), channels last in memory."""
    return torch.stack(views).movedim(-1, 1)


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
        draw: a view (3, h, w) of the pixels of a photograph (3, H, W), uint8.
        join: views (h, w, 3) to a batch.
        size: bytes of a view, usually.
    """

    draw: Draw
    join: Callable[[list[Tensor]], Any]
    size: int


class Handed(NamedTuple):
    """What a data worker gives back for a task: shapes of views, those that found no room in its slot, and why others are missing."""

    shapes: list[list[int]]
    rest: list[Tensor]
    reasons: list[str]


class Handover:
    """Shared memory that data workers write views to, one slot per task, used again and again.

    Left to itself, torch takes fresh shared memory for every batch, and the first use of a page is dear
    (docs/performance.md). At most ``PREFETCH`` tasks per worker are on the way, and ``kept`` are in use: with one slot for each,
    task n writes to slot n modulo their number when the task that had it is not needed any more.

    Args:
        workers: data workers; without any, nothing is shared.
        size: bytes for the views of a task. What is larger travels as torch has it.
        kept: tasks whose views are in use at a time: the last one taken, and those before it.

    Raises:
        CefamError: where there is not so much shared memory.
    """

    def __init__(self, workers: int, size: int, kept: int = 1) -> None:
        self.prefetch = PREFETCH if workers else None  # of the loader
        slots = workers * PREFETCH + kept if workers else 0
        try:
            memory = torch.empty(slots, size, dtype=torch.uint8)
            self.slots: Tensor = memory.share_memory_()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise CefamError(
                f"{workers} data worker(s) need {slots * size / 1e6:.0f} MB of shared memory, and there is not so much ({error}): give "
                f"the container more (`docker run --shm-size`), or set a smaller `num_workers` or `batch_size`, or prepare smaller shards."
            ) from error

    def put(self, task: int, views: Iterable[Tensor], reasons: list[str]) -> Handed:
        """Hand views over, in a data worker; each is written as soon as it is drawn.

        Args:
            task: its number; all are taken in order.
            views: uint8 (3, h, w).
            reasons: why others are missing; known once the views are drawn.
        """
        slot, used = self._slot(task), 0
        shapes, rest = list[list[int]](), list[Tensor]()
        for view in views:
            laid = view.movedim(0, -1)
            end = used + laid.numel()
            shapes.append(list(laid.shape))
            if rest or end > len(slot):
                rest.append(laid.contiguous())  # without the photograph that it is a part of
            else:
                slot[used:end].view(laid.shape).copy_(laid)
                used = end
        return Handed(shapes, rest, reasons)

    def take(self, task: int, handed: Handed) -> list[Tensor]:
        """The views (h, w, 3) of a task, in the training process: they are written over when task ``task + kept`` is waited for."""
        shapes = handed.shapes[: len(handed.shapes) - len(handed.rest)]
        size = sum(math.prod(shape) for shape in shapes)
        return [*unpack({"pixels": self._slot(task)[:size], "shapes": shapes}), *handed.rest]

    def _slot(self, task: int) -> Tensor:
        return self.slots[task % len(self.slots)] if len(self.slots) else self.slots.flatten()
