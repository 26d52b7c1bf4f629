"""What a classifier gives: data only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from cefam.towers.stages import StageContext

Context = Sequence[StageContext]


@dataclass(frozen=True)
class ClassifierOutput:
    """``logits`` (B, Y); ``activations``: one map (B, C_l, H_l, W_l) per stage, shallow to deep; ``context``: the rest."""

    logits: Tensor
    activations: list[Tensor]
    context: list[StageContext]


class Rerun(NamedTuple):
    """``activations`` and ``logits`` (b, Y) with a graph down to the first of ``sources``: the raw outputs of the stages.

    A gradient with respect to a source becomes a map's gradient by :meth:`cefam.FrozenClassifier.as_map`.
    """

    activations: list[Tensor]
    sources: list[Tensor]
    logits: Tensor
