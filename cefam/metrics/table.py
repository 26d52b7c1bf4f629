"""METRICS: what is measured. A metric is a formula, a torchmetrics state, and a row here; tables, records and loggers follow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cefam.metrics import functional
from cefam.metrics.functional import Bounds, nra_from_areas, region_area
from cefam.metrics.modular import EnergyPointingGame, HitRate, NormalizedRegionAccuracy, PairMean


class Measured:
    """Regions with their masks; what several metrics need is computed once.

    Args:
        region: (N, H, W).
        mask: (N, H, W), boolean.
        bounds: of the masks, each (N,).
        preset: "published" or "paper".
    """

    def __init__(self, region: Tensor, mask: Tensor, bounds: Bounds, preset: str) -> None:
        self.region, self.mask, self.bounds, self.preset = region, mask, bounds, preset

    @cached_property
    def area(self) -> Tensor:
        """Area under the IoU curve (N,)."""
        return region_area(self.region, self.mask)

    @cached_property
    def nra(self) -> Tensor:
        """Published NRA (N,)."""
        return nra_from_areas(self.area, self.bounds, "published")


def _energy(measured: Measured) -> Tensor:
    if measured.preset == "paper":
        return functional.energy_pointing_game(measured.region, measured.mask, None)
    energy = functional.energy_pointing_game(measured.region, measured.mask, "min-max")
    # The published loop keeps a candidate only if its NRA is above 0; else both values are recorded as 0.
    return torch.where(measured.nra == 0, 0.0, energy)


@dataclass(frozen=True)
class MetricRow:
    """One metric.

    Args:
        title: in tables.
        formula: the value of every region, (N,), double, NaN where undefined.
        state: its torchmetrics class; ``inexpressible`` of that class is the value of a concept that a method cannot express.
        options: of the class.
    """

    title: str
    formula: Callable[[Measured], Tensor]
    state: type[PairMean]
    options: Mapping[str, Any] = field(default_factory=dict)

    def metric(self, categories: Sequence[str]) -> PairMean:
        """A new torchmetrics object for these categories."""
        return self.state(categories, **self.options)


METRICS: dict[str, MetricRow] = {
    "epg": MetricRow("EPG", _energy, EnergyPointingGame),
    "nra": MetricRow("NRA", lambda measured: measured.nra, NormalizedRegionAccuracy),
    "nra_calibrated": MetricRow(
        "NRA calibrated",
        lambda measured: nra_from_areas(measured.area, measured.bounds, "constant"),
        NormalizedRegionAccuracy,
        {"chance": "constant"},
    ),
    "hit": MetricRow("Hit Rate", lambda measured: functional.hits(measured.nra), HitRate),
}
