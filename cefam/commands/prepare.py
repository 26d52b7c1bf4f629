"""``cefam prepare``: a raw data set -> shards."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cefam.commands._options import call
from cefam.datasets.contract import Manifest
from cefam.datasets.shards import check_size, finish, new_folder, shard_name, write_shard
from cefam.datasets.sources import Source, open_source
from cefam.errors import CefamError
from cefam.passes import Pass, Unit


def prepare(
    kind: str,
    source: str,
    folder: str,
    samples_per_shard: int = 256,
    count: int | None = None,
    masks: Sequence[str] | None = None,
    ignore: int | None = None,
    reading: Literal["published", "paper"] | None = None,
    classes: str | None = None,
    split: str | None = None,
) -> Manifest:
    """Convert a raw data set into shards. A stopped run is taken up where it stopped.

    Args:
        kind: "images" (a folder of images, one folder a class or flat), "broden" (its on-disk format), "brodenette" (drawn scenes),
            "imagenet" (the original tars, or one folder per wnid) or "imagenet_s" (ImageNet-S 50, 300 or 919).
        source: where the raw data lies; of Brodenette, a split: train, val, test, captioned, retrieval, evaluation.
        folder: where the shards go.
        samples_per_shard: samples in a shard.
        count: how many scenes of Brodenette (200). Other data is taken whole.
        masks: categories of the masks, of Broden and Brodenette (color, object, part, material); [] for none.
        ignore: a number in Broden's mask files whose pixels are not measured (255, for example).
        reading: of ImageNet-S's masks: "published" (default) or "paper".
        classes: a text file with the wnids of the ImageNet-S subset, where folders are missing.
        split: of ImageNet-S: "validation" (default), "test" or "train-semi".
    """
    if masks is not None and len(set(masks)) < len(masks):
        raise CefamError(f"A category is in masks twice: {list(masks)}.")
    check_size(samples_per_shard)
    opened = open_source(
        kind, str(source), count=count, masks=masks, ignore=ignore, reading=reading, classes=classes, split=split
    )
    target = new_folder(folder)
    if not len(opened):
        raise CefamError(f"No sample was found in {opened.name}: nothing was written to {target}.")
    with Pass(target, ["prepare", samples_per_shard]) as work:
        new_folder(target)  # another run may have finished since
        entries = work.over(_units(opened, samples_per_shard), f"prepare {kind}", len(opened))
        manifest = Manifest(source=opened.name, labels=opened.labels, mask_cut=opened.mask_cut)
        finish(manifest, target, list(entries))
        work.forget()
    print(
        f"{manifest.num_samples} images with {manifest.num_pairs} (mask, label) pairs in {len(manifest.shards)} shard(s): {target}"
    )
    for note in opened.notes():
        print(note)
    return manifest


def _units(source: Source, samples_per_shard: int) -> Iterator[Unit]:
    """One unit per shard."""
    for index, start in enumerate(range(0, len(source), samples_per_shard)):
        stop = min(start + samples_per_shard, len(source))
        write = partial(_write, source, start, stop)
        yield Unit(shard_name(index), source.digest(start, stop), stop - start, write)


def _write(source: Source, start: int, stop: int, path: Path) -> dict[str, Any]:
    return write_shard(path, source.samples(start, stop), start)


def run(arguments: list[str]) -> None:
    """Run the verb with these options."""
    call("prepare", prepare, arguments)
