"""``cefam features``: run both frozen networks once and cache their outputs."""

from cefam.datasets.features import compute_features as features

__all__ = ["features"]
