"""One interface, many methods: what can give a region for an (image, concept) pair."""

from cefam.methods.base import Candidates, RegionMethod
from cefam.methods.cefam import CEFAMRegions
from cefam.methods.chance import CenterRegions, LuminanceRegions, RandomChannelRegions, RandomMapRegions

__all__ = [
    "CEFAMRegions",
    "Candidates",
    "CenterRegions",
    "LuminanceRegions",
    "RandomChannelRegions",
    "RandomMapRegions",
    "RegionMethod",
]
