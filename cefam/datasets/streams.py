"""Streams of training batches: epochs over files and over shards, and their samplers."""

import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from cefam.datasets.batches import batched
from cefam.datasets.contract import Manifest, Shard, decode
from cefam.datasets.handover import Draw, Handed, Handover, Views
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


class FileEpochs:
    """Batches of random views of photographs given by path; what an epoch holds depends on its number, the seed and the process alone.

    Args:
        paths: of photographs.
        views: drawn of every photograph.
        batch_size: views in a batch; what is left at the end of an epoch is dropped.
        num_workers: data workers.
        seed: of orders and views.
        skipped: counts what cannot be read; the next photograph that can be read stands in for one that cannot.
    """

    def __init__(
        self, paths: Sequence[Path], views: Views, batch_size: int, num_workers: int, seed: int, skipped: Skipped
    ) -> None:
        self.skipped, self.views = skipped, views
        self.sampler = ShuffledSampler(len(paths), seed, draws=True)  # a Trainer calls its set_epoch
        self.handover = Handover(num_workers, batch_size * views.size)
        self.loader = DataLoader(
            RandomViews(paths, views.draw, seed, skipped.limit > 0, self.handover),
            batch_size=None,
            sampler=_NumberedBatches(self.sampler, batch_size),
            num_workers=num_workers,
            prefetch_factor=self.handover.prefetch,
            persistent_workers=num_workers > 0,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Workers begin with the first batch, not with the iterator: a Trainer creates the first iterator of a run before it
        # sets the epoch that a resumed run continues with.
        for number, handed in enumerate(self.loader):
            self.skipped.add(handed.reasons)
            yield {"image": self.views.join(self.handover.take(number, handed))}


class _NumberedBatches(Sampler[Any]):
    """Full batches of draws, each with its number in the epoch."""

    def __init__(self, draws: DistributedSampler[Any], batch_size: int) -> None:
        self.draws, self.batch_size = draws, batch_size

    def __len__(self) -> int:
        return len(self.draws) // self.batch_size

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        return islice(enumerate(batched(self.draws, self.batch_size)), len(self))


class ShardEpochs:
    """Batches of random views from shards: what an epoch holds depends on its number, the seed and the process alone.

    Whole shards are read, in an order drawn for the epoch; every process takes every n-th shard, and continues with another
    order at the end, so that all processes have the same number of batches and none waits for the others. A buffer mixes the views
    of neighboring shards. A data worker hands over a shard's views at once: 38 MB for 256 of side 224.

    Args:
        folder: of shards.
        views: drawn of every photograph.
        batch_size: views in a batch; what is left at the end of an epoch is dropped.
        num_workers: data workers.
        seed: of orders and views.
        skipped: counts what cannot be read; ``None``: nothing may be skipped.

    Raises:
        CefamError: where there is less than a batch for each process.
    """

    def __init__(
        self,
        folder: str,
        views: Views,
        batch_size: int,
        num_workers: int,
        seed: int,
        skipped: Skipped | None = None,
    ) -> None:
        self.skipped, self.views = skipped or Skipped(0), views
        self.shards, self.batch_size = Manifest.read(folder).placed(folder), batch_size
        self.num_workers, self.seed, self.epoch = num_workers, seed, 0
        self.rank, self.ranks = world()
        self.batches = count_batches(sum(shard.count for shard in self.shards), batch_size, folder)
        self.handover = Handover(num_workers, max(shard.count for shard in self.shards) * views.size)
        self.sampler = self  # a Trainer calls set_epoch on the sampler

    def set_epoch(self, epoch: int) -> None:
        """Choose what comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stream = f"{self.seed}/{self.epoch}"
        shards = _ShardViews(self._share(stream), self.views.draw, stream, self.skipped.limit > 0, self.handover)
        loader = DataLoader(
            shards, batch_size=None, num_workers=self.num_workers, prefetch_factor=self.handover.prefetch
        )
        mix = wds.shuffle(MIXED, initial=MIXED, rng=random.Random(f"{stream}/{self.rank}"))
        views = mix(self._read(loader))
        for _ in range(self.batches):
            yield {"image": self.views.join(list(islice(views, self.batch_size)))}

    def _read(self, loader: Iterable[Handed]) -> Iterator[Tensor]:
        for number, handed in enumerate(loader):
            self.skipped.add(handed.reasons)
            yield from (view.clone() for view in self.handover.take(number, handed))

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


class _ShardViews(Dataset[Handed]):
    """The views of one shard after another, and why others are missing."""

    def __init__(
        self, share: Sequence[tuple[int, Shard]], draw: Draw, stream: str, may_skip: bool, handover: Handover
    ) -> None:
        self.share, self.draw, self.stream, self.may_skip, self.handover = share, draw, stream, may_skip, handover

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, index: int) -> Handed:
        reasons = list[str]()
        return self.handover.put(index, self._drawn(*self.share[index], reasons), reasons)

    def _drawn(self, place: int, shard: Shard, reasons: list[str]) -> Iterator[Tensor]:
        seen = 0
        try:
            for number, members in enumerate(read_members(shard)):
                seen = number + 1
                try:
                    picture = decode(members, shard.layout, with_masks=False).picture()
                    yield drawn(self.draw, picture, f"{self.stream}/{place}/{number}")
                except CefamError as error:
                    self._skip(error, 1, reasons)
        except CefamError as error:  # the rest of the shard
            self._skip(error, shard.count - seen, reasons)

    def _skip(self, error: CefamError, count: int, reasons: list[str]) -> None:
        if not self.may_skip:
            raise error
        reasons += [str(error)] * count


class RandomViews(Dataset[Handed]):
    """Batches of random views of photographs given by path; what is drawn depends on the number of the draw alone.

    Where ``may_skip``, the next photograph that can be read stands in for one that cannot.
    """

    def __init__(self, paths: Sequence[Path], draw: Draw, seed: int, may_skip: bool, handover: Handover) -> None:
        self.paths, self.draw, self.seed, self.may_skip, self.handover = paths, draw, seed, may_skip, handover

    def __getitem__(self, batch: tuple[int, list[int]]) -> Handed:
        number, draws = batch
        reasons = list[str]()
        return self.handover.put(number, (self._drawn(draw, reasons) for draw in draws), reasons)

    def _drawn(self, draw: int, reasons: list[str]) -> Tensor:
        for place in range(draw, draw + len(self.paths)):
            path = self.paths[place % len(self.paths)]
            try:
                return drawn(self.draw, open_picture(path, str(path)), f"{self.seed}/{draw}")
            except CefamError as error:
                if not self.may_skip:
                    raise
                reasons.append(str(error))
        raise CefamError(f"None of the photographs can be read; the last: {reasons[-1]}")


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
