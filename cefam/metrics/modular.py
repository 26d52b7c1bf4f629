"""Region metrics as torchmetrics: averages per category of the formulas in ``functional``, exact over any processes.

All states are sums of fixed shape, in double precision or integers, so ranks that saw different numbers of pairs (or
none) merge exactly, and nothing waits for the host.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from cefam.metrics import functional

CATEGORIES = ("object", "part", "color", "material")  # those of Broden that have masks (Table A1)


class PairMean(Metric):
    """Mean of a value per (image, concept) pair, by category, with undefined (NaN) pairs left out and counted.

    Args:
        categories: names of the categories, in the order of the indices that ``update`` gets.
        inexpressible: the value of a pair whose concept the method cannot express; ``None`` leaves it out.
        kwargs: options of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    total: Tensor
    count: Tensor
    undefined: Tensor
    missing: Tensor

    def __init__(
        self, categories: Sequence[str] = CATEGORIES, inexpressible: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.categories = tuple(categories)
        self.inexpressible = inexpressible
        cells = len(self.categories) + 1  # the last cell holds pairs given without a category
        self.add_state("total", torch.zeros(cells, dtype=torch.double), dist_reduce_fx="sum")
        for name in ("count", "undefined", "missing"):
            self.add_state(name, torch.zeros(cells, dtype=torch.long), dist_reduce_fx="sum")

    def set_dtype(self, dst_type: str | torch.dtype) -> "PairMean":
        """Stay in double precision: half-precision training must not round sums of a million pairs."""
        return self

    def update(self, value: Tensor, category: Tensor | None = None, expressible: Tensor | None = None) -> None:
        """Add pairs.

        Args:
            value: (P,); NaN where undefined.
            category: index of each pair's category (P,), long.
            expressible: whether the method has a region for the concept (P,), boolean; default: it has.
        """
        if category is None:
            category = torch.full_like(value, len(self.categories), dtype=torch.long)
        if expressible is None:
            expressible = torch.ones_like(value, dtype=torch.bool)
        undefined = value.isnan()
        if self.inexpressible is not None:
            value, counted = torch.where(expressible, value, self.inexpressible), ~undefined
        else:
            counted = ~undefined & expressible
        self.total.index_add_(0, category, torch.where(counted, value, 0).double())
        self.count.index_add_(0, category, counted.long())
        self.undefined.index_add_(0, category, undefined.long())
        self.missing.index_add_(0, category, (~expressible & ~undefined).long())

    def compute(self) -> dict[str, Tensor]:
        """Mean of every category that has pairs, and ``mean``, their unweighted mean (the paper's "Avg.")."""
        names = (*self.categories, "uncategorized")
        means = {n: t / c for n, t, c in zip(names, self.total, self.count, strict=True) if c > 0}
        return {**means, "mean": torch.stack(list(means.values())).mean()} if means else {}


class NormalizedRegionAccuracy(PairMean):
    """Mean :func:`~cefam.metrics.functional.normalized_region_accuracy`, per category and over categories.

    Args:
        categories: names of the categories.
        chance: "published" or "constant" (calibrated).
        kwargs: options of ``torchmetrics.Metric``.

    >>> region = torch.arange(400.0).view(1, 20, 20)
    >>> metric = NormalizedRegionAccuracy(categories=["object"])
    >>> metric.update(region, region > 299, category=torch.tensor([0]))
    >>> {name: round(value.item(), 2) for name, value in metric.compute().items()}
    {'object': 1.0, 'mean': 1.0}
    """

    def __init__(
        self,
        categories: Sequence[str] = CATEGORIES,
        chance: Literal["published", "constant"] = "published",
        **kwargs: Any,
    ) -> None:
        super().__init__(categories, **kwargs)
        self.chance = chance

    def update(  # type: ignore[override]
        self, region: Tensor, mask: Tensor, category: Tensor | None = None, expressible: Tensor | None = None
    ) -> None:
        """Add regions (P, H, W) and their boolean masks (P, H, W); ``category`` and ``expressible`` are (P,)."""
        region = _expressed(region, expressible)
        super().update(functional.normalized_region_accuracy(region, mask, self.chance), category, expressible)


class EnergyPointingGame(PairMean):
    """Mean :func:`~cefam.metrics.functional.energy_pointing_game`, per category and over categories.

    Args:
        categories: names of the categories.
        normalize: "min-max" (published program) or ``None`` (paper).
        kwargs: options of ``torchmetrics.Metric``.
    """

    def __init__(
        self,
        categories: Sequence[str] = CATEGORIES,
        normalize: Literal["min-max"] | None = "min-max",
        **kwargs: Any,
    ) -> None:
        super().__init__(categories, **kwargs)
        self.normalize = normalize

    def update(  # type: ignore[override]
        self, region: Tensor, mask: Tensor, category: Tensor | None = None, expressible: Tensor | None = None
    ) -> None:
        """Add regions (P, H, W) and their boolean masks (P, H, W); ``category`` and ``expressible`` are (P,)."""
        region = _expressed(region, expressible)
        super().update(functional.energy_pointing_game(region, mask, self.normalize), category, expressible)


class HitRate(PairMean):
    """Share of pairs whose published NRA exceeds 0.5; concepts that a method cannot express are misses (section 4.4).

    Args:
        categories: names of the categories.
        threshold: what NRA has to exceed.
        kwargs: options of ``torchmetrics.Metric``.
    """

    def __init__(self, categories: Sequence[str] = CATEGORIES, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(categories, inexpressible=0.0, **kwargs)
        self.threshold = threshold

    def update(  # type: ignore[override]
        self, region: Tensor, mask: Tensor, category: Tensor | None = None, expressible: Tensor | None = None
    ) -> None:
        """Add regions (P, H, W) and their boolean masks (P, H, W); ``category`` and ``expressible`` are (P,)."""
        region = _expressed(region, expressible)
        super().update(hits(functional.normalized_region_accuracy(region, mask), self.threshold), category, expressible)


def _expressed(region: Tensor, expressible: Tensor | None) -> Tensor:
    """Regions, but zeros where the method has none: what is there instead, NaN say, is nobody's business."""
    return region if expressible is None else region.masked_fill(~expressible.view(-1, 1, 1), 0)


def hits(nra: Tensor, threshold: float = 0.5) -> Tensor:
    """1 where the published NRA exceeds the threshold, 0 where not, NaN where it is undefined: (P,) -> (P,)."""
    return torch.where(nra.isnan(), nra, (nra > threshold).double())
