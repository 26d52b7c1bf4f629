"""Region metrics: formulas in ``functional``, torchmetrics classes in ``modular``, the list of metrics in ``table``."""

from cefam.concepts.categories import CATEGORIES
from cefam.metrics.functional import hits
from cefam.metrics.modular import EnergyPointingGame, HitRate, NormalizedRegionAccuracy, PairMean
from cefam.metrics.table import METRICS, MetricRow

__all__ = [
    "CATEGORIES",
    "METRICS",
    "EnergyPointingGame",
    "HitRate",
    "MetricRow",
    "NormalizedRegionAccuracy",
    "PairMean",
    "hits",
]
