"""Training batches of random views: from files through torch's DataLoader, from shards through a webdataset pipeline.

The contents of an epoch depend only on seed, epoch number and process rank, not on the number of data workers.
"""

import multiprocessing
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, Self

import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from cefam.datasets.contract import Shard, decode
from cefam.datasets.samplers import ShuffledSampler, world
from cefam.datasets.shards import read_members
from cefam.errors import CefamError, CefamWarning
from cefam.images.pictures import read_pixels
from cefam.images.views import drawn

Draw = Callable[[Tensor], Tensor]  # pixels of a photograph (3, H, W), uint8 -> a random view (3, h, w)
SHUFFLED = 1000  # views in the shuffle buffer


def count_batches(rows: int, batch_size: int, folder: str) -> int:
    """Number of full training batches per process."""
    ranks = world()[1]
    if batch_size < 1 or rows < ranks * batch_size:
        wanted = "a smaller" if batch_size > 0 else "a positive"
        raise CefamError(
            f"{folder} holds {rows} rows or images, which makes no batch of {batch_size} for each of {ranks} process(es): set {wanted} "
            f"`data.init_args.batch_size`."
        )
    return rows // (ranks * batch_size)


class Skipped:
    """Counts the unreadable training samples of an epoch in this process, up to ``limit``."""

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise CefamError(f"max_skipped must be 0 or more, got {limit}.")
        self.limit, self.epoch, self.count = limit, -1, 0

    def add(self, reasons: Sequence[str], epoch: int) -> None:
        """Count samples, and warn with the reason for each."""
        if epoch != self.epoch:
            self.epoch, self.count = epoch, 0
        for reason in reasons:
            self.count += 1
            if self.count > self.limit:
                raise CefamError(
                    f"More than {self.limit} sample(s) of an epoch cannot be read (`max_skipped`); the last: {reason}"
                )
            warnings.warn(f"Skipped: {reason}", CefamWarning, stacklevel=2)


class Views(Dataset[dict[str, Any]]):
    """Views of photographs given by path; the randomness of a view depends only on seed and draw number.

    With ``may_skip``, an unreadable photograph is replaced by the next readable one.
    """

    def __init__(self, paths: Sequence[Path], view: Draw, seed: int, may_skip: bool) -> None:
        self.paths, self.view, self.seed, self.may_skip = paths, view, seed, may_skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        reasons = list[str]()
        for place in range(draw, draw + len(self.paths)):
            path = self.paths[place % len(self.paths)]
            try:
                view = drawn(self.view, read_pixels(path, str(path)), f"{self.seed}/{draw}")
                return {"image": view, "reasons": reasons}
            except CefamError as error:
                if not self.may_skip:
                    raise
                reasons.append(str(error))
        raise CefamError(f"None of the photographs can be read; the last: {reasons[-1]}")


