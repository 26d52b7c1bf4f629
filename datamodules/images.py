"""Photographs to train the translator on: a folder of images, or shards of them (ImageNet)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cefam.datasets.batches import Batches, mask_labels, region_loader
from cefam.datasets.contract import Sample, is_shards
from cefam.datasets.handover import Packed, Views, pack, stack, unpack
from cefam.datasets.samplers import StripedSampler
from cefam.datasets.sources.images import list_images
from cefam.datasets.streams import FileEpochs, ImageFiles, ShardEpochs, Skipped, count_batches
from cefam.views import TrainingView, View


class ImagesData(L.LightningDataModule):
    """Images for training and validation, each a folder of images or of shards (recognized by its manifest).

    Args:
        train: folder of training images; labels are not used.
        val: folder of validation images; their loss rules the learning rate and the early stop.
        regions: shards with masks on which regions are measured in every validation, or ``None``.
        size: side of a view.
        resize: short side before the central crop of the validation view.
        batch_size: training batch of one process (128 in the published program).
        val_batch_size: validation batch.
        region_batch_size: photographs with masks in a batch.
        num_workers: data workers per process.
        seed: of the order of the training images and of their crops.
        resize_on_device: resize training views on the device, which relieves data workers beside a fast GPU. The views differ by
            rounding.
        max_skipped: training images that may be left out in an epoch of one process because they cannot be read; their number is
            logged as ``train/skipped``. Validation never leaves one out.
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
        resize_on_device: bool = False,
        max_skipped: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.val, self.regions = train, val, regions
        self.size, self.resize = size, resize
        self.batch_size, self.val_batch_size, self.region_batch_size = batch_size, val_batch_size, region_batch_size
        self.num_workers, self.seed = num_workers, seed
        self.resize_on_device, self.skipped = resize_on_device, Skipped(max_skipped)
        self.view = TrainingView(size)

    @property
    def labels(self) -> list[dict[str, Any]]:
        """What the numbers in the masks mean."""
        return mask_labels(self.regions)

    def train_dataloader(self) -> Any:
        """Random views in a random order; the last incomplete batch is dropped, as in the published program.

        Order and crops come from seed and epoch, not from the global stream, which is the same in every process.
        """
        views = Views(self.view, stack, 3 * self.size**2)
        if self.resize_on_device:
            views = Views(self.view.cut, pack, 2 * 3 * self.size**2)  # some are larger
        if is_shards(self.train):
            return ShardEpochs(self.train, views, self.batch_size, self.num_workers, self.seed, self.skipped)
        paths = [path for path, _ in list_images(self.train)]
        count_batches(len(paths), self.batch_size, self.train)
        return FileEpochs(paths, views, self.batch_size, self.num_workers, self.seed, self.skipped)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Resize what came unresized, on the device, and lay images out as towers expect them."""
        images: Tensor | Packed = batch["image"]
        if isinstance(images, dict):
            images = torch.stack([self.view.resize(view.movedim(-1, 0)) for view in unpack(images)])
        return {**batch, "image": images.contiguous()}

    def val_dataloader(self) -> list[Any]:
        """Central views, every image exactly once over all processes; then, if asked for, photographs with masks."""
        view = View(self.resize, self.size)
        loaders: list[Any]
        if is_shards(self.val):
            batches = Batches(self.val, self.val_batch_size, partial(_views, view), masks=False)
            loaders = [DataLoader(batches, batch_size=None, num_workers=self.num_workers)]
        else:
            paths = [path for path, _ in list_images(self.val)]
            loaders = [
                DataLoader(
                    ImageFiles(paths, view),
                    batch_size=self.val_batch_size,
                    sampler=StripedSampler(len(paths), self.val),
                    num_workers=self.num_workers,
                )
            ]
        if self.regions:
            loaders.append(region_loader(self.regions, View(None, None), self.region_batch_size, self.num_workers))
        return loaders


def _views(view: Callable[..., Tensor], samples: Sequence[Sample]) -> dict[str, Tensor]:
    return {"image": torch.stack([view(sample.pixels()) for sample in samples])}
