"""Agreement of contributions with interventional effects: signs, pairwise order, ranks; with intervals over scenes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

REPEATS = 1000


class Estimate(NamedTuple):
    """A value and its 95 % interval from a bootstrap over scenes."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def signs(value: Tensor, effect: Tensor, noise: float) -> np.ndarray:
    """Count correct signs of concepts with positive and with negative effects: (2, 2), [for / against][correct, all].

    Effects within the noise are ignored. A value of 0 is never correct.
    """
    counts = np.zeros((2, 2))
    for row, sign in enumerate((1, -1)):
        chosen = sign * effect > noise
        counts[row] = float((sign * value[chosen] > 0).sum()), float(chosen.sum())
    return counts


def balanced(counts: np.ndarray) -> float:
    """Mean share of correct signs over both kinds; a constant sign gives one half. NaN if a kind is missing."""
    right, every = counts[:, 0], counts[:, 1]
    return float((right / every).mean()) if (every > 0).all() else float("nan")


def ordered(value: Tensor, effect: Tensor, noise: float) -> np.ndarray:
    """Count a scene's concept pairs with effects that differ beyond the noise: [correctly ordered (ties: half), all], (2,)."""
    larger = effect.unsqueeze(1) - effect.unsqueeze(0) > noise
    difference = value.unsqueeze(1) - value.unsqueeze(0)
    right = (difference > 0).double() + 0.5 * (difference == 0).double()
    return np.array([float(right[larger].sum()), float(larger.sum())])


def spearman(value: Tensor, effect: Tensor) -> float:
    """Rank correlation over one scene's concepts; NaN if all values or all effects are equal.

    >>> import torch
    >>> round(spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.5, 7.0])), 4)
    1.0
    """
    if value.unique().numel() < 2 or effect.unique().numel() < 2:  # type: ignore[no-untyped-call]
        return float("nan")
    return round(float(spearman_corrcoef(value.double(), effect.double())), 6)


def estimate(per_scene: Sequence[np.ndarray], total: Callable[[np.ndarray], float], seed: int = 0) -> Estimate:
    """Estimate a statistic of the scenes' summed counts, with its interval."""
    counts = np.stack(per_scene)
    random = np.random.default_rng(seed)
    drawn = random.integers(0, len(counts), (REPEATS, len(counts)))
    values = [total(counts[rows].sum(axis=0)) for rows in drawn]
    low, high = np.nanquantile(values, (0.025, 0.975)) if not np.isnan(values).all() else (np.nan, np.nan)
    return Estimate(total(counts.sum(axis=0)), float(low), float(high))


def share(counts: np.ndarray) -> float:
    """First count divided by the second; NaN if the second is 0."""
    return float(counts[0] / counts[1]) if counts[1] else float("nan")


def mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean over scenes of one value per scene; NaN is skipped."""
    return estimate([np.array([0.0 if np.isnan(v) else v, float(not np.isnan(v))]) for v in values], share, seed)
