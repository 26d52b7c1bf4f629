"""Data classes of an evaluation: pairs, batches of photographs with masks, candidate regions."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from cefam.errors import CefamError


@dataclass(frozen=True, eq=False)
class ConceptPairs:
    """P (image, concept) pairs: ``image`` (P,) indexes the batch, ``concept`` (P,) indexes the concept set; both long.

    ``key`` (P,), long, identifies a pair independently of its batch; it seeds the random numbers of the chance methods.

    >>> pairs = ConceptPairs(image=torch.tensor([0, 0, 1]), concept=torch.tensor([3, 5, 3]))
    >>> len(pairs), pairs[1:].concept.tolist()
    (3, [5, 3])
    """

    image: Tensor
    concept: Tensor
    key: Tensor | None = None

    def __post_init__(self) -> None:
        if self.image.shape != self.concept.shape or self.image.dim() != 1:
            raise CefamError(
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
        """``key``, or a default computed from the indices."""
        return self.image * 1_000_003 + self.concept if self.key is None else self.key


class Candidates(NamedTuple):
    """Q candidate regions for each of P pairs, best first according to the method.

    ``maps`` (P, Q, H, W); ``score`` (P, Q), the method's score for the order; ``stage`` (P, Q), counted from 0, or -1 for
    maps that belong to no stage; ``valid`` (P, Q), false for missing candidates. If a pair has no valid candidate, the
    method cannot express its concept.
    """

    maps: Tensor
    score: Tensor
    stage: Tensor
    valid: Tensor

    @classmethod
    def ranked(cls, maps: Tensor, stage: int | Tensor = -1, score: Tensor | None = None) -> Self:
        """Valid candidates in the given order: maps (P, Q, H, W), one stage or (P, Q), score (P, Q) or the reversed rank."""
        pairs, count = maps.shape[:2]
        rank = torch.arange(count, 0, -1, device=maps.device, dtype=torch.double).expand(pairs, count)
        stages = torch.as_tensor(stage, device=maps.device).expand(pairs, count)
        return cls(maps, rank if score is None else score.double(), stages, torch.ones_like(rank, dtype=torch.bool))


@dataclass(frozen=True)
class RegionBatch:
    """Photographs with their masks; the number of masks per photograph varies."""

    image: Tensor  # views (B, 3, H, W), uint8 or floats in [0, 1]
    ids: Sequence[str]  # names of the images (B)
    masks: Tensor  # index maps (M, h, w), integers; 0 means no label, pixels with the value `IGNORED` are excluded
    mask_image: Tensor  # image of each mask (M,), index into the batch, ascending
    mask_category: Sequence[str]  # categories of the masks (M)
    pair_mask: Tensor  # mask of each pair (P,), index into `masks`
    pair_label: Tensor  # label number of each pair (P,)
    has_ignored: bool = False  # whether any mask has ignored pixels; stored to avoid a device synchronization
    number: int = -1  # index of the batch in the data set, independent of the process; -1 if unknown

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "RegionBatch":
        """The same batch on another device; called by the Trainer."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def index_of_numbers(numbers: Sequence[int]) -> Tensor:
    """Lookup table from label numbers to indices in the concept set; -1 for numbers without a concept."""
    table = torch.full((max(numbers) + 1,), -1)
    table[torch.tensor(numbers)] = torch.arange(len(numbers))
    return table


def labeled(batch: RegionBatch, table: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of a batch's pairs whose label is in the concept set, and their concepts, both (P,)."""
    concept = table[batch.pair_label.clamp_max(len(table) - 1)]
    concept = torch.where(batch.pair_label < len(table), concept, -1)
    rows = (concept >= 0).nonzero().squeeze(1)
    return rows, concept[rows]


def slots(image: Tensor, num_images: int) -> Tensor:
    """Position of each pair among the pairs of its image: (P,) -> (P,).

    >>> slots(torch.tensor([2, 0, 2, 2, 0]), 3)
    tensor([0, 0, 1, 2, 1])
    """
    order = image.argsort(stable=True)
    counts = torch.bincount(image, minlength=num_images)
    starts = counts.cumsum(0) - counts
    position = torch.empty_like(image)
    position[order] = torch.arange(len(image), device=image.device) - starts[image[order]]
    return position


def stable_hash(name: str) -> int:
    """A 62-bit hash of a name, equal in all processes (unlike Python's ``hash``)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 2
