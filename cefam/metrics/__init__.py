"""Region metrics: formulas in ``functional``, their torchmetrics states in ``modular``."""

from cefam.metrics.modular import (
    CATEGORIES,
    EnergyPointingGame,
    HitRate,
    NormalizedRegionAccuracy,
    PairMean,
    hits,
)

__all__ = ["CATEGORIES", "EnergyPointingGame", "HitRate", "NormalizedRegionAccuracy", "PairMean", "hits"]
