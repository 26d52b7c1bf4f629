"""``cefam prepare``: convert a raw data set into shards."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cefam.concepts.vocabularies import write_labels
from cefam.datasets.contract import Manifest
from cefam.datasets.shards import check_size, finish, new_folder, shard_name, write_shard
from cefam.datasets.sources import Source, open_source
from cefam.datasets.webdatasets import describe
from cefam.errors import CefamError
from cefam.io.passes import Pass, Unit, workers


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
    shuffle: bool | None = None,
    num_workers: int = 0,
) -> Manifest:
    """Convert a raw data set into shards. A stopped run can be resumed.

    Args:
        kind: "images" (a folder of images, flat or with one folder per class), "broden" (its on-disk format, or a zip of
            it), "brodenette" (drawn scenes), "imagenet" (the original tars, or one folder per wnid), "imagenet_s"
            (ImageNet-S 50, 300 or 919), "awa2", "described" (any folder with masks, including COCO and PASCAL VOC; see
            docs/guide/data.md), or "webdataset" (existing shards of photographs and classes, which are used in place).
        source: location of the raw data; for Brodenette a split: train, val, test, captioned, retrieval, evaluation; for
            "described" the YAML file; for "webdataset" a folder, or a pattern of shards ("wds/train-*.tar",
            "https://host/train-{000..123}.tar").
        folder: output folder for the shards.
        samples_per_shard: samples per shard.
        count: number of Brodenette scenes (default: 200). Other data sets are converted completely.
        masks: mask categories of Broden and Brodenette (color, object, part, material); [] for none.
        ignore: a number in Broden's mask files whose pixels are not measured, e.g. 255.
        reading: interpretation of ImageNet-S's masks: "published" (default) or "paper".
        classes: a text file with the wnids of the ImageNet-S subset, if folders are missing.
        split: split of ImageNet-S: "validation" (default), "test" or "train-semi".
        shuffle: write samples in a fixed random order; by default only for "imagenet". Training batches from shards sorted
            by class contain few classes. On disks with slow seeks, false is faster.
        num_workers: number of processes that write or read shards; the result does not depend on it.
    """
    if masks is not None and len(set(masks)) < len(masks):
        raise CefamError(f"A category is in masks twice: {list(masks)}.")
    check_size(samples_per_shard)
    options = {"count": count, "masks": masks, "ignore": ignore, "reading": reading, "classes": classes, "split": split}
    for option, value in {**options, "shuffle": shuffle}.items():
        if kind == "webdataset" and value is not None:
            raise CefamError(
                f"{option} does not apply to 'webdataset': its shards are used where they lie. Leave it out."
            )
    opened = None if kind == "webdataset" else open_source(kind, str(source), **options)
    if opened is not None and (opened.shuffle_by_default if shuffle is None else shuffle):
        opened.shuffle()
    target = new_folder(folder)
    with Pass(target, ["prepare", samples_per_shard]) as work:
        new_folder(target)  # another run may have finished in the meantime
        if opened is None:
            manifest = describe(str(source), target, work, num_workers)
        else:
            manifest = _convert(opened, target, samples_per_shard, work, num_workers)
        work.forget()
    print(
        f"{manifest.num_samples} images with {manifest.num_pairs} (mask, label) pairs in {len(manifest.shards)} shard(s): {target}"
    )
    return manifest


def _convert(source: Source, target: Path, samples_per_shard: int, work: Pass, num_workers: int) -> Manifest:
    """Write the shards and their manifest, and print the source's notes."""
    if not len(source):
        raise CefamError(f"No sample was found in {source.name}: nothing was written to {target}.")
    starts = range(0, len(source), samples_per_shard)
    units = [_unit(source, index, start, samples_per_shard) for index, start in enumerate(starts)]
    with workers(num_workers, partial(_use, source)) as pool:
        entries = list(work.over(units, f"prepare {source.name}", len(source), pool))
    counted = sum((Counter(entry.pop("counted")) for entry in entries), Counter[str]())
    manifest = finish(Manifest(source=source.name, labels=source.labels, mask_cut=source.mask_cut), target, entries)
    if source.labels:
        write_labels(target / "labels.csv", source.labels)
    for note in source.notes(counted):
        print(note)
    return manifest


def _unit(source: Source, index: int, start: int, samples_per_shard: int) -> Unit:
    """The work of one shard."""
    stop = min(start + samples_per_shard, len(source))
    return Unit(shard_name(index), source.digest(start, stop), stop - start, partial(_write, start, stop))


_sources: list[Source] = []  # per process, so that a source of a million entries is not sent with every shard


def _use(source: Source) -> None:
    _sources[:] = [source]
    source.in_a_worker()


def _write(start: int, stop: int, path: Path) -> dict[str, Any]:
    (source,) = _sources
    source.counted = Counter()
    entry = write_shard(path, source.samples(start, stop), start)
    return {**entry, "counted": dict(source.counted)}
