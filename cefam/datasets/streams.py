"""Streams of training batches: epochs over files and over shards."""

import math
import random
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Self

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from cefam.datasets.batches import batched
from cefam.datasets.contract import Manifest, Sample, Shard, decode
from cefam.datasets.handover import Draw, Handed, Handover, Views
from cefam.datasets.samplers import ShuffledSampler
from cefam.datasets.shards import read_members
from cefam.datasets.world import world
from cefam.errors import CefamError, CefamWarning
from cefam.pictures import read_pixels
from cefam.views import drawn

AHEAD = 64  # samples that are read before the first is decoded: taking turns, both would find their code and data out of the caches
MIXED = 1000  # views of neighboring shards that a batch is drawn from, at least; whole shards


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


def mix(tasks: Iterable[Sequence[Tensor]], depth: int, rng: random.Random) -> Iterator[list[Tensor]]:
    """Views in a random order: each waits until a random number of further tasks, less than ``depth``, is taken.

    (A buffer from which one is drawn when one comes in, as webdataset's ``shuffle``, holds some views for long. With a bound, they can
    stay in shared memory until they are used.)

    Args:
        tasks: views of any shape, task by task.
        depth: at least 1; with 1, views are mixed within their task.
        rng: source of the order.

    Returns:
        For every task, the views that have waited long enough; at last those that are left.
    """
    waiting = list[tuple[float, Tensor]]()
    for taken, views in enumerate(tasks):
        waiting += [(taken + depth * rng.random(), view) for view in views]
        waiting.sort(key=itemgetter(0))
        ready = bisect_left(waiting, taken + 1, key=itemgetter(0))
        yield [view for _, view in waiting[:ready]]
        del waiting[:ready]
    yield [view for _, view in waiting]


