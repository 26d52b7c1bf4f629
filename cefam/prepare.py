"""Raw data sets -> shards: a folder of images (one folder a class), Broden's on-disk format, and scenes of Brodenette."""

import io
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cefam.files import read_csv
from cefam.shards import IMAGE_SUFFIXES, Mask, Sample, ShardWriter, open_picture

MASK_CATEGORIES = ("color", "object", "part", "material")  # scene and texture are labels of whole images


def list_images(folder: str | Path) -> list[tuple[Path, int | None]]:
    """Images below a folder in sorted order, each with its class: the index of its subfolder, or ``None`` in a flat one.

    Raises:
        FileNotFoundError: where the folder is missing or holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}: name one that holds images.")
    classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    index = {name: position for position, name in enumerate(classes)}
    files = list(_files_below(root, ()))
    found = sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"No image ({', '.join(IMAGE_SUFFIXES)}) was found below {root}.")
    for path in found:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is a link to nothing, or no file: remove it.")
    others = Counter(path.suffix.lower() or path.name for path in files if path.suffix.lower() not in IMAGE_SUFFIXES)
    if others:
        kinds = ", ".join(f"{count} x {suffix}" for suffix, count in others.most_common(5))
        warnings.warn(
            f"{others.total()} file(s) below {root} are left out, as their suffix is of no image: {kinds}.",
            stacklevel=2,
        )
    return [(path, index.get(path.relative_to(root).parts[0])) for path in found]


def _files_below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All files but hidden ones, those in linked folders, too; a folder that cannot be read is an error, a link back up is not followed."""
    here = folder.resolve()
    if here in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):  # .ipynb_checkpoints, .DS_Store
            continue
        if path.is_dir():
            yield from _files_below(path, (*above, here))
        else:
            yield path


def image_folder_samples(folder: str | Path) -> Iterator[Sample]:
    """Samples of a folder of images, without masks."""
    root = Path(folder)
    for path, label in list_images(root):
        yield Sample(path.relative_to(root).as_posix(), path.read_bytes(), path.suffix.lower(), label)


def read_broden_labels(root: str | Path) -> list[dict[str, Any]]:
    """Number, name and category of every row of Broden's ``label.csv``."""
    labels: dict[int, dict[str, Any]] = {}
    for line, row in _read_broden(root, "label.csv", ("number", "name", "category")):
        where, number = f"{Path(root) / 'label.csv'}, line {line}", row["number"]
        if not number.isdigit():
            raise ValueError(f"{where}: the number {number!r} is no whole number.")
        if int(number) == 0 or int(number) in labels:
            reason = "means 'no label' in masks" if int(number) == 0 else "has a row already"
            raise ValueError(f"{where}: the number {number}, of {row['name']!r}, {reason}; give it another one.")
        labels[int(number)] = {"number": int(number), "name": row["name"], "category": row["category"]}
    return list(labels.values())


def _read_broden(root: str | Path, name: str, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Lines and rows of one of Broden's tables."""
    path = Path(root) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{root} is no Broden folder: it has no {name}. Name the folder that holds index.csv, label.csv and images/."
        )
    return read_csv(path, columns)[1]


def broden_samples(root: str | Path, categories: Sequence[str] = MASK_CATEGORIES) -> Iterator[Sample]:
    """Samples of a folder in Broden's format: ``index.csv``, ``images/``; a mask's label is R + 256 * G.

    Only what ``index.csv`` lists is read; an entry of a category may name several mask files, separated by ``;``.

    Args:
        root: the folder.
        categories: of the masks.

    Raises:
        FileNotFoundError: where the index, a photograph or a mask is missing.
        ValueError: where a mask has labels that ``label.csv`` lacks, or for a category that the index lacks.
    """
    root = Path(root)
    known = {label["number"] for label in read_broden_labels(root)}
    for row in _index_rows(root, categories):
        path = root / "images" / row["image"]
        if not path.is_file():
            raise FileNotFoundError(
                f"{root / 'index.csv'} lists {row['image']}, which is not in {root / 'images'}: complete the copy."
            )
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(
                f"{path} has no suffix of an image ({', '.join(IMAGE_SUFFIXES)}): rename it, in index.csv too."
            )
        masks = []
        for category in categories:
            for name in filter(None, row[category].split(";")):
                masks.append(Mask(category, _read_broden_mask(root / "images" / name, known)))
        yield Sample(row["image"], path.read_bytes(), path.suffix.lower(), None, tuple(masks))


