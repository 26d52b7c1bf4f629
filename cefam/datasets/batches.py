"""Batches in a fixed order: what is evaluated. Photographs with their masks among them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cefam.categories import IGNORED
from cefam.datasets.contract import Manifest, MaskCut, Sample
from cefam.datasets.shards import read_samples
from cefam.datasets.world import world
from cefam.errors import CefamError
from cefam.pairs import RegionBatch
from cefam.views import View

T = TypeVar("T")


def mask_labels(folder: str | None) -> list[dict[str, Any]]:
    """The vocabulary of the masks in a folder of shards; none without a folder."""
    return Manifest.read(folder).labels if folder else []


class Batches(IterableDataset[Any]):
    """Batches of a folder of shards, every sample exactly once over all processes and workers; nothing is padded or dropped.

    Batch k holds the samples k x ``batch_size`` and following, whatever the number of processes and workers: what is computed
    from it is the same everywhere, and a stopped run can leave out what is done. Each process takes consecutive batches, and so
    does each of its workers, so that a shard is read by one of them, or two. A process may get fewer than another, or none:
    evaluation makes no collective call per step, so no process waits.

    Args:
        folder: of shards.
        batch_size: samples in a batch; the last one may have fewer.
        make: a batch of samples, in order, as it leaves the worker.
        masks: whether masks are read.
        done: numbers of batches that are left out.
    """

    def __init__(
        self,
        folder: str,
        batch_size: int,
        make: Callable[[Sequence[Sample]], dict[str, Any]],
        masks: bool = True,
        done: Collection[int] = (),
    ) -> None:
        check_batch_size(batch_size)
        self.manifest = Manifest.read(folder)
        self.shards, self.batch_size, self.make, self.masks = self.manifest.placed(folder), batch_size, make, masks
        self.number = -(-self.manifest.num_samples // batch_size)
        # Shared out here: a data worker that is not forked knows of no other process.
        self.share = part([number for number in range(self.number) if number not in done], *world())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        share = part(self.share, worker.id, worker.num_workers) if worker else self.share
        for first, stop in _runs(share):
            samples = read_samples(
                self.shards,
                first * self.batch_size,
                min(stop * self.batch_size, self.manifest.num_samples),
                self.masks,
            )
            for number, batch in enumerate(batched(samples, self.batch_size), start=first):
                yield {**self.make(batch), "number": number}


def part(every: Sequence[int], place: int, places: int) -> Sequence[int]:
    """One of so many consecutive parts that are nearly equal.

    >>> [list(part(range(5), place, 3)) for place in range(3)]
    [[0], [1, 2], [3, 4]]
    """
    return every[place * len(every) // places : (place + 1) * len(every) // places]


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs (first, one after the last) of ascending numbers.

    >>> list(_runs([1, 2, 5]))
    [(1, 3), (5, 6)]
    """
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        yield found[0], found[-1] + 1


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many items; the last one may be shorter."""
    every = iter(items)
    while batch := list(islice(every, size)):
        yield batch


def check_batch_size(batch_size: int) -> None:
    """Refuse batches of nothing.

    Raises:
        CefamError: with the value.
    """
    if batch_size < 1:
        raise CefamError(f"batch_size must be at least 1, got {batch_size}.")


def _viewed(view: View, view_masks: bool, sample: Sample) -> tuple[Tensor, Sample]:
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
    return view(pixels), sample


def region_loader(
    folder: str,
    view: View,
    batch_size: int,
    num_workers: int,
    view_masks: bool = False,
    done: Collection[int] = (),
) -> DataLoader[RegionBatch]:
    """Photographs with their masks from shards, every one exactly once over all processes.

    Args:
        folder: of shards with masks.
        view: cut of the photographs.
        batch_size: photographs in a batch.
        num_workers: data workers per process.
        view_masks: whether the masks are cut like the photographs (masks of the photograph's own size, ImageNet-S) or
            already belong to the view (Broden).
        done: numbers of batches that are left out.

    Raises:
        CefamError: where the shards hold no masks; when read, for masks that would not lie where the view is.
    """
    batches = Batches(
        folder, batch_size, partial(_region_batch, view, view_masks, Manifest.read(folder).mask_cut), done=done
    )
    if not batches.manifest.num_pairs:
        raise CefamError(f"The shards in {folder} hold no masks, so no region can be measured on them.")
    return DataLoader(batches, batch_size=None, num_workers=num_workers)


def _region_batch(view: View, view_masks: bool, mask_cut: MaskCut, samples: Sequence[Sample]) -> dict[str, Any]:
    viewed = [_viewed(view, view_masks, sample) for sample in samples]
    return _collate_regions(view if view_masks else None, mask_cut, viewed)


def _collate_regions(
    mask_view: View | None, mask_cut: MaskCut, samples: Sequence[tuple[Tensor, Sample]]
) -> dict[str, Any]:
    """A batch as a dict of :class:`cefam.pairs.RegionBatch`'s fields (Lightning moves dicts between devices).

    The pairs are those of the whole photograph: one whose mask the view leaves out is undefined, and is counted.
    """
    maps, owner, category, pair_mask, pair_label = [], [], [], [], []
    for index, (_, sample) in enumerate(samples):
        for mask in sample.masks:
            index_map, labels = torch.from_numpy(mask.index_map), mask.labels
            maps.append(mask_view.mask(index_map, mask_cut) if mask_view else index_map)
            pair_mask += [len(maps) - 1] * len(labels)
            pair_label += labels
            owner.append(index)
            category.append(mask.category)
    _check_one_size(
        "photographs", [(s.id, image.shape[-2:]) for image, s in samples], "`resize` and `crop` of the data"
    )
    owners = [(samples[index][1].id, index_map.shape) for index, index_map in zip(owner, maps, strict=True)]
    _check_one_size("masks", owners, "`resize`, `crop` and `view_masks` of the data")
    return {
        "image": torch.stack([image for image, _ in samples]),
        "ids": [sample.id for _, sample in samples],
        "masks": torch.stack(maps) if maps else torch.zeros(0, 1, 1, dtype=torch.int32),
        "mask_image": torch.tensor(owner, dtype=torch.long),
        "mask_category": category,
        "pair_mask": torch.tensor(pair_mask, dtype=torch.long),
        "pair_label": torch.tensor(pair_label, dtype=torch.long),
        "has_ignored": any(bool((index_map == IGNORED).any()) for index_map in maps),
    }


def _check_one_size(what: str, sizes: Sequence[tuple[str, Sequence[int]]], advice: str) -> None:
    for name, size in sizes:
        if tuple(size) != tuple(sizes[0][1]):
            raise CefamError(
                f"The {what} of {sizes[0][0]} and {name} differ in size ({tuple(sizes[0][1])} and {tuple(size)}): set {advice}, so that "
                f"all have one."
            )
