"""Batches in a fixed order, for evaluation; with or without masks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from cefam.concepts.categories import IGNORED
from cefam.datasets.contract import Manifest, MaskCut, Sample
from cefam.datasets.samplers import world
from cefam.datasets.shards import read_samples
from cefam.errors import CefamError
from cefam.images.views import EvaluationView
from cefam.pairs import RegionBatch

T = TypeVar("T")


class Batches(IterableDataset[Any]):
    """Batches of a folder of shards, every sample exactly once over all processes and workers; nothing is padded or dropped.

    Batch k starts with sample k x ``batch_size``, for any number of processes and workers. Each process, and each of its
    workers, takes consecutive batches, so that few shards are read more than once. Processes may get different numbers of
    batches, or none: evaluation makes no collective call per step, so no process waits.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: str,
        batch_size: int,
        make: Callable[[Sequence[Sample], int], Any],
        masks: bool = True,
    ) -> None:
        self.shards, self.total, self.batch_size = manifest.placed(folder), manifest.num_samples, batch_size
        self.make, self.masks = make, masks
        # Computed here, since a spawned data worker has no process group.
        self.share = part(range(count_of(manifest, batch_size)), *world())

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        share = part(self.share, worker.id, worker.num_workers) if worker else self.share
        if share:
            first, stop = share[0] * self.batch_size, min((share[-1] + 1) * self.batch_size, self.total)
            samples = read_samples(self.shards, first, stop, self.masks)
            for number, batch in zip(share, batched(samples, self.batch_size), strict=True):
                yield self.make(batch, number)


def count_of(manifest: Manifest, batch_size: int) -> int:
    """Number of batches over all processes."""
    if batch_size < 1:
        raise CefamError(f"batch_size must be at least 1, got {batch_size}.")
    return -(-manifest.num_samples // batch_size)


def part(every: Sequence[int], place: int, places: int) -> Sequence[int]:
    """Part ``place`` of ``places`` consecutive, nearly equal parts.

    >>> [list(part(range(5), place, 3)) for place in range(3)]
    [[0], [1, 2], [3, 4]]
    """
    return every[place * len(every) // places : (place + 1) * len(every) // places]


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items; the last one may be shorter."""
    every = iter(items)
    while batch := list(islice(every, size)):
        yield batch


def _viewed(view: EvaluationView, view_masks: bool, sample: Sample) -> Tensor:
    pixels = sample.pixels()
    size = (pixels.shape[-2], pixels.shape[-1])
    for mask in sample.masks:
        if view_masks and mask.index_map.shape != size:
            raise CefamError(
                f"The {mask.category} mask of {sample.id} is {mask.index_map.shape}, its photograph {size}: one crop does not fit "
                f"both. Resize it, or set `view_masks` of the data to false if it belongs to the whole photograph."
            )
    if sample.masks and not view_masks and view.cuts(*size):
        raise CefamError(
            f"The view cuts the photograph {sample.id} {size}, and not its masks: set `view_masks` of the data to true, or leave "
            f"`crop` out."
        )
    return view(pixels)


def region_loader(
    folder: str,
    view: EvaluationView,
    batch_size: int,
    num_workers: int,
    view_masks: bool = False,
    manifest: Manifest | None = None,
) -> DataLoader[RegionBatch]:
    """Photographs with their masks, every one exactly once over all processes; see :class:`cefam.datamodules.RegionsData`."""
    manifest = manifest or Manifest.read(folder)
    if not manifest.num_pairs:
        raise CefamError(f"The shards in {folder} hold no masks, so no region can be measured on them.")
    make = partial(region_batch, view, view_masks, manifest.mask_cut)
    return DataLoader(Batches(manifest, folder, batch_size, make), batch_size=None, num_workers=num_workers)


def region_batch(
    view: EvaluationView, view_masks: bool, mask_cut: MaskCut, samples: Sequence[Sample], number: int
) -> RegionBatch:
    """A batch of photographs and their masks.

    The pairs are those of the whole photograph: a pair whose mask lies outside the view is undefined, and is counted.
    """
    images = [_viewed(view, view_masks, sample) for sample in samples]
    maps, owner, category, pair_mask, pair_label = [], [], [], [], []
    for index, sample in enumerate(samples):
        for mask in sample.masks:
            index_map, labels = torch.from_numpy(mask.index_map), mask.labels
            maps.append(view.mask(index_map, mask_cut) if view_masks else index_map)
            pair_mask += [len(maps) - 1] * len(labels)
            pair_label += labels
            owner.append(index)
            category.append(mask.category)
    sizes = [(sample.id, image.shape[-2:]) for sample, image in zip(samples, images, strict=True)]
    _check_one_size("photographs", sizes, "`resize` and `crop` of the data")
    sizes = [(samples[index].id, index_map.shape) for index, index_map in zip(owner, maps, strict=True)]
    _check_one_size("masks", sizes, "`resize`, `crop` and `view_masks` of the data")
    return RegionBatch(
        image=default_collate(images),
        ids=[sample.id for sample in samples],
        masks=torch.stack(maps) if maps else torch.zeros(0, 1, 1, dtype=torch.int32),
        mask_image=torch.tensor(owner, dtype=torch.long),
        mask_category=category,
        pair_mask=torch.tensor(pair_mask, dtype=torch.long),
        pair_label=torch.tensor(pair_label, dtype=torch.long),
        has_ignored=any(bool((index_map == IGNORED).any()) for index_map in maps),
        number=number,
    )


def _check_one_size(what: str, sizes: Sequence[tuple[str, Sequence[int]]], advice: str) -> None:
    for name, size in sizes:
        if tuple(size) != tuple(sizes[0][1]):
            raise CefamError(
                f"The {what} of {sizes[0][0]} and {name} differ in size ({tuple(sizes[0][1])} and {tuple(size)}): set {advice}, so that "
                f"all have one."
            )
