"""The interface of a method that gives regions."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from cefam.classifier import ClassifierOutput
from cefam.explanation import ConceptPairs


class Candidates(NamedTuple):
    """Q candidate regions of P pairs, the method's own favorite first.

    ``maps`` (P, Q, H, W); ``score`` (P, Q), by which they are ordered; ``stage`` (P, Q), from 0, or -1 where a map comes
    from no stage; ``valid`` (P, Q), false where the method has no such candidate. A pair without a valid candidate is a
    concept that the method cannot express.
    """

    maps: Tensor
    score: Tensor
    stage: Tensor
    valid: Tensor


class RegionMethod(Protocol):
    """Anything that gives regions for (image, concept) pairs."""

    def regions(
        self,
        images: Tensor,
        activations: ClassifierOutput | Sequence[Tensor],
        pairs: ConceptPairs,
        size: Sequence[int],
        num_candidates: int,
    ) -> Candidates:
        """Candidate regions.

        Args:
            images: views (B, 3, H, W), uint8 or floats in [0, 1].
            activations: the classifier's output for them, or its maps alone.
            pairs: P pairs.
            size: (H, W) of the regions wanted.
            num_candidates: at most so many per pair.
        """
        ...


def maps_of(activations: ClassifierOutput | Sequence[Tensor]) -> Sequence[Tensor]:
    """The stage maps of a classifier's output, or the maps themselves."""
    return activations.activations if isinstance(activations, ClassifierOutput) else activations
