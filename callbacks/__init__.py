"""Lightning callbacks. Import as ``cefam.callbacks``."""

from cefam.callbacks.region_panel import RegionPanel

__all__ = ["RegionPanel"]
