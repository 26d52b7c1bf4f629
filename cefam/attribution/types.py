"""What the Explainer computes for pairs: regions and contributions. Data only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from cefam.attribution.encoding import Encoding
from cefam.pairs import ConceptPairs

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
