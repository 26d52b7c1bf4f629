"""Photographs with masks to measure regions on: shards of Broden, ImageNet-S, or one's own."""

from collections.abc import Collection
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from cefam.datasets.batches import mask_labels, region_loader
from cefam.datasets.contract import Manifest
from cefam.views import View


class RegionsData(L.LightningDataModule):
    """Shards made by ``cefam prepare``, every photograph exactly once over all processes.

    Args:
        shards: the folder.
        batch_size: photographs in a batch.
        num_workers: data workers per process.
        resize: short side before the central crop; ``None``: photographs come as they are (Broden).
        crop: side of the central crop; ``None``: none.
        view_masks: cut the masks like the photographs (ImageNet-S); false: they belong to the view already (Broden).
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
        self.view, self.view_masks = View(resize, crop), view_masks
        self.done: Collection[int] = ()  # numbers of batches that are left out: they have been measured

    @property
    def labels(self) -> list[dict[str, Any]]:
        """What the numbers in the masks mean."""
        return mask_labels(self.shards)

    def test_dataloader(self) -> DataLoader[Any]:
        """Photographs with their masks."""
        return region_loader(self.shards, self.view, self.batch_size, self.num_workers, self.view_masks, self.done)

    def identity(self) -> Any:
        """What makes the batches others, in plain types."""
        shards = [shard["sha256"] for shard in Manifest.read(self.shards).shards]
        return [shards, self.batch_size, repr(self.view), self.view_masks]

    @property
    def num_batches(self) -> int:
        """Of all processes."""
        return -(-Manifest.read(self.shards).num_samples // self.batch_size)

    def counts(self) -> str:
        """How much there is, in words that end with the number of batches."""
        manifest = Manifest.read(self.shards)
        return (
            f"{manifest.num_samples} photographs, {manifest.num_pairs} (mask, label) pairs, {self.num_batches} batches"
        )
