"""Photographs with masks for the evaluation of regions: shards of Broden, ImageNet-S, or other data."""

from functools import cached_property
from typing import Any

import lightning as L
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader

from cefam.datasets.batches import count_of, region_loader
from cefam.datasets.contract import Manifest
from cefam.datasets.samplers import world
from cefam.errors import CefamError
from cefam.images.views import EvaluationView
from cefam.pairs import RegionBatch


def every_row(length: int, what: str) -> UnrepeatedDistributedSampler:
    """Every n-th row for each process, without padding: padded rows would count twice in averages."""
    rank, ranks = world()
    if length < ranks:
        raise CefamError(f"{what} holds {length} row(s) for {ranks} processes: use fewer devices.")
    return UnrepeatedDistributedSampler(range(length), num_replicas=ranks, rank=rank, shuffle=False)


class RegionsData(L.LightningDataModule):
    """Shards made by ``cefam prepare``, every photograph exactly once over all processes.

    Args:
        shards: folder of shards.
        batch_size: photographs in a batch.
        num_workers: data workers per process.
        resize: short side before the central crop; ``None``: no resizing (Broden).
        crop: side of the central crop; ``None``: no crop.
        view_masks: true: cut the masks like the photographs (ImageNet-S); false: they already match the view (Broden).
    """

    def __init__(
        self,
        shards: str,
        batch_size: int = 16,
        num_workers: int = 0,
        resize: int | None = None,
        crop: int | None = None,
        view_masks: bool = False,
    ) -> None:
        super().__init__()
        self.shards, self.batch_size, self.num_workers = shards, batch_size, num_workers
        self.view, self.view_masks = EvaluationView(resize, crop), view_masks

    @cached_property
    def manifest(self) -> Manifest:
        """Manifest of the shards."""
        return Manifest.read(self.shards)

    @property
    def labels(self) -> list[dict[str, Any]]:
        """Labels of the masks: dicts with number, name and category."""
        return self.manifest.labels

    def test_dataloader(self) -> DataLoader[RegionBatch]:
        """Photographs with their masks."""
        return region_loader(self.shards, self.view, self.batch_size, self.num_workers, self.view_masks, self.manifest)

    def identity(self) -> Any:
        """Key that identifies the batches, JSON-serializable."""
        shards = [shard["sha256"] for shard in self.manifest.shards]
        return [shards, self.batch_size, repr(self.view), self.view_masks]

    @property
    def num_batches(self) -> int:
        """Number of batches over all processes."""
        return count_of(self.manifest, self.batch_size)

    def counts(self) -> str:
        """Text with the numbers of photographs, pairs and batches."""
        pairs = f"{self.manifest.num_pairs} (mask, label) pairs"
        return f"{self.manifest.num_samples} photographs, {pairs}, {self.num_batches} batches"
