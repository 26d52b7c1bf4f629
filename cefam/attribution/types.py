"""What the Explainer computes: regions, contributions, explanations. Data only."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from cefam.vocabularies import Concept


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


@dataclass(frozen=True)
class ConceptExplanation:
    """One concept in one image.

    ``score`` in [0, 1]; ``similarity``: raw S; ``stage``, from 0, the one with the largest ``association`` (L values);
    ``region`` (H_l, W_l), at that stage's resolution and not negative; ``contribution``: signed share of the class
    probability, or ``None`` where a stage is by-passed.
    """

    concept: Concept
    score: float
    similarity: float
    stage: int
    association: list[float]
    region: Tensor
    contribution: float | None


@dataclass(frozen=True)
class Explanation:
    """One image: the explained class, its probability, and concepts by absolute contribution, descending."""

    target: int
    target_name: str
    probability: float
    concepts: list[ConceptExplanation]
