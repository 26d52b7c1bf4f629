"""Brodenette in Broden's own on-disk format: ``index.csv``, ``label.csv``, ``category.csv``, ``c_*.csv`` and ``images/``.

Whatever reads Broden reads this. A mask's label is R + 256 * G, as there; masks have the size of the image.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cefam.brodenette.drawing import CATEGORIES, draw
from cefam.brodenette.scenes import describe
from cefam.brodenette.vocabulary import LABELS, SIZE, Label
from cefam.io.files import replacing

INDEX = ("image", "split", "ih", "iw", "sh", "sw", *CATEGORIES, "scene", "texture")


def write_broden(folder: str | Path, split: str, count: int) -> Path:
    """Draw the first scenes of a split into a folder in Broden's format.

    Args:
        folder: created.
        split: of Brodenette.
        count: how many scenes.

    Returns:
        the folder.

    """
    root = Path(folder)
    frequency = np.zeros(len(LABELS) + 1, np.int64)
    coverage = np.zeros(len(LABELS) + 1)
    rows = []
    for index in range(count):
        scene = describe(split, index)
        drawing = draw(scene)
        target = root / "images" / f"{scene.name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawing.image).save(target)
        row: dict[str, object] = dict.fromkeys(INDEX, "")
        row |= {"image": f"{scene.name}.png", "split": "val", "ih": SIZE, "iw": SIZE, "sh": SIZE, "sw": SIZE}
        for category in CATEGORIES:
            mask = drawing.masks[category]
            if mask.any():
                row[category] = f"{scene.name}_{category}.png"
                pixels = np.stack([mask % 256, mask // 256, np.zeros_like(mask)], axis=-1).astype(np.uint8)
                Image.fromarray(pixels).save(root / "images" / str(row[category]))
            share = np.bincount(mask.ravel(), minlength=len(frequency)) / mask.size
            share[0] = 0
            frequency += share > 0
            coverage += share
        rows.append([row[column] for column in INDEX])
    _write_labels(root, frequency, coverage)
    _write(root / "index.csv", INDEX, rows)
    return root


def _write_labels(root: Path, frequency: np.ndarray, coverage: np.ndarray) -> None:
    def counts(label: Label) -> tuple[int, str]:
        return int(frequency[label.number]), f"{coverage[label.number]:.4f}"

    columns = ("number", "name", "category", "frequency", "coverage", "syns")
    listed = [
        (label.number, label.name, f"{label.category}({counts(label)[0]})", *counts(label), "") for label in LABELS
    ]
    _write(root / "label.csv", columns, listed)
    groups = []
    for category in CATEGORIES:
        members = [label for label in LABELS if label.category == category]
        total = sum(counts(label)[0] for label in members)
        groups.append((category, members[0].number, members[-1].number, len(members), total))
        by_frequency = sorted(members, key=lambda label: -counts(label)[0])
        coded = [(code, label.number, label.name, *counts(label)) for code, label in enumerate(by_frequency, start=1)]
        _write(root / f"c_{category}.csv", ("code", "number", "name", "frequency", "coverage"), coded)
    _write(root / "category.csv", ("name", "first", "last", "count", "frequency"), groups)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, lineterminator="\n").writerows([columns, *rows])
