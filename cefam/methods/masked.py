"""Shared by the methods that are fitted to masks: photographs with masks, and activation thresholds of neurons."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cefam.concepts.sets import ConceptSet
from cefam.datasets.batches import region_loader
from cefam.datasets.contract import Manifest
from cefam.errors import CefamError
from cefam.images.views import EvaluationView
from cefam.pairs import index_of_numbers, labeled
from cefam.towers.classifier import FrozenClassifier

HELD = 2**25  # maximum number of values kept per stage to find thresholds (134 MB)


@dataclass(frozen=True)
class Masked:
    """A batch on the CPU: ``images`` (B, 3, H, W); ``maps`` per stage (B, C_l, H_l, W_l).

    Per pair ``image``, ``concept`` (P,) and ``mask`` (P, h, w), boolean.
    """

    images: Tensor
    maps: list[Tensor]
    image: Tensor
    concept: Tensor
    mask: Tensor


@dataclass(frozen=True)
class MaskedShards:
    """Training photographs with masks; each iteration runs the classifier over them once.

    Args:
        classifier: the frozen classifier.
        concepts: concept set; mask labels are its numbers.
        shards: folder of shards with masks, disjoint from the evaluation photographs.
        batch_size: photographs per batch.
        title: title of the progress bar.
    """

    classifier: FrozenClassifier
    concepts: ConceptSet
    shards: str
    batch_size: int = 16
    title: str = "fit to masks"

    @cached_property
    def manifest(self) -> Manifest:
        """Manifest of the shards."""
        return Manifest.read(self.shards)

    @property
    def count(self) -> int:
        """Number of photographs."""
        return self.manifest.num_samples

    @property
    def digests(self) -> list[str]:
        """Checksums of the shards."""
        return [shard["sha256"] for shard in self.manifest.shards]

    def __iter__(self) -> Iterator[Masked]:
        from rich.progress import Progress

        table = index_of_numbers(self.concepts.numbers)
        self.concepts.check_labels(self.manifest.labels)
        seen = False
        with Progress(transient=True) as progress:  # one bar per epoch
            bar = progress.add_task(self.title, total=self.count)
            for batch in region_loader(
                self.shards, EvaluationView(None, None), self.batch_size, 0, manifest=self.manifest
            ):
                rows, concept = labeled(batch, table)
                of_pair = batch.masks[batch.pair_mask[rows]]
                mask = of_pair == batch.pair_label[rows].view(-1, 1, 1)
                output = self.classifier(batch.image.to(self.classifier.device))
                maps = [activation.float().cpu() for activation in output.activations]
                seen |= len(rows) > 0
                yield Masked(batch.image, maps, batch.mask_image[batch.pair_mask[rows]], concept, mask)
                progress.advance(bar, len(batch.image))
        if not seen:
            raise CefamError(f"No label of the masks in {self.shards} is a number of the concept set.")


class Thresholds:
    """Thresholds that a given share of each neuron's activations exceeds, over all positions of all photographs; for one stage.

    Exact if the values above them fit into ``HELD``; otherwise estimated from every s-th position.
    """

    def __init__(self, share: float, photographs: int) -> None:
        self.share, self.photographs = share, photographs
        self.largest: Tensor | None = None
        self.step = 1

    def add(self, activation: Tensor) -> None:
        """Add the maps (B, C, H, W) of a batch."""
        values = activation.flatten(2)
        if self.largest is None:
            held = self.share * self.photographs * values.shape[2] * values.shape[1]
            self.step = max(1, round(held / HELD))
        values = values[..., :: self.step]
        self.wanted = int(self.share * self.photographs * values.shape[2]) + 1
        values = values.transpose(0, 1).flatten(1)  # (C, B H W)
        both = values if self.largest is None else torch.cat([self.largest, values], dim=1)
        self.largest = both.topk(min(self.wanted, both.shape[1]), dim=1).values

    def value(self) -> Tensor:
        """T_k (C,): at most ``share`` of the values are above it."""
        if self.largest is None:
            raise CefamError("There are no photographs to find thresholds on.")
        return self.largest[:, -1]


def thresholds(shards: MaskedShards, share: float) -> list[Tensor]:
    """T_k of every stage, in one pass over the photographs."""
    found = [Thresholds(share, shards.count) for _ in shards.classifier.stages]
    for batch in shards:
        for stage, activation in zip(found, batch.maps, strict=True):
            stage.add(activation)
    return [stage.value() for stage in found]
