"""Types of the Explainer: its inputs, and the regions and contributions of pairs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from cefam.attribution.encoding import Encoding
from cefam.explanations.photograph import Photograph
from cefam.pairs import ConceptPairs

# Input images: one or several pictures or files, or a tensor of views (B, 3, H, W).
Picture = Photograph | Image.Image | str | Path
Images = Tensor | Picture | Sequence[Picture]
# Computes non-negative maps (P, h, w), one per pair over all stages.
Fused = Callable[[Encoding, ConceptPairs], Tensor]


@dataclass(frozen=True)
class Regions:
    """Regions of P pairs, an entry per stage: ``maps`` (P, H_l, W_l), ``weights`` beta and ``importance`` beta * z (P, C_l)."""

    maps: list[Tensor]
    weights: list[Tensor]
    importance: list[Tensor]


class Contribution(NamedTuple):
    """``value`` (P,): signed contribution; ``curve`` (P, K + 1): relative decrease of p^c; ``stage`` (P,): masked stage."""

    value: Tensor
    curve: Tensor
    stage: Tensor
