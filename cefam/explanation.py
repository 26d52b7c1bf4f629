"""What the Explainer takes and gives: pairs, encodings, regions, contributions, explanations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cefam.classifier import ClassifierOutput
from cefam.concepts import Concept


@dataclass(frozen=True, eq=False)
class ConceptPairs:
    """P pairs: ``image`` (P,) index into the batch, ``concept`` (P,) index into the concept set; both long.

    ``key`` (P,), long, names a pair independently of its batch; chance rows draw their random numbers from it.
    """

    image: Tensor
    concept: Tensor
    key: Tensor | None = None

    def __post_init__(self) -> None:
        if self.image.shape != self.concept.shape or self.image.dim() != 1:
            raise ValueError(
                f"Pairs need two vectors of one length, got image {tuple(self.image.shape)} and concept {tuple(self.concept.shape)}."
            )

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: slice | Tensor) -> "ConceptPairs":
        return ConceptPairs(self.image[index], self.concept[index], None if self.key is None else self.key[index])

    def to(self, device: torch.device) -> "ConceptPairs":
        """The same pairs on another device."""
        key = None if self.key is None else self.key.to(device)
        return ConceptPairs(self.image.to(device), self.concept.to(device), key)

    def keys(self) -> Tensor:
        """``key``, or one made from the pair's indices."""
        return self.image * 1_000_003 + self.concept if self.key is None else self.key


@dataclass(frozen=True)
class Encoding:
    """What the classifier and the translator say about a batch.

    ``images`` (B, 3, H, W); ``output`` of the classifier; ``pooled``: z, one (B, C_l) per stage; ``embedding``: h (B, D);
    ``similarity``: S (B, T); ``pull_back``: see :meth:`cefam.translator.Translator.linearize`.
    """

    images: Tensor
    output: ClassifierOutput
    pooled: list[Tensor]
    embedding: Tensor
    similarity: Tensor
    pull_back: Callable[[Tensor, Tensor], list[Tensor]]


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