def _index_rows(root: Path, categories: Sequence[str]) -> list[dict[str, str]]:
    unknown = set(categories) - set(MASK_CATEGORIES)
    if unknown:
        raise ValueError(
            f"Broden has no masks of {', '.join(sorted(unknown))}; it has those of {', '.join(MASK_CATEGORIES)}."
        )
    rows: dict[str, dict[str, str]] = {}
    for line, row in _read_broden(root, "index.csv", ("image", *categories)):
        if row["image"] in rows:
            raise ValueError(
                f"{root / 'index.csv'}, line {line}: {row['image']!r} has a row already: take one of them out."
            )
        rows[row["image"]] = row
    return list(rows.values())


def _read_broden_mask(path: Path, known: set[int]) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(
            f"Broden's index lists the mask {path.name}, which is not in {path.parent}: complete the copy."
        )
    pixels = np.asarray(open_picture(path, str(path)).convert("RGB")).astype(np.int32)
    index_map = pixels[..., 0] + 256 * pixels[..., 1]
    unknown = set(np.unique(index_map).tolist()) - known - {0}
    if unknown:
        raise ValueError(
            f"The mask {path} has labels {sorted(unknown)[:5]}, which label.csv does not list: add them there."
        )
    return index_map


def brodenette_samples(split: str, count: int, masks: Sequence[str] = MASK_CATEGORIES) -> Iterator[Sample]:
    """The first ``count`` scenes of a split of Brodenette, with masks of these categories ("composition" is one too).

    Raises:
        ValueError: for an unknown split or category.
    """
    from cefam.brodenette import CLASSES, describe, draw

    for index in range(count):
        scene = describe(split, index)
        drawing = draw(scene)
        unknown = sorted(set(masks) - set(drawing.masks))
        if unknown:
            raise ValueError(
                f"Brodenette has no masks of {', '.join(unknown)}; it has those of {', '.join(drawing.masks)}."
            )
        image = io.BytesIO()
        Image.fromarray(drawing.image).save(image, format="PNG", compress_level=1)
        label = None if scene.label is None else CLASSES.index(scene.label)
        chosen = tuple(Mask(category, drawing.masks[category]) for category in masks)
        yield Sample(f"{scene.name}.png", image.getvalue(), ".png", label, chosen)


def prepare(
    kind: str,
    source: str | Path,
    folder: str | Path,
    samples_per_shard: int = 256,
    count: int | None = None,
    masks: Sequence[str] = MASK_CATEGORIES,
) -> ShardWriter:
    """Convert a raw data set into shards, with a progress bar.

    Args:
        kind: "images" (a folder of images, one folder a class or flat), "broden", or "brodenette" (drawn scenes).
        source: where the raw data lies; of Brodenette, a split: train, val, test, captioned, retrieval, evaluation.
        folder: where the shards go.
        samples_per_shard: samples in a shard.
        count: how many scenes of Brodenette; ``None``: 200. Other data is taken whole.
        masks: their categories; [] for none.
    """
    from rich.progress import track

    if count is not None and kind != "brodenette":
        raise ValueError(f"count is for scenes of Brodenette, {kind!r} is taken whole: leave `count` out.")
    if len(set(masks)) < len(masks):
        raise ValueError(f"A category is in masks twice: {list(masks)}.")
    if kind == "images" and tuple(masks) not in (MASK_CATEGORIES, ()):
        raise ValueError(f"A folder of images holds no masks, got masks = {list(masks)}: leave `masks` out.")
    if kind == "images":
        samples, labels, total = image_folder_samples(source), [], len(list_images(source))
    elif kind == "broden":
        labels = read_broden_labels(source)
        samples, total = broden_samples(source, masks), len(_index_rows(Path(source), masks))
    elif kind == "brodenette":
        from cefam.brodenette import COMPOSITIONS, LABELS

        count = 200 if count is None else count
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}.")
        labels = [asdict(label) for label in (*LABELS, *(COMPOSITIONS if "composition" in masks else ()))]
        samples, total = brodenette_samples(str(source), count, masks), count
    else:
        raise ValueError(f"kind must be 'images', 'broden' or 'brodenette', got {kind!r}.")
    with ShardWriter(folder, f"{kind}: {Path(source).name}", samples_per_shard, labels) as writer:
        for sample in track(samples, description=f"prepare {kind}", total=total):
            sample.picture()  # a broken photograph is found now, not in the middle of a run
            writer.write(sample)
    return writer