def collate_views(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Items of :class:`Views` as a batch: ``image`` (B, 3, h, w), and ``reasons`` for skipped photographs."""
    return {
        "image": default_collate([item["image"] for item in items]),
        "reasons": [reason for item in items for reason in item["reasons"]],
    }


class FileLoader:
    """Batches of random views of photographs given by path; views that are left at the end of an epoch are dropped.

    The next photograph that can be read replaces one that cannot; ``skipped`` counts them.
    """

    def __init__(
        self, paths: Sequence[Path], view: Draw, batch_size: int, num_workers: int, seed: int, skipped: Skipped
    ) -> None:
        self.skipped, self.sampler = skipped, ShuffledSampler(len(paths), seed, draws=True)
        self.loader = DataLoader(
            Views(paths, view, seed, skipped.limit > 0),
            batch_size=batch_size,
            sampler=self.sampler,
            collate_fn=collate_views,
            drop_last=True,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A Trainer creates the first iterator of a resumed run before it sets the epoch: workers begin with the first batch.
        for batch in self.loader:
            reasons = batch.pop("reasons")
            self.skipped.add(reasons, self.sampler.epoch)
            yield {**batch, "skipped": len(reasons)}


class EpochShards(IterableDataset[tuple[Shard, str]]):
    """The shards that a process reads in an epoch, each with the name of its random stream.

    The order of the shards depends on seed and epoch. Each of n processes takes every n-th shard, and continues with a new
    order at the end of the list, until it has enough samples, so all processes get the same number of batches.
    """

    def __init__(self, shards: Sequence[Shard], seed: int, samples: int) -> None:
        self.shards, self.seed, self.samples = shards, seed, samples
        self.rank, self.ranks = world()
        self.epoch = multiprocessing.Value("q", 0)  # shared with persistent workers

    def __iter__(self) -> Iterator[tuple[Shard, str]]:
        stream, missing = f"{self.seed}/{self.epoch.value}", self.samples
        for place, shard in islice(enumerate(self._order(stream)), self.rank, None, self.ranks):
            yield shard, f"{stream}/{place}"
            missing -= max(shard.count, 0)
            if missing <= 0:
                return

    def _order(self, stream: str) -> Iterator[Shard]:
        for repeat in count():
            yield from random.Random(f"{stream}/{repeat}").sample(self.shards, len(self.shards))


class ShardViews:
    """Maps a shard to a random view of each photograph (N, 3, h, w), and the reasons for skipped ones.

    Data workers return whole shards, so the order of the views does not depend on the number of workers.
    """

    def __init__(self, view: Draw, may_skip: bool) -> None:
        self.view, self.may_skip = view, may_skip

    def __call__(self, item: tuple[Shard, str]) -> tuple[Tensor | None, list[str]]:
        """Read the shard in a data worker."""
        shard, stream = item
        views, reasons, number = list[Tensor](), list[str](), -1
        try:
            for number, members in enumerate(read_members(shard)):  # webdataset's tarfile_to_samples
                try:
                    pixels = decode(members, shard.layout, with_masks=False).pixels()
                    views.append(drawn(self.view, pixels, f"{stream}/{number}"))
                except CefamError as error:
                    if not self.may_skip:
                        raise
                    reasons.append(str(error))
            if number < 0:
                raise CefamError(f"The shard {shard.place} holds no photograph: remove it.")
        except CefamError as error:
            if not self.may_skip:
                raise
            reasons += [str(error)] * max(1, shard.count - number - 1)  # the rest of the shard
        return default_collate(views) if views else None, reasons


class ShardLoader:
    """Batches of random views from shards.

    A data worker returns the views of a shard at once: 38 MB for 256 photographs of side 224.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        view: Draw,
        batch_size: int,
        batches: int,
        num_workers: int,
        seed: int,
        skipped: Skipped,
    ) -> None:
        self.batch_size, self.batches, self.skipped = batch_size, batches, skipped
        self.reasons = list[str]()  # since the last batch
        self.shards = EpochShards(shards, seed, batches * batch_size + skipped.limit)
        self.loader = wds.WebLoader(
            wds.DataPipeline(self.shards, wds.split_by_worker, wds.map(ShardViews(view, skipped.limit > 0))),
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )

    @property
    def sampler(self) -> Self:
        """The object whose ``set_epoch`` the Trainer calls; an attribute would be a reference cycle and keep workers alive."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.shards.epoch.value = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A resuming Trainer creates the iterator before it sets the epoch, so workers start only at the first batch.
        self.reasons.clear()
        rng = random.Random(f"{self.shards.seed}/{self.shards.epoch.value}/{self.shards.rank}")
        views = wds.shuffle(SHUFFLED, initial=SHUFFLED, rng=rng)(self._views())
        batches = wds.batched(self.batch_size, collation_fn=default_collate, partial=False)(views)
        for batch in islice(batches, self.batches):
            yield {"image": batch.pin_memory() if torch.cuda.is_available() else batch, "skipped": len(self.reasons)}
            self.reasons.clear()

    def _views(self) -> Iterator[Tensor]:
        for views, reasons in self.loader:
            self.skipped.add(reasons, self.shards.epoch.value)
            self.reasons += reasons
            # Clone: otherwise a buffered view keeps the shared memory of its whole shard alive.
            yield from (view.clone() for view in (() if views is None else views))
