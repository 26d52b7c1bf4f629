"""METRICS: the metrics of tables, records and loggers, each with its formula and torchmetrics class.

SECONDARY: metrics measured on request; CONTROLS, among them, are differences of NRA to that of other concepts' regions.
AREAS: the areas that NRA is computed from; in records always, in tables on request.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from cefam.errors import CefamError, near
from cefam.metrics import functional
from cefam.metrics.functional import Bounds, nra_from_areas, region_area
from cefam.metrics.modular import EnergyPointingGame, FormulaMean, HitRate, NormalizedRegionAccuracy, PairMean


class Measured:
    """Regions with their masks, and cached values that several metrics use.

    Args:
        region: (N, H, W).
        mask: (N, H, W), boolean.
        bounds: area bounds of the masks, each (N,).
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
    return functional.published_energy(energy, measured.nra)


@dataclass(frozen=True)
class MetricRow:
    """One metric.

    Args:
        title: heading in tables.
        formula: returns the value of each region, (N,), double, NaN where undefined.
        state: torchmetrics class; its ``inexpressible`` is the value for concepts that a method cannot express.
        options: constructor options of the class.
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


def _secondary(title: str, function: Callable[[Tensor, Tensor], Tensor]) -> MetricRow:
    return MetricRow(
        title, lambda measured: function(measured.region, measured.mask), FormulaMean, {"function": function}
    )


SECONDARY: dict[str, MetricRow] = {
    "pointing": _secondary("Pointing game", functional.pointing_game),
    "iou": _secondary("IoU at the mask's area", functional.iou_at_area),
    "auprc": _secondary("AUPRC", functional.average_precision),
    # NRA minus that of the method's regions for other concepts, which the evaluator measures.
    "specific": MetricRow("Specific NRA", lambda measured: measured.nra, NormalizedRegionAccuracy),
    "present": MetricRow("Specific NRA, present", lambda measured: measured.nra, NormalizedRegionAccuracy),
}
CONTROLS = ("specific", "present")
AREAS = {"auc": "AUC", "auc_high": "AUC_high", "auc_low": "AUC_low"}


def chosen(names: Sequence[str]) -> dict[str, MetricRow]:
    """METRICS and the named metrics of SECONDARY.

    Raises:
        CefamError: for an unknown name.
    """
    for name in names:
        if name not in SECONDARY:
            raise CefamError(
                f"There is no secondary metric {name!r}.{near(name, SECONDARY)} There are {', '.join(SECONDARY)}."
            )
    return {**METRICS, **{name: SECONDARY[name] for name in names}}


def title_of(column: str) -> str:
    """Heading of a table column."""
    rows = {**METRICS, **SECONDARY}
    return rows[column].title if column in rows else AREAS[column]


def inexpressible(column: str) -> float | None:
    """The value for concepts that a method cannot express; ``None`` excludes them."""
    rows = {**METRICS, **SECONDARY}
    return rows[column].state.inexpressible if column in rows else None