class ShardEpochs:
    """Batches of random views from shards: what an epoch holds depends on its number, the seed and the process alone.

    Whole shards are read, in an order drawn for the epoch; every process takes every n-th shard, and continues with another
    order at the end, so that all processes have the same number of batches and none waits for the others. The views of neighboring
    shards are mixed. A data worker hands over a shard's views at once, 38 MB for 256 of side 224, and they stay there while they wait.

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
        self.seed, self.epoch = seed, 0
        self.rank, self.ranks = world()
        self.batches = count_batches(sum(shard.count for shard in self.shards), batch_size, folder)
        largest = max(shard.count for shard in self.shards)
        self.depth = 1 + math.ceil(MIXED / largest)
        self.handover = Handover(num_workers, largest * views.size, kept=self.depth + 1)
        self.tasks = list[_Task]()  # of the epoch
        self.loader = DataLoader(
            _ShardViews(views.draw, self.skipped.limit > 0, self.handover),
            batch_size=None,
            sampler=self.tasks,
            num_workers=num_workers,
            prefetch_factor=self.handover.prefetch,
            persistent_workers=num_workers > 0,
        )

    @property
    def sampler(self) -> Self:
        """What a Trainer calls ``set_epoch`` of; as an attribute it would be a cycle, and workers would outlive their loader."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose what comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stream = f"{self.seed}/{self.epoch}"
        self.tasks[:] = self._share(stream)
        mixed = mix(self._read(), self.depth, random.Random(f"{stream}/{self.rank}"))
        yield from islice(self._batches(mixed), self.batches)

    def _batches(self, parts: Iterable[list[Tensor]]) -> Iterator[dict[str, Any]]:
        views = list[Tensor]()
        for part in parts:
            left = len(views)
            views += part
            while len(views) >= self.batch_size:
                yield {"image": self.views.join(views[: self.batch_size])}
                del views[: self.batch_size]
                left = max(left - self.batch_size, 0)
            views[:left] = [view.clone() for view in views[:left]]  # left again: the next task may be written over them

    def _read(self) -> Iterator[list[Tensor]]:
        for number, handed in enumerate(self.loader):
            self.skipped.add(handed.reasons)
            yield self.handover.take(number, handed)

    def _share(self, stream: str) -> Iterator["_Task"]:
        """As many shards as this process needs; their random streams depend on their place in the order of all processes."""
        missing = self.batches * self.batch_size + self.skipped.limit
        for place, shard in islice(enumerate(self._order(stream)), self.rank, None, self.ranks):
            yield _Task(place // self.ranks, shard, f"{stream}/{place}")
            missing -= shard.count
            if missing <= 0:
                return

    def _order(self, stream: str) -> Iterator[Shard]:
        for repeat in count():
            yield from random.Random(f"{stream}/{repeat}").sample(self.shards, len(self.shards))


class _Task(NamedTuple):
    """A shard to be read: its number in the epoch of a process, and the name of its random stream."""

    number: int
    shard: Shard
    stream: str


class _ShardViews(Dataset[Handed]):
    """The views of one shard after another, and why others are missing."""

    def __init__(self, draw: Draw, may_skip: bool, handover: Handover) -> None:
        self.draw, self.may_skip, self.handover = draw, may_skip, handover

    def __getitem__(self, task: _Task) -> Handed:
        reasons = list[str]()
        return self.handover.put(task.number, self._drawn(task.shard, task.stream, reasons), reasons)

    def _drawn(self, shard: Shard, stream: str, reasons: list[str]) -> Iterator[Tensor]:
        for block in batched(enumerate(_samples(shard)), AHEAD):
            for number, sample in block:
                try:
                    if isinstance(sample, CefamError):
                        raise sample
                    yield drawn(self.draw, sample.pixels(), f"{stream}/{number}")
                except CefamError as error:
                    if not self.may_skip:
                        raise
                    reasons.append(str(error))


def _samples(shard: Shard) -> Iterator[Sample | CefamError]:
    """The samples of a shard, and in place of each that cannot be read the reason."""
    seen = 0
    try:
        for members in read_members(shard):
            seen += 1
            try:
                sample: Sample | CefamError = decode(members, shard.layout, with_masks=False)
            except CefamError as error:
                sample = error
            yield sample
    except CefamError as error:  # the rest of the shard
        yield from [error] * max(1, shard.count - seen)


class RandomViews(Dataset[Handed]):
    """Batches of random views of photographs given by path; what is drawn depends on the number of the draw alone.

    Where ``may_skip``, the next photograph that can be read stands in for one that cannot.
    """

    def __init__(self, paths: Sequence[Path], draw: Draw, seed: int, may_skip: bool, handover: Handover) -> None:
        self.paths, self.draw, self.seed, self.may_skip, self.handover = paths, draw, seed, may_skip, handover

    def __getitem__(self, batch: tuple[int, list[int]]) -> Handed:
        number, draws = batch
        reasons = list[str]()
        return self.handover.put(number, self._views(draws, reasons), reasons)

    def _views(self, draws: Sequence[int], reasons: list[str]) -> Iterator[Tensor]:
        for block in batched(draws, AHEAD):
            contents = [_read(self._path(draw)) for draw in block]
            yield from (self._drawn(draw, content, reasons) for draw, content in zip(block, contents, strict=True))

    def _drawn(self, draw: int, content: bytes | Path, reasons: list[str]) -> Tensor:
        for place in range(draw, draw + len(self.paths)):
            path = self._path(place)
            try:
                pixels = read_pixels(content if place == draw else path, str(path))
                return drawn(self.draw, pixels, f"{self.seed}/{draw}")
            except CefamError as error:
                if not self.may_skip:
                    raise
                reasons.append(str(error))
        raise CefamError(f"None of the photographs can be read; the last: {reasons[-1]}")

    def _path(self, draw: int) -> Path:
        return self.paths[draw % len(self.paths)]


def _read(path: Path) -> bytes | Path:
    """What a file holds; or, where it cannot be read, its path: who opens it learns why."""
    try:
        return path.read_bytes()
    except OSError:
        return path


class ImageFiles(Dataset[Any]):
    """Photographs given by path, each through a view."""

    def __init__(self, paths: Sequence[Any], view: Callable[..., Tensor]) -> None:
        self.paths, self.view = paths, view

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        return {"image": self.view(read_pixels(path, str(path)))}
