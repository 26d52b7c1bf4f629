"""Write and read shards that follow the sample contract."""

import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cefam.datasets import storage
from cefam.datasets.contract import MANIFEST, Manifest, MaskCut, Sample, Shard, check, decode, encode
from cefam.errors import CefamError, ExistsError
from cefam.io.files import locked, replacing


def write_shard(path: Path, samples: Iterable[Sample], first: int) -> dict[str, Any]:
    """Write one shard atomically; the keys of its samples are numbered from ``first``.

    Returns:
        The manifest entry of the shard: file, samples, pairs, mask sizes, sha256.
    """
    import webdataset as wds

    count = pairs = 0
    sizes: set[tuple[int, ...]] = set()
    with replacing(path) as temporary, temporary.open("wb") as file:
        with wds.TarWriter(file, mtime=0, encoder=False) as tar:
            for sample in samples:
                check(sample)
                tar.write(encode(sample, f"{first + count:08d}"))
                count += 1
                pairs += sum(len(mask.labels) for mask in sample.masks)
                sizes |= {mask.index_map.shape for mask in sample.masks}
        file.flush()
        digest = storage.digest_of(temporary)
    return {
        "file": path.name, "samples": count, "pairs": pairs, "mask_sizes": sorted(map(list, sizes)), "sha256": digest,
    }  # fmt: skip


def finish(manifest: Manifest, folder: Path, shards: list[dict[str, Any]]) -> Manifest:
    """Write the manifest of complete shards."""
    if not shards:
        raise CefamError(f"No sample was found in {manifest.source}: nothing was written to {folder}.")
    sizes = {tuple(size) for shard in shards for size in shard["mask_sizes"]}
    manifest.mask_size = list(sizes.pop()) if len(sizes) == 1 else None
    manifest.shards = [{key: value for key, value in shard.items() if key != "mask_sizes"} for shard in shards]
    manifest.num_samples = sum(shard["samples"] for shard in shards)
    manifest.num_pairs = sum(shard["pairs"] for shard in shards)
    manifest.write(folder)
    return manifest


def new_folder(folder: str | Path) -> Path:
    """Create a folder for shards."""
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        raise ExistsError(f"{folder} already holds a finished set of shards: name another folder, or remove it.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shard_name(index: int) -> str:
    """The file name of a shard."""
    return f"shard-{index:06d}.tar"


class ShardWriter:
    """Context manager that writes samples into shards, and the manifest at the end.

    Args:
        folder: output folder, created if needed; must not hold a finished set.
        source: description of the data, for the manifest.
        samples_per_shard: samples in a shard; data workers read whole shards, so write at least ranks x workers shards.
        labels: the vocabulary of the index maps: dicts with number, name and category.
        mask_cut: how masks are resized with their photographs; see :class:`cefam.datasets.contract.Manifest`.

    Raises:
        ExistsError: if the folder already holds a finished set.
    """

    def __init__(
        self,
        folder: str | Path,
        source: str,
        samples_per_shard: int = 256,
        labels: Iterable[dict[str, Any]] = (),
        mask_cut: MaskCut = "nearest",
    ) -> None:
        check_size(samples_per_shard)
        self.folder, self.samples_per_shard = new_folder(folder), samples_per_shard
        self.manifest = Manifest(source=source, labels=list(labels), mask_cut=mask_cut)
        self._lock = ExitStack()
        self._waiting: list[Sample] = []
        self._ids: set[str] = set()
        self._shards: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._lock.enter_context(locked(self.folder))
        new_folder(self.folder)  # another writer may have finished in the meantime
        return self

    def write(self, sample: Sample) -> None:
        """Add one sample.

        Raises:
            CefamError: for an id that is already used, or a sample that cannot be stored.
        """
        if sample.id in self._ids:
            raise CefamError(f"There are two samples {sample.id!r}: ids name the pairs in all tables and must differ.")
        check(sample)
        self._ids.add(sample.id)
        self._waiting.append(sample)
        if len(self._waiting) == self.samples_per_shard:
            self._write()

    def _write(self) -> None:
        index = len(self._shards)
        path = self.folder / shard_name(index)
        self._shards.append(write_shard(path, self._waiting, index * self.samples_per_shard))
        self._waiting = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if kind is None:
                if self._waiting:
                    self._write()
                finish(self.manifest, self.folder, self._shards)


def check_size(samples_per_shard: int) -> None:
    """Reject sizes below 1."""
    if samples_per_shard < 1:
        raise CefamError(f"samples_per_shard must be positive, got {samples_per_shard}.")


def read_members(shard: Shard) -> Iterator[dict[str, Any]]:
    """Undecoded samples of a shard, as read by webdataset: contents by suffix, with ``__key__`` and ``__url__``."""
    import webdataset as wds

    count, again = 0, "copy the shards again, or run `cefam prepare` again."
    with storage.local(shard.place, shard.sha256) as path:
        try:
            for members in wds.tarfile_to_samples()([{"url": str(path.absolute())}]):
                count += 1
                yield {**members, "__url__": shard.place}
        except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError) as error:  # damaged tar
            raise CefamError(f"The shard {shard.place} cannot be read ({error.args[0]}): {again}") from error
    if count != shard.count >= 0:
        raise CefamError(f"{shard.place} holds {count} samples, its manifest says {shard.count}: {again}")


def read_shard(place: Shard | str | Path, masks: bool = True) -> Iterator[Sample]:
    """All samples of one shard, in order, with or without their masks; see :func:`read_members`."""
    shard = place if isinstance(place, Shard) else Shard(str(place))
    return (decode(members, shard.layout, masks) for members in read_members(shard))


def read_samples(shards: Sequence[Shard], first: int, stop: int, masks: bool = True) -> Iterator[Sample]:
    """The samples ``first`` to ``stop`` of a folder of shards, in order; shards that hold none of them are not opened."""
    before = 0
    for shard in shards:
        after = before + shard.count
        if first < after and before < stop:
            # Reading a shard to its end also checks its number of samples.
            members = islice(read_members(shard), max(0, first - before), None if stop >= after else stop - before)
            yield from (decode(each, shard.layout, masks) for each in members)
        before = after
