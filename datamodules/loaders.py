"""What the data modules share: pipelines over shards, and the loader of photographs with masks."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from cefam.evaluator import RegionBatch
from cefam.shards import Manifest, Sample, decode, open_picture, unreadable
from cefam.views import View


def world() -> tuple[int, int]:
    """Rank and number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def mask_labels(folder: str | None) -> list[dict[str, Any]]:
    """The vocabulary of the masks in a folder of shards; none without a folder."""
    return Manifest.read(folder).labels if folder else []


def check_workers(num_shards: int, num_workers: int, folder: str) -> None:
    """Refuse what would leave a data worker without a shard: it reads whole ones.

    Raises:
        ValueError: with the number of workers that would do.
    """
    ranks = world()[1]
    if num_shards < ranks:
        raise ValueError(
            f"{folder} has {num_shards} shard(s) for {ranks} processes, and a process reads whole shards: run `cefam prepare` "
            f"again with a smaller `samples_per_shard`, or use fewer devices."
        )
    if num_shards < ranks * num_workers:
        raise ValueError(
            f"{num_shards} shard(s) in {folder} cannot feed {ranks} process(es) x {num_workers} data worker(s): a worker reads "
            f"whole shards. Set `data.init_args.num_workers` to at most {num_shards // ranks}, or run `cefam prepare` again with a "
            f"smaller `samples_per_shard`."
        )


def in_order(folder: str, transform: Callable[[Sample], Any]) -> wds.DataPipeline:
    """Every sample of a folder once, over all processes and workers: no padding, nothing repeated, nothing dropped."""
    files = Manifest.read(folder).files(folder)
    # Each process gets every n-th shard, each worker of it every n-th of those. A process may get fewer than another:
    # evaluation makes no collective call per step, so nobody waits.
    return wds.DataPipeline(
        wds.SimpleShardList(files),
        wds.split_by_node,
        wds.split_by_worker,
        wds.tarfile_to_samples(handler=unreadable),
        wds.map(decode),
        wds.map(transform),
    )


def resampled(folder: str, transform: Callable[[Sample], Any], seed: int) -> wds.DataPipeline:
    """An endless stream of shuffled samples; shards are drawn with replacement, so that no process runs dry."""
    files = Manifest.read(folder).files(folder)
    return wds.DataPipeline(
        wds.ResampledShards(files, seed=seed, deterministic=True),
        wds.tarfile_to_samples(handler=unreadable),
        wds.detshuffle(1000, seed=seed),
        wds.map(decode),
        wds.map(transform),
    )


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

    (torch's own sampler pads, and a padded sample counts twice in every average. Being one of its kind, this one is not
    replaced by Lightning.)
    """

    def __init__(self, length: int) -> None:
        rank, ranks = world()
        super().__init__(range(length), num_replicas=ranks, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.share = range(rank, length, ranks)

    def __iter__(self) -> Iterator[int]:
        return iter(self.share)

    def __len__(self) -> int:
        return len(self.share)


def shuffled_sampler(length: int, seed: int) -> DistributedSampler[Any]:
    """A new order every epoch, from seed and epoch alone, in equal shares; a resumed run sees what it would have seen."""
    rank, ranks = world()
    return DistributedSampler(
        range(length),  # type: ignore[arg-type]
        num_replicas=ranks,
        rank=rank,
        shuffle=True,
        seed=seed,
        drop_last=True,
    )


def _viewed(view: View, sample: Sample) -> tuple[Tensor, Sample]:
    return view(sample.picture()), sample


def region_loader(
    folder: str, view: View, batch_size: int, num_workers: int, view_masks: bool = False
) -> DataLoader[RegionBatch]:
    """Photographs with their masks from shards, every one exactly once over all processes.

    Args:
        folder: of shards with masks.
        view: cut of the photographs.
        batch_size: photographs in a batch.
        num_workers: data workers per process.
        view_masks: whether the masks are cut like the photographs (masks of the photograph's own size, ImageNet-S) or
            already belong to the view (Broden).

    Raises:
        ValueError: where the shards hold no masks, or are too few.
    """
    manifest = Manifest.read(folder)
    if not manifest.num_pairs:
        raise ValueError(f"The shards in {folder} hold no masks, so no region can be measured on them.")
    check_workers(len(manifest.shards), num_workers, folder)
    return DataLoader(
        in_order(folder, partial(_viewed, view)),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=partial(_collate_regions, view if view_masks else None),
    )


def _collate_regions(mask_view: View | None, samples: Sequence[tuple[Tensor, Sample]]) -> dict[str, Any]:
    """A batch as a dict of :class:`cefam.evaluator.RegionBatch`'s fields (Lightning moves dicts between devices)."""
    maps, owner, category, pair_mask, pair_label = [], [], [], [], []
    for index, (_, sample) in enumerate(samples):
        for mask in sample.masks:
            index_map = torch.from_numpy(mask.index_map)
            maps.append(mask_view.mask(index_map) if mask_view else index_map)
            labels = maps[-1].unique()  # type: ignore[no-untyped-call]
            labels = labels[labels > 0].tolist()
            pair_mask += [len(maps) - 1] * len(labels)
            pair_label += labels
            owner.append(index)
            category.append(mask.category)
    _check_one_size("photographs", [(s.id, image.shape[-2:]) for image, s in samples], "`data.resize` and `data.crop`")
    owners = [(samples[index][1].id, index_map.shape) for index, index_map in zip(owner, maps, strict=True)]
    _check_one_size("masks", owners, "`data.resize`, `data.crop` and `data.view_masks`")
    return {
        "image": torch.stack([image for image, _ in samples]),
        "ids": [sample.id for _, sample in samples],
        "masks": torch.stack(maps) if maps else torch.zeros(0, 1, 1, dtype=torch.int32),
        "mask_image": torch.tensor(owner, dtype=torch.long),
        "mask_category": category,
        "pair_mask": torch.tensor(pair_mask, dtype=torch.long),
        "pair_label": torch.tensor(pair_label, dtype=torch.long),
    }


def _check_one_size(what: str, sizes: Sequence[tuple[str, Sequence[int]]], advice: str) -> None:
    for name, size in sizes:
        if tuple(size) != tuple(sizes[0][1]):
            raise ValueError(
                f"The {what} of {sizes[0][0]} and {name} differ in size ({tuple(sizes[0][1])} and {tuple(size)}): set {advice}, so that "
                f"all have one."
            )
