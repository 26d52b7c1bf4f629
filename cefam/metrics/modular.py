"""Region metrics as torchmetrics classes: means per category of the values of ``functional``, exact across processes.

All states are sums of fixed shape, in double precision or integers, so ranks with different numbers of pairs (or none)
merge exactly, and updates need no host synchronization.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal
from uuid import uuid4

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from cefam.concepts.categories import CATEGORIES
from cefam.errors import CefamError
from cefam.metrics import functional
from cefam.metrics.functional import category_means

Average = Literal["macro"] | None


class PairMean(Metric):
    """Mean of a value per (image, concept) pair, by category, with undefined (NaN) pairs left out and counted.

    Subclasses define :meth:`formula`.

    Args:
        categories: names of the categories, in the order of the category indices in ``update``.
        average: result of ``compute``. ``None``: a dict; "macro": only the unweighted mean over categories, a scalar, for
            torchmetrics wrappers that need one (``BootStrapper``, ``MetricTracker.best_metric``).
        kwargs: options of ``torchmetrics.Metric``.

    Raises:
        CefamError: for an unknown ``average``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_upper_bound = 1.0  # there is no lower bound for calibrated NRA
    inexpressible: ClassVar[float | None] = (
        None  # the value for concepts that a method cannot express; None excludes them
    )

    instance: Tensor
    total: Tensor
    count: Tensor
    undefined: Tensor
    missing: Tensor

    def __init__(self, categories: Sequence[str] = CATEGORIES, average: Average = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if average not in (None, "macro"):
            raise CefamError(f"average must be 'macro' or None, got {average!r}.")
        self.categories, self.average = tuple(categories), average
        # MetricCollection merges metrics whose states are equal after the first batch; after an empty batch all are equal.
        # This state is unique for each metric object, across processes too, and so prevents merging.
        self.add_state("instance", torch.tensor(list(uuid4().bytes)), dist_reduce_fx="max")
        cells = len(self.categories) + 1  # the last cell holds pairs given without a category
        self.add_state("total", torch.zeros(cells, dtype=torch.double), dist_reduce_fx="sum")
        for name in ("count", "undefined", "missing"):
            self.add_state(name, torch.zeros(cells, dtype=torch.long), dist_reduce_fx="sum")

    def set_dtype(self, dst_type: str | torch.dtype) -> "PairMean":
        """Do nothing: sums stay in double precision, even in half-precision training."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Change the device but not the precision: torchmetrics ignores ``half()``, but not ``to(torch.half)``."""

        def moved(value: Tensor) -> Tensor:
            found = fn(value)
            return found if found.dtype == value.dtype else value.to(found.device)

        return super()._apply(moved, exclude_state)

    def formula(self, region: Tensor, mask: Tensor) -> Tensor:
        """The value of each pair (P,), double, NaN where undefined."""
        raise NotImplementedError

    def update(
        self,
        region: Tensor | None = None,
        mask: Tensor | None = None,
        category: Tensor | None = None,
        expressible: Tensor | None = None,
        value: Tensor | None = None,
    ) -> None:
        """Add pairs, as regions with masks or as precomputed values.

        Args:
            region: (P, H, W).
            mask: (P, H, W), boolean.
            category: index of each pair's category (P,), long.
            expressible: whether the method has a region for the concept (P,), boolean; default: all true. Regions of
                inexpressible concepts are ignored.
            value: precomputed values (P,), NaN where undefined; used instead of ``region`` and ``mask``.

        Raises:
            CefamError: if neither values nor regions with masks are given.
        """
        if value is None:
            if region is None or mask is None:
                raise CefamError("Pass `region` and `mask`, or `value`.")
            if expressible is not None:
                region = region.masked_fill(~expressible.view(-1, 1, 1), 0)
            value = self.formula(region, mask)
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

    def compute(self) -> dict[str, Tensor] | Tensor:
        """Mean of each category, and ``mean``: the unweighted mean over categories with pairs (the paper's "Avg.").

        Categories without pairs are NaN; ``uncategorized`` is included if any pair had no category. With ``average="macro"``,
        only the mean is returned.
        """
        means, average = category_means(self.total, self.count)
        if self.average == "macro":
            return average
        found = dict(zip(self.categories, means, strict=False))
        if bool((self.count + self.undefined + self.missing)[-1] > 0):
            found["uncategorized"] = means[-1]
        return {**found, "mean": average}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one result of ``compute``, or a sequence of results; see ``torchmetrics.Metric.plot``.

        Returns:
            Figure and axis.
        """
        return self._plot(val, ax)


class NormalizedRegionAccuracy(PairMean):
    """Mean :func:`~cefam.metrics.functional.normalized_region_accuracy`, per category and over categories.

    Args:
        categories: names of the categories.
        chance: "published" or "constant" (calibrated).
        kwargs: ``average``, and options of ``torchmetrics.Metric``.

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

    def formula(self, region: Tensor, mask: Tensor) -> Tensor:
        """NRA of each pair."""
        return functional.normalized_region_accuracy(region, mask, self.chance)


class EnergyPointingGame(PairMean):
    """Mean :func:`~cefam.metrics.functional.energy_pointing_game`, per category and over categories.

    Args:
        categories: names of the categories.
        normalize: "min-max" (published program, which counts the energy of a region whose NRA is 0 as 0) or ``None`` (paper).
        kwargs: ``average``, and options of ``torchmetrics.Metric``.
    """

    def __init__(
        self,
        categories: Sequence[str] = CATEGORIES,
        normalize: Literal["min-max"] | None = "min-max",
        **kwargs: Any,
    ) -> None:
        super().__init__(categories, **kwargs)
        self.normalize = normalize

    def formula(self, region: Tensor, mask: Tensor) -> Tensor:
        """EPG of each pair."""
        energy = functional.energy_pointing_game(region, mask, self.normalize)
        if self.normalize is None:
            return energy
        return functional.published_energy(energy, functional.normalized_region_accuracy(region, mask))


class HitRate(PairMean):
    """Share of pairs whose published NRA exceeds 0.5; concepts that a method cannot express are misses (section 4.4).

    Args:
        categories: names of the categories.
        threshold: NRA above which a region is a hit.
        kwargs: ``average``, and options of ``torchmetrics.Metric``.
    """

    inexpressible = 0.0

    def __init__(self, categories: Sequence[str] = CATEGORIES, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(categories, **kwargs)
        self.threshold = threshold

    def formula(self, region: Tensor, mask: Tensor) -> Tensor:
        """1 for a hit, 0 for a miss."""
        return functional.hits(functional.normalized_region_accuracy(region, mask), self.threshold)


class FormulaMean(PairMean):
    """Mean of a function of regions and masks.

    Args:
        categories: names of the categories.
        function: (P, H, W), (P, H, W) -> (P,), such as those in :mod:`cefam.metrics.functional`.
        kwargs: ``average``, and options of ``torchmetrics.Metric``.
    """

    def __init__(self, categories: Sequence[str], function: Callable[[Tensor, Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(categories, **kwargs)
        self.function = function

    def formula(self, region: Tensor, mask: Tensor) -> Tensor:
        """Value of the function for each pair."""
        return self.function(region, mask)
