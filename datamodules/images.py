"""Photographs for training the translator: a folder of images, or shards (ImageNet)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from cefam.datamodules.regions import RegionsData, every_row
from cefam.datasets.batches import Batches
from cefam.datasets.contract import Manifest, Sample
from cefam.datasets.sources.images import list_images
from cefam.datasets.streams import FileLoader, ShardLoader, Skipped, Views, collate_views, count_batches
from cefam.datasets.webdatasets import shards_of_others
from cefam.images.views import EvaluationView, training_view


class ImagesData(L.LightningDataModule):
    """Images for training and validation, each a folder of images or of shards (recognized by its manifest).

    Args:
        train: folder of training images; labels are not used. With ``train_samples``, a folder or pattern of webdataset shards without
            a manifest ("https://host/train-{000..099}.tar").
        val: folder of validation images; their loss controls the learning rate and early stopping.
        regions: shards with masks for the evaluation of regions in every validation, or ``None``.
        size: side of a view.
        resize: short side before the central crop of the validation view.
        batch_size: training batch of one process (128 in the published program).
        val_batch_size: validation batch.
        region_batch_size: photographs with masks in a batch.
        num_workers: data workers per process.
        seed: seed of the order and crops of the training images.
        train_samples: number of photographs in shards without a manifest (length of an epoch).
        max_skipped: maximum number of unreadable training images that a process skips per epoch; their number is logged as
            ``train/skipped``. Validation never skips images.
    """

    def __init__(
        self,
        train: str,
        val: str,
        regions: str | None = None,
        size: int = 224,
        resize: int = 256,
        batch_size: int = 128,
        val_batch_size: int = 256,
        region_batch_size: int = 16,
        num_workers: int = 4,
        seed: int = 0,
        train_samples: int | None = None,
        max_skipped: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.regions = RegionsData(regions, region_batch_size, num_workers) if regions else None
        self.size, self.resize = size, resize
        self.batch_size, self.val_batch_size = batch_size, val_batch_size
        self.num_workers, self.seed = num_workers, seed
        self.train_samples, self.skipped = train_samples, Skipped(max_skipped)

    @property
    def labels(self) -> list[dict[str, Any]]:
        """Labels of the masks: dicts with number, name and category."""
        return self.regions.labels if self.regions else []

    def train_dataloader(self) -> Any:
        """Random views in a random order; the last incomplete batch is dropped, as in the published program.

        Order and crops depend on seed and epoch, not on the global random state, which is the same in every process.
        """
        view, skipped = training_view(self.size), self.skipped
        manifest = None if self.train_samples else Manifest.find(self.train)
        if self.train_samples or manifest:
            shards = manifest.placed(self.train) if manifest else shards_of_others(self.train)
            samples = manifest.num_samples if manifest else self.train_samples
            batches = count_batches(samples or 0, self.batch_size, self.train)
            return ShardLoader(shards, view, self.batch_size, batches, self.num_workers, self.seed, skipped)
        paths = [path for path, _ in list_images(self.train)]
        count_batches(len(paths), self.batch_size, self.train)
        return FileLoader(paths, view, self.batch_size, self.num_workers, self.seed, skipped)

    def val_dataloader(self) -> list[Any]:
        """Central views, every image exactly once over all processes; then, if ``regions`` is set, photographs with masks."""
        view = EvaluationView(self.resize, self.size)
        loaders: list[Any]
        manifest = Manifest.find(self.val)
        if manifest:
            batches = Batches(manifest, self.val, self.val_batch_size, partial(_views, view), masks=False)
            loaders = [DataLoader(batches, batch_size=None, num_workers=self.num_workers)]
        else:
            paths = [path for path, _ in list_images(self.val)]
            loaders = [
                DataLoader(
                    Views(paths, view, 0, False),
                    batch_size=self.val_batch_size,
                    sampler=every_row(len(paths), self.val),
                    collate_fn=collate_views,
                    num_workers=self.num_workers,
                )
            ]
        return [*loaders, *([self.regions.test_dataloader()] if self.regions else [])]


def _views(view: Callable[..., Tensor], samples: Sequence[Sample], number: int) -> dict[str, Tensor]:
    return {"image": default_collate([view(sample.pixels()) for sample in samples])}
