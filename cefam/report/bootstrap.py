"""Confidence intervals of differences between table rows: a paired bootstrap over images.

The pairs of one image are not independent, so whole images are resampled; both methods use the same resample.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from cefam.metrics.functional import category_means
from cefam.report.sums import Sums


class Difference(NamedTuple):
    """Average of ``method`` minus average of ``other``: ``value``, and its 95 % interval from ``low`` to ``high``."""

    protocol: str
    method: str
    other: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.method} - {self.other}: {self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def differences(sums: Sums, repeats: int = 1000, seed: int = 0, order: Sequence[str] = ()) -> list[Difference]:
    """Compare the first method with every other one on the same images, per protocol, by the unweighted category mean.

    Returns:
        The differences; empty if there are fewer than two images.
    """
    total = len(sums.images)
    by_image = sums.by_image
    images = sum((both[1] for both in by_image.values()), np.zeros(total)).nonzero()[0]
    if len(images) < 2:
        return []
    categories = {name: column for column, name in enumerate(dict.fromkeys(key[2] for key in by_image))}
    rows: dict[tuple[str, str], np.ndarray] = {}
    for (protocol, method, category), both in by_image.items():
        if both[1].any():
            row = rows.setdefault((protocol, method), np.zeros((2, total, len(categories))))
            row[..., categories[category]] = both
    rows = {name: row[:, images] for name, row in rows.items()}
    random = np.random.default_rng(seed)
    weights = [np.ones(len(images)), *(_draw(random, len(images)) for _ in range(repeats))]
    averages = {name: _averages(weights, *sums_of) for name, sums_of in rows.items()}
    found = []
    protocols = list(dict.fromkeys(protocol for protocol, _ in rows))
    # "top1 common" follows "top1"
    for protocol in sorted(protocols, key=lambda name: (protocols.index(name.removesuffix(" common")), name)):
        methods = [method for of, method in rows if of == protocol]
        first, *others = sorted(methods, key=lambda name: order.index(name) if name in order else len(order))
        for other in others:
            if sums.seen[protocol, first] != sums.seen[protocol, other]:
                continue  # not measured on the same images
            difference = averages[protocol, first] - averages[protocol, other]
            low, high = np.nanpercentile(difference[1:], (2.5, 97.5))
            found.append(Difference(protocol, first, other, float(difference[0]), float(low), float(high)))
    return found


def intervals(
    sums: Sums, protocol: str, repeats: int = 1000, seed: int = 0
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Mean and 95 % interval over images of every method in every category.

    Returns:
        Mean, low and high, by method and category.
    """
    found = {}
    for (of, method, category), both in sums.by_image.items():
        total, count = both[:, both[1] > 0]
        if of != protocol or not len(count):
            continue
        random = np.random.default_rng(seed)
        draws = np.stack([_draw(random, len(count)) for _ in range(repeats)]).astype(float)
        low, high = np.percentile(draws @ total / (draws @ count), (2.5, 97.5))
        found[method, category] = (float(total.sum() / count.sum()), float(low), float(high))
    return found


def _draw(random: np.random.Generator, count: int) -> np.ndarray:
    """How often each image occurs in one bootstrap resample."""
    return np.bincount(random.integers(count, size=count), minlength=count).astype(
        np.uint8
    )  # 63 MB for all draws on Broden


def _averages(draws: list[np.ndarray], total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Per draw, the mean over categories of the means over the drawn images; categories without images are skipped."""
    sums, counts = (torch.from_numpy(np.stack([drawn @ of for drawn in draws])) for of in (total, count))
    averages: np.ndarray = category_means(sums, counts)[1].numpy()
    return averages
