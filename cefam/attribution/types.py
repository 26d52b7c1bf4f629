"""Types of the Explainer: its inputs, and the regions and contributions of pairs."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from PIL import Image
from torch import Tensor

from cefam.explanations.photograph import Photograph
from cefam.towers.stages import ClassifierOutput

T = TypeVar("T")

# Input images: one or several pictures or files, or a tensor of views (B, 3, H, W).
Picture = Photograph | Image.Image | str | Path
Images = Tensor | Picture | Sequence[Picture]


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


@dataclass(frozen=True, eq=False)
class Activated:
    """A batch of images and the classifier's output for them, shared by all methods.

    Args:
        images: views (B, 3, H, W), uint8 or floats in [0, 1].
        output: logits, stage maps and context of the classifier.
    """

    images: Tensor
    output: ClassifierOutput
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Compute a value that depends only on the batch, and cache it under ``key`` for later chunks of pairs."""
        if key not in self._kept:
            self._kept[key] = compute()
        return cast(T, self._kept[key])
