"""How sure a difference between two rows of a table is: a paired bootstrap over images.

The pairs of one image are not independent, so whole images are drawn; both methods are averaged over the same draw.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from cefam.metrics.means import category_means


class Difference(NamedTuple):
    """``value``: average of ``method`` minus that of ``other``, as in the table; ``low``, ``high``: its 95 % interval."""

    protocol: str
    method: str
    other: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.method} - {self.other}: {self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


class _Sums:
    """Sum and count of a metric per image and category, of one method under one protocol."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], list[float]] = {}

    def add(self, image: str, category: str, value: float) -> None:
        cell = self.cells.setdefault((image, category), [0.0, 0.0])
        cell[0] += value
        cell[1] += 1

    def arrays(self, images: dict[str, int], categories: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """Sums and counts (images, categories)."""
        both = np.zeros((2, len(images), len(categories)))
        for (image, category), cell in self.cells.items():
            both[:, images[image], categories[category]] = cell
        return both[0], both[1]


def differences(
    records: Iterable[dict[str, Any]],
    metric: str = "nra",
    repeats: int = 1000,
    seed: int = 0,
    order: Sequence[str] = (),
) -> list[Difference]:
    """The first method against every other one on the same images, per protocol, in the unweighted mean over categories.

    Args:
        records: see :func:`cefam.report.records.read`.
        metric: one of ``cefam.metrics.METRICS``.
        repeats: draws.
        seed: of the draws.
        order: of the methods; those that are not named follow as they occur.

    Returns:
        Nothing where there are fewer than two images.
    """
    sums: dict[str, dict[str, _Sums]] = {}
    images: dict[str, int] = {}
    categories: dict[str, int] = {}
    on: dict[tuple[str, str], set[str]] = {}
    for record in records:
        on.setdefault((record["protocol"], record["method"]), set()).add(record["image"])
        if record["category"] and record["expressible"] and not math.isnan(record[metric]):
            methods = sums.setdefault(record["protocol"], {})
            methods.setdefault(record["method"], _Sums()).add(record["image"], record["category"], record[metric])
            images.setdefault(record["image"], len(images))
            categories.setdefault(record["category"], len(categories))
    if len(images) < 2:
        return []
    rows = {
        (protocol, method): each.arrays(images, categories)
        for protocol, methods in sums.items()
        for method, each in methods.items()
    }
    random = np.random.default_rng(seed)
    weights = [np.ones(len(images)), *(_draw(random, len(images)) for _ in range(repeats))]
    averages = {name: _averages(weights, *sums_of) for name, sums_of in rows.items()}
    found = []
    for protocol, methods in sums.items():
        first, *others = sorted(methods, key=lambda name: order.index(name) if name in order else len(order))
        for other in others:
            if on[protocol, first] != on[protocol, other]:
                continue  # nothing would be paired
            difference = averages[protocol, first] - averages[protocol, other]
            low, high = np.nanpercentile(difference[1:], (2.5, 97.5))
            found.append(Difference(protocol, first, other, float(difference[0]), float(low), float(high)))
    return found


def _draw(random: np.random.Generator, count: int) -> np.ndarray:
    """How often every image is drawn."""
    return np.bincount(random.integers(count, size=count), minlength=count).astype(np.uint8)  # Broden: 63 MB together


def _averages(draws: list[np.ndarray], total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mean over categories of the means over the drawn images, per draw; a category that a draw misses is left out."""
    sums, counts = (torch.from_numpy(np.stack([drawn @ of for drawn in draws])) for of in (total, count))
    averages: np.ndarray = category_means(sums, counts)[1].numpy()
    return averages
