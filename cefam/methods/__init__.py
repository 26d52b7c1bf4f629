"""Region methods: compute regions for (image, concept) pairs behind one interface."""

from cefam.attribution.types import Activated
from cefam.methods.attributions import GradCAMPlusPlusRegions, IntegratedGradientsRegions, RISERegions, ScoreCAMRegions
from cefam.methods.base import MethodContext, MethodFactory, RegionMethod
from cefam.methods.beyond import BeyondRegions, GuidedRegions
from cefam.methods.ce_fam import CEFAMRegions
from cefam.methods.chance import CenterRegions, LuminanceRegions, RandomChannelRegions, RandomMapRegions
from cefam.methods.clip_dissect import CLIPDissectRegions
from cefam.methods.craft import CRAFTRegions
from cefam.methods.grad_cam import GradCAMRegions
from cefam.methods.net2vec import Net2VecRegions
from cefam.methods.network_dissection import NetworkDissectionRegions
from cefam.methods.neurons import NeuronRegions
from cefam.methods.tcav import TCAVRegions
from cefam.methods.www import WWWRegions
from cefam.pairs import Candidates

__all__ = [
    "Activated",
    "BeyondRegions",
    "CEFAMRegions",
    "CLIPDissectRegions",
    "CRAFTRegions",
    "Candidates",
    "CenterRegions",
    "GradCAMPlusPlusRegions",
    "GradCAMRegions",
    "GuidedRegions",
    "IntegratedGradientsRegions",
    "LuminanceRegions",
    "MethodContext",
    "MethodFactory",
    "Net2VecRegions",
    "NetworkDissectionRegions",
    "NeuronRegions",
    "RISERegions",
    "RandomChannelRegions",
    "RandomMapRegions",
    "RegionMethod",
    "ScoreCAMRegions",
    "TCAVRegions",
    "WWWRegions",
]
