"""Existing webdataset shards, used in place: only a manifest is written."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cefam.datasets import storage
from cefam.datasets.contract import Manifest, Shard, decode
from cefam.datasets.shards import finish, read_members
from cefam.errors import CefamError, MissingError
from cefam.io.passes import Pass, Unit, workers


def describe(source: str, target: Path, work: Pass, num_workers: int) -> Manifest:
    """Read existing shards once and write their manifest.

    Args:
        source: a folder, or a pattern of paths or URLs.
        target: folder of the manifest.
        work: the pass, which can resume an interrupted run.
        num_workers: reading processes.

    Raises:
        MissingError: if there is no shard.
        CefamError: if a shard holds no photographs.
    """
    root, names = _listed(source)
    units = [_unit(number, storage.join(root, name), name) for number, name in enumerate(names)]
    with workers(num_workers) as pool:
        entries = [entry["shard"] for entry in work.over(units, "prepare webdataset", len(units), pool)]
    manifest = finish(Manifest(source=f"webdataset: {source}", layout="webdataset", root=root), target, entries)
    for unit in units:
        (target / unit.file).unlink()
    return manifest


def _unit(number: int, place: str, name: str) -> Unit:
    """Unit of work for one shard; a local shard is read again if its size has changed."""
    length = "" if storage.is_url(place) else Path(place).stat().st_size
    return Unit(f"shard-{number:06d}.json", f"{place} {length}", 1, partial(_read, place, name))


def shards_of_others(source: str) -> list[Shard]:
    """Shards of a folder or pattern that were not read, so with unknown numbers of samples."""
    root, names = _listed(source)
    return [Shard(storage.join(root, name), layout="webdataset") for name in names]


def _listed(source: str) -> tuple[str, list[str]]:
    """Folder of the shards, and their paths relative to it."""
    from braceexpand import braceexpand

    root, _, pattern = source.rpartition("/") if not Path(source).is_dir() else (source, "", "*.tar")
    try:
        found = [name for each in braceexpand(pattern) for name in _matching(root, each)]
    except ValueError as error:
        raise CefamError(f"{source} is not a pattern: {error}.") from error
    if not found:
        raise MissingError(f"No shard (.tar) was found in {source}.")
    return (root if storage.is_url(root) else str(Path(root).resolve())), list(dict.fromkeys(found))


def _matching(root: str, pattern: str) -> Iterator[str]:
    if storage.is_url(root):
        yield pattern
    else:
        yield from sorted(path.relative_to(root).as_posix() for path in Path(root or ".").glob(pattern))


def _read(place: str, name: str, target: Path) -> dict[str, Any]:
    """Count the samples of a shard and write its manifest entry."""
    with storage.local(place) as path:
        digest, count = storage.digest_of(path), 0
        for members in read_members(Shard(str(path))):
            decode({**members, "__url__": place}, "webdataset")
            count += 1
    if not count:
        raise CefamError(f"{place} holds no sample.")
    target.touch()  # the journal of the pass holds the entry
    return {"shard": {"file": name, "samples": count, "pairs": 0, "mask_sizes": [], "sha256": digest}}
