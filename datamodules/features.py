"""Cached features for training the translator without running the towers."""

from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from cefam.datamodules.regions import RegionsData, every_row
from cefam.datasets.features import FeatureManifest, load_features
from cefam.datasets.samplers import ShuffledSampler
from cefam.datasets.streams import count_batches


def _as_it_is(batch: Any) -> Any:
    return batch


class FeaturesData(L.LightningDataModule):
    """Feature caches made by ``cefam features``, memory-mapped and shared by the processes of a machine.

    Args:
        train: cache of training views.
        val: cache of validation views.
        regions: shards with masks for the evaluation of regions in every validation, or ``None``.
        batch_size: rows in a training batch of one process (128 in the published program).
        val_batch_size: rows in a validation batch.
        region_batch_size: photographs with masks in a batch.
        num_workers: data workers per process, for the photographs with masks.
        seed: seed of the order of the training rows.
        resident: copy the training rows to the device of each process: rows x (channels + D) x 4 bytes, or 2 (`--precision`).
    """

    def __init__(
        self,
        train: str,
        val: str,
        regions: str | None = None,
        batch_size: int = 128,
        val_batch_size: int = 256,
        region_batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        resident: bool = False,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.regions = RegionsData(regions, region_batch_size, num_workers) if regions else None
        self.batch_size, self.val_batch_size = batch_size, val_batch_size
        self.num_workers, self.seed, self.resident = num_workers, seed, resident

    @property
    def manifests(self) -> list[FeatureManifest]:
        """Manifests of the two caches."""
        return [FeatureManifest.read(folder) for folder in (self.train, self.val)]

    @property
    def labels(self) -> list[dict[str, Any]]:
        """Labels of the masks: dicts with number, name and category."""
        return self.regions.labels if self.regions else []

    def train_dataloader(self) -> DataLoader[Any]:
        """Rows in a random order; the last incomplete batch is dropped."""
        features = load_features(self.train)
        count_batches(len(features), self.batch_size, self.train)
        if self.resident and self.trainer is not None:
            features = features.to(self.trainer.strategy.root_device)
        sampler = ShuffledSampler(len(features), self.seed)
        return DataLoader(features, batch_size=self.batch_size, sampler=sampler, drop_last=True, collate_fn=_as_it_is)

    def val_dataloader(self) -> list[Any]:
        """Every row exactly once over all processes; then, if ``regions`` is set, photographs with masks."""
        features = load_features(self.val)
        sampler = every_row(len(features), self.val)
        loaders: list[Any] = [
            DataLoader(features, batch_size=self.val_batch_size, sampler=sampler, collate_fn=_as_it_is)
        ]
        return [*loaders, *([self.regions.test_dataloader()] if self.regions else [])]
