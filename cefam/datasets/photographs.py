"""The photographs of a folder or of shards, in groups that a pass processes together."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cefam.datasets.contract import Manifest, Shard
from cefam.datasets.shards import read_shard
from cefam.datasets.sources.images import list_images
from cefam.errors import CefamError
from cefam.images.pictures import read_pixels
from cefam.images.views import drawn

Pictures = list[Callable[[], Tensor]]  # each call decodes one photograph: pixels (3, H, W), uint8


@dataclass(frozen=True)
class Group:
    """Photographs that are processed together: ``digest``, ``count``, and ``open``, which lists them undecoded."""

    digest: str
    count: int
    open: Callable[[], Pictures]


class _Views(Dataset[Tensor]):
    """Views of a list of pictures; each has its own random stream, independent of the number of workers."""

    def __init__(self, pictures: Pictures, first: int, seed: int, view: Any) -> None:
        self.pictures, self.first, self.seed, self.view = pictures, first, seed, view

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        return drawn(self.view, self.pictures[index](), f"{self.seed}/{self.first + index}")


def views_of(
    pictures: Pictures,
    view: Callable[[Tensor], Tensor],
    stream: int,
    first: int,
    batch_size: int,
    num_workers: int,
) -> DataLoader[Tensor]:
    """Batches of views; the randomness of a view depends only on ``stream`` and the index of its photograph."""
    return DataLoader(_Views(pictures, first, stream, view), batch_size=batch_size, num_workers=num_workers)


@dataclass(frozen=True)
class Photographs:
    """The photographs of a folder or of shards: ``groups`` in order, total ``count``, and a ``digest`` of all."""

    groups: list[Group]
    count: int
    digest: str

    @classmethod
    def read(cls, source: str | Path, size: int = 256) -> "Photographs":
        """List the photographs of a folder (``size`` per group) or of shards (one group per shard).

        Shards are identified by checksum, files only by name and size, since reading all files would be slow.
        """
        manifest = Manifest.find(source)
        if manifest is not None:
            groups = [Group(shard.sha256, shard.count, partial(_of_shard, shard)) for shard in manifest.placed(source)]
            digests = json.dumps([group.digest for group in groups])
            return cls(groups, manifest.num_samples, hashlib.sha256(digests.encode()).hexdigest())
        paths = [path for path, _ in list_images(source)]
        parts = [paths[start : start + size] for start in range(0, len(paths), size)]
        groups = [Group(_listed(source, part), len(part), partial(_of_files, part)) for part in parts]
        return cls(groups, len(paths), _listed(source, paths))


def _of_shard(shard: Shard) -> Pictures:
    return [sample.pixels for sample in read_shard(shard, masks=False)]


def _of_files(paths: Sequence[Path]) -> Pictures:
    return [partial(read_pixels, path, str(path)) for path in paths]


def _listed(source: str | Path, paths: Sequence[Path]) -> str:
    listed = [(path.relative_to(source).as_posix(), path.stat().st_size) for path in paths]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def device_named(name: str) -> torch.device:
    """Device of this name; "auto": the GPU of ``LOCAL_RANK`` if CUDA is available, else the CPU."""
    try:
        gpu = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        device = torch.device((gpu if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CefamError(
            f"There is no device {name!r} here ({str(error).splitlines()[0]}): try 'auto' or 'cpu'."
        ) from error
    return device
