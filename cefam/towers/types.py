"""Output types of a classifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from cefam.towers.stages import StageContext

Context = Sequence[StageContext]


@dataclass(frozen=True)
class ClassifierOutput:
    """``logits`` (B, Y); per stage, shallow to deep, ``activations`` (a map (B, C_l, H_l, W_l)) and ``context``."""

    logits: Tensor
    activations: list[Tensor]
    context: list[StageContext]


class Rerun(NamedTuple):
    """Maps and ``logits`` (b, Y), connected by autograd to the first of ``sources``, the stages' raw outputs.

    :meth:`cefam.FrozenClassifier.as_map` converts the gradient of a source to the gradient of its map.
    """

    activations: list[Tensor]
    sources: list[Tensor]
    logits: Tensor
