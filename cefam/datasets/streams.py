"""Streams of training batches: samplers, and epochs over shards."""

import math
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, TypedDict

import torch
import webdataset as wds
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from cefam.datasets.contract import Manifest, Shard, decode
from cefam.datasets.shards import read_members
from cefam.datasets.world import world
from cefam.errors import CefamError, CefamWarning
from cefam.pictures import open_picture
from cefam.views import drawn

MIXED = 1000  # views of neighboring shards among which a batch is drawn


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


class Packed(TypedDict):
    """Views of several sizes: their ``pixels`` one after the other, uint8, and their ``shapes``. One tensor travels between processes."""

    pixels: Tensor
    shapes: list[list[int]]


def pack(views: Sequence[Tensor]) -> Packed:
    """Views (3, h, w), each of its own size, as one tensor."""
    pixels = torch.cat([view.flatten() for view in views]) if views else torch.zeros(0, dtype=torch.uint8)
    return {"pixels": pixels, "shapes": [list(view.shape) for view in views]}


def unpack(packed: Packed) -> list[Tensor]:
    """The inverse of :func:`pack`."""
    sizes = [math.prod(shape) for shape in packed["shapes"]]
    parts = torch.split(packed["pixels"], sizes)
    return [part.view(shape) for part, shape in zip(parts, packed["shapes"], strict=True)]


class Skipped:
    """Training samples that could not be read, in this process and epoch.

    Args:
        limit: at most so many.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise CefamError(f"max_skipped must be 0 or more, got {limit}.")
        self.limit, self.count = limit, 0

    def add(self, reasons: Sequence[str]) -> None:
        """Count samples, and say why each was left out.

        Raises:
            CefamError: where they are more than allowed.
        """
        for reason in reasons:
            self.count += 1
            if self.count > self.limit:
                raise CefamError(
                    f"More than {self.limit} sample(s) of an epoch cannot be read (`max_skipped`); the last: {reason}"
                )
            warnings.warn(f"Skipped: {reason}", CefamWarning, stacklevel=2)

    def taken(self) -> int:
        """How many there were; the next epoch counts afresh."""
        found, self.count = self.count, 0
        return found


class StartedLate:
    """A loader whose workers begin with its first batch, not with its iterator.

    A Trainer creates the first iterator of a run before it sets the epoch that a resumed run continues with.
    """

    def __init__(self, loader: DataLoader[Any], skipped: Skipped) -> None:
        self.loader, self.sampler, self.skipped = loader, loader.sampler, skipped

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for image, reasons in self.loader:
            self.skipped.add(reasons)
            yield {"image": image}


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
        skipped: counts what cannot be read; ``None``: nothing may be skipped.
        packed: views of several sizes: batches are :class:`Packed`.

    Raises:
        CefamError: where there is less than a batch for each process.
    """

    def __init__(
        self,
        folder: str,
        view: Callable[[Image.Image], Tensor],
        batch_size: int,
        num_workers: int,
        seed: int,
        skipped: Skipped | None = None,
        packed: bool = False,
    ) -> None:
        self.skipped, self.packed = skipped or Skipped(0), packed
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

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stream = f"{self.seed}/{self.epoch}"
        shards = _ShardViews(self._share(stream), self.view, stream, self.skipped.limit > 0)
        loader = DataLoader(shards, batch_size=None, num_workers=self.num_workers)
        mix = wds.shuffle(MIXED, initial=MIXED, rng=random.Random(f"{stream}/{self.rank}"))
        views = mix(self._read(loader))
        for _ in range(self.batches):
            batch = list(islice(views, self.batch_size))
            yield {"image": pack(batch) if self.packed else torch.stack(batch)}

    def _read(self, loader: Iterable[tuple[Packed, list[str]]]) -> Iterator[Tensor]:
        for views, reasons in loader:
            self.skipped.add(reasons)
            yield from unpack(views)

    def _share(self, stream: str) -> list[tuple[int, Shard]]:
        """As many shards as this process needs, each with its place in the order of all processes."""
        share: list[tuple[int, Shard]] = []
        for place, shard in islice(enumerate(self._order(stream)), self.rank, None, self.ranks):
            share.append((place, shard))
            if sum(shard.count for _, shard in share) >= self.batches * self.batch_size + self.skipped.limit:
                return share
        raise AssertionError("The order has no end.")

    def _order(self, stream: str) -> Iterator[Shard]:
        for repeat in count():
            yield from random.Random(f"{stream}/{repeat}").sample(self.shards, len(self.shards))


class _ShardViews(Dataset[tuple[Packed, list[str]]]):
    """The views of one shard after another, and why others are missing."""

    def __init__(
        self, share: Sequence[tuple[int, Shard]], view: Callable[[Image.Image], Tensor], stream: str, may_skip: bool
    ) -> None:
        self.share, self.view, self.stream, self.may_skip = share, view, stream, may_skip

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, index: int) -> tuple[Packed, list[str]]:
        place, shard = self.share[index]
        views, reasons = list[Tensor](), list[str]()
        try:
            for number, members in enumerate(read_members(shard)):
                try:
                    picture = decode(members, shard.layout, with_masks=False).picture()
                    views.append(drawn(self.view, picture, f"{self.stream}/{place}/{number}"))
                except CefamError as error:
                    self._skip(error, 1, reasons)
        except CefamError as error:  # the rest of the shard
            self._skip(error, shard.count - len(views) - len(reasons), reasons)
        return pack(views), reasons

    def _skip(self, error: CefamError, count: int, reasons: list[str]) -> None:
        if not self.may_skip:
            raise error
        reasons += [str(error)] * count


class RandomViews(Dataset[Any]):
    """Random views of photographs given by path; what is drawn depends on the number of the draw alone.

    Where ``may_skip``, the next photograph that can be read stands in for one that cannot.
    """

    def __init__(
        self, paths: Sequence[Path], view: Callable[[Image.Image], Tensor], seed: int, may_skip: bool = False
    ) -> None:
        self.paths, self.view, self.seed, self.may_skip = paths, view, seed, may_skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: int) -> tuple[Tensor, list[str]]:
        reasons = list[str]()
        while True:
            path = self.paths[(draw + len(reasons)) % len(self.paths)]
            try:
                return drawn(self.view, open_picture(path, str(path)), f"{self.seed}/{draw}"), reasons
            except CefamError as error:
                if not self.may_skip or len(reasons) == len(self.paths):
                    raise
                reasons.append(str(error))


def joined_views(
    join: Callable[[list[Tensor]], Any], found: Sequence[tuple[Tensor, list[str]]]
) -> tuple[Any, list[str]]:
    """A batch of :class:`RandomViews`: views stacked, or packed, and why others are missing."""
    return join([view for view, _ in found]), [reason for _, reasons in found for reason in reasons]


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
