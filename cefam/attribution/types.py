"""What the Explainer computes for pairs: regions and contributions. Data only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from cefam.attribution.encoding import Encoding
from cefam.explanations.photograph import Photograph
from cefam.pairs import ConceptPairs

# One picture or file, or several, or their views as a tensor (B, 3, H, W).
Picture = Photograph | Image.Image | str | Path
Images = Tensor | Picture | Sequence[Picture]
# Maps (P, h, w) of pairs, one for all stages together, not negative.
Fused = Callable[[Encoding, ConceptPairs], Tensor]


@dataclass(frozen=True)
class Regions:
    """One entry per stage, first dimension P: ``maps`` (P, H_l, W_l), ``weights`` beta and ``importance`` beta * z (P, C_l)."""

    maps: list[Tensor]
    weights: list[Tensor]
    importance: list[Tensor]


class Contribution(NamedTuple):
    """``value`` (P,): signed contribution; ``curve`` (P, K + 1): relative decrease of p^c; ``stage`` (P,): masked, from 0."""

    value: Tensor
    curve: Tensor
    stage: Tensor
