"""Streams of batches: samplers, epochs over shards, and the loader of photographs with masks."""

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, get_worker_info

from cefam.categories import IGNORED
from cefam.datasets.contract import Manifest, MaskCut, Sample, Shard
from cefam.datasets.shards import read_samples, read_shard
from cefam.errors import CefamError
from cefam.pairs import RegionBatch
from cefam.pictures import open_picture
from cefam.views import TrainingView, View, drawn

MIXED = 1000  # views of neighboring shards among which a batch is drawn


def world() -> tuple[int, int]:
    """Rank and number of the processes that run together now; environment variables may be left over from another run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def mask_labels(folder: str | None) -> list[dict[str, Any]]:
    """The vocabulary of the masks in a folder of shards; none without a folder."""
    return Manifest.read(folder).labels if folder else []


def count_batches(rows: int, batch_size: int, folder: str) -> int:
    """How many full training batches each process gets.

    Raises:
        CefamError: if there is no full batch, or ``batch_size`` is below 1.
    """
    ranks = world()[1]
    if batch_size < 1 or rows < ranks * batch_size:
        wanted = "a smaller" if batch_size > 0 else "a positive"
        raise CefamError(
            f"{folder} holds {rows} rows or images, which makes no batch of {batch_size} for each of {ranks} process(es): set {wanted} "
            f"`data.init_args.batch_size`."
        )
    return rows // (ranks * batch_size)


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


def batched(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """Lists of so many samples; the last one may be shorter."""
    every = iter(samples)
    while batch := list(islice(every, size)):
        yield batch


def check_batch_size(batch_size: int) -> None:
    """Refuse batches of nothing.

    Raises:
        CefamError: with the value.
    """
    if batch_size < 1:
        raise CefamError(f"batch_size must be at least 1, got {batch_size}.")


class StartedLate:
    """A loader whose workers begin with its first batch, not with its iterator.

    A Trainer creates the first iterator of a run before it sets the epoch that a resumed run continues with.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader, self.sampler = loader, loader.sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        yield from self.loader


class ShardEpochs:
    """Batches of random views from shards: what an epoch holds depends on its number, the seed and the process alone.

    Whole shards are read, in an order drawn for the epoch; every process takes every n-th shard, and continues with another
    order at the end, so that all processes have the same number of batches and none waits for the others. A buffer mixes the views
    of neighboring shards. A data worker hands over a shard's views at once: 38 MB for 256 of side 224.

    Args:
        folder: of shards.
        view: drawn of every photograph.
        batch_size: views in a batch; what is left at the end of an epoch is dropped.
        num_workers: data workers.
        seed: of orders and views.

    Raises:
        CefamError: where there is less than a batch for each process.
    """

    def __init__(self, folder: str, view: TrainingView, batch_size: int, num_workers: int, seed: int) -> None:
        self.shards, self.view, self.batch_size = Manifest.read(folder).placed(folder), view, batch_size
        self.num_workers, self.seed, self.epoch = num_workers, seed, 0
        self.rank, self.ranks = world()
        self.batches = count_batches(sum(shard.count for shard in self.shards), batch_size, folder)
        self.sampler = self  # a Trainer calls set_epoch on the sampler

    def set_epoch(self, epoch: int) -> None:
        """Choose what comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        stream = f"{self.seed}/{self.epoch}"
        shards = _ShardViews(self._share(stream), self.view, stream)
        loader = DataLoader(shards, batch_size=None, num_workers=self.num_workers)
        mix = wds.shuffle(MIXED, initial=MIXED, rng=random.Random(f"{stream}/{self.rank}"))
        views = mix(view for shard in loader for view in shard)
        for _ in range(self.batches):
            yield {"image": torch.stack(list(islice(views, self.batch_size)))}

    def _share(self, stream: str) -> list[tuple[int, Shard]]:
        """As many shards as this process needs, each with its place in the order of all processes."""
        share: list[tuple[int, Shard]] = []
        for place, shard in islice(enumerate(self._order(stream)), self.rank, None, self.ranks):
            share.append((place, shard))
            if sum(shard.count for _, shard in share) >= self.batches * self.batch_size:
                return share
        raise AssertionError("The order has no end.")

    def _order(self, stream: str) -> Iterator[Shard]:
        for repeat in count():
            yield from random.Random(f"{stream}/{repeat}").sample(self.shards, len(self.shards))


class _ShardViews(Dataset[Tensor]):
    """The views (n, 3, S, S) of one shard after another."""

    def __init__(self, share: Sequence[tuple[int, Shard]], view: TrainingView, stream: str) -> None:
        self.share, self.view, self.stream = share, view, stream

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, index: int) -> Tensor:
        place, shard = self.share[index]
        samples = enumerate(read_shard(shard))
        return torch.stack([drawn(self.view, sample.picture(), f"{self.stream}/{place}/{n}") for n, sample in samples])


class RandomViews(Dataset[Any]):
    """Random views of photographs given by path; what is drawn depends on the number of the draw alone."""

    def __init__(self, paths: Sequence[Path], view: TrainingView, seed: int) -> None:
        self.paths, self.view, self.seed = paths, view, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        path = self.paths[draw % len(self.paths)]
        return {"image": drawn(self.view, open_picture(path, str(path)), f"{self.seed}/{draw}")}


class ImageFiles(Dataset[Any]):
    """Photographs given by path, each through a view."""

    def __init__(self, paths: Sequence[Any], view: Callable[..., Tensor]) -> None:
        self.paths, self.view = paths, view

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        return {"image": self.view(open_picture(path, str(path)))}


class StripedSampler(DistributedSampler[Any]):
    """Every n-th index for each process, without repeating one to make the shares equal.

    Raises a ``CefamError`` where a process would have none: it could not take part in the validation.

    (torch's own sampler pads, and a padded sample counts twice in every average. Being one of its kind, this one is not
    replaced by Lightning.)
    """

    def __init__(self, length: int, what: str) -> None:
        rank, ranks = world()
        if length < ranks:
            raise CefamError(f"{what} holds {length} row(s) for {ranks} processes: use fewer devices.")
        super().__init__(range(length), num_replicas=ranks, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.share = range(rank, length, ranks)

    def __iter__(self) -> Iterator[int]:
        return iter(self.share)

    def __len__(self) -> int:
        return len(self.share)


class ShuffledSampler(DistributedSampler[Any]):
    """A new order every epoch, from seed and epoch alone, in equal shares; a resumed run sees what it would have seen.

    Args:
        length: number of rows.
        seed: of the order.
        draws: give numbers of draws (epoch x length + index) instead of indices, for :class:`RandomViews`.
    """

    def __init__(self, length: int, seed: int, draws: bool = False) -> None:
        rank, ranks = world()
        every: Any = range(length)
        super().__init__(every, num_replicas=ranks, rank=rank, shuffle=True, seed=seed, drop_last=True)
        self.length, self.draws = length, draws

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.length if self.draws else 0
        return (first + index for index in super().__iter__())


def _viewed(view: View, view_masks: bool, sample: Sample) -> tuple[Tensor, Sample]:
    picture = sample.picture()
    size = (picture.height, picture.width)
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
    return view(picture), sample


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
