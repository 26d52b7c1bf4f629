"""Broden's on-disk format: ``index.csv``, ``label.csv``, ``images/`` (Network Dissection), in a folder or a zip."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile
from zipfile import Path as ZipPath

from cefam.concepts.categories import label_number
from cefam.datasets.contract import Mask, Sample
from cefam.datasets.sources.base import Source, numbers_of, read_image, stamp_of
from cefam.errors import CefamError, MissingError
from cefam.io.reading import read_csv

MASK_CATEGORIES = ("color", "object", "part", "material")  # scene and texture are image-level labels


def _root(place: Path) -> Path | ZipPath:
    """Folder of the tables: ``place`` itself, or the outermost folder in a zip that holds ``index.csv``."""
    if not place.is_file():
        return place
    try:
        archive = ZipFile(place)
    except (BadZipFile, OSError) as error:
        raise CefamError(f"{place} cannot be read as a zip ({error}): copy it again, or name a folder.") from error
    found = sorted((name for name in archive.namelist() if name.rpartition("/")[2] == "index.csv"), key=len)
    if not found:
        raise CefamError(f"{place} is not a zip of Broden: it holds no index.csv.")
    return ZipPath(archive, found[0].removesuffix("index.csv"))


class Broden(Source):
    """Photographs with masks of several categories.

    Single-channel and palette masks hold label numbers; RGB masks encode them as R + 256 G. The entry of a category may name
    several files, separated by ``;``. Only files listed in ``index.csv`` are read.

    Args:
        place: the folder that holds index.csv, label.csv and images/ (broden1_224, broden1_227, broden1_384), or a zip of it.
        masks: mask categories; [] for none.
        ignore: label number of pixels that are not measured (255 in many data sets).
    """

    def __init__(self, place: str, masks: Sequence[str] = MASK_CATEGORIES, ignore: int | None = None) -> None:
        self.place, self.categories, self.ignore = Path(place), tuple(masks), ignore
        self.root = _root(self.place)
        unknown = set(masks) - set(MASK_CATEGORIES)
        if unknown:
            raise CefamError(
                f"Broden has no masks of {', '.join(sorted(unknown))}; it has those of {', '.join(MASK_CATEGORIES)}."
            )
        self.labels = self._read_labels()
        self.known, self.table = {label["number"] for label in self.labels}, "label.csv"
        self.rows = self._read_index()
        self.name = f"broden: {self.place.name}"

    def in_a_worker(self) -> None:
        """Reopen the zip: forked processes would share its file position."""
        self.root = _root(self.place)

    def _table(self, name: str, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
        path = self.root / name
        if not path.is_file():
            raise MissingError(
                f"{self.root} is not a Broden folder: it has no {name}. Name the folder that holds index.csv, label.csv and images/."
            )
        present = read_csv(path)[0]
        missing = sorted(set(columns) - present)
        if missing:
            hint = ""
            if set(missing) <= set(self.categories):
                rest = ", ".join(category for category in self.categories if category in present)
                hint = f' Where there are no such masks, name those that there are: `--masks "[{rest}]"`.'
            raise CefamError(f"{path} has no column {', '.join(map(repr, missing))}.{hint}")
        return read_csv(path, columns)[1]

    def _read_labels(self) -> list[dict[str, Any]]:
        """Number, name and category of every row of ``label.csv``."""
        labels: dict[int, dict[str, Any]] = {}
        for line, row in self._table("label.csv", ("number", "name", "category")):
            where = f"{self.root / 'label.csv'}, line {line}"
            try:
                number = label_number(row["number"], row["name"])
            except CefamError as error:
                raise CefamError(f"{where}: {error}") from error
            if number in labels:
                raise CefamError(
                    f"{where}: the number {number}, of {row['name']!r}, already has a row; give it another one."
                )
            labels[number] = {"number": number, "name": row["name"], "category": row["category"]}
        return list(labels.values())

    def _read_index(self) -> list[dict[str, str]]:
        rows: dict[str, dict[str, str]] = {}
        for line, row in self._table("index.csv", ("image", *self.categories)):
            name = row["image"].strip()
            if name in rows:
                raise CefamError(
                    f"{self.root / 'index.csv'}, line {line}: {name!r} already has a row: remove one of them."
                )
            rows[name] = {**row, "image": name}
        return list(rows.values())

    def _mask_files(self, index: int) -> list[tuple[str, Path | ZipPath]]:
        row = self.rows[index]
        return [
            (category, self.root / "images" / name.strip())
            for category in self.categories
            for name in row[category].split(";")
            if name.strip()
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def stamp(self, index: int) -> Any:
        """Names and sizes of the photograph and its masks."""
        photograph = self.root / "images" / self.rows[index]["image"]
        masks = [[category, *stamp_of(path)] for category, path in self._mask_files(index)]
        return [stamp_of(photograph), masks, self.ignore]

    def sample(self, index: int) -> Sample:
        """One photograph with its masks."""
        name = self.rows[index]["image"]
        path = self.root / "images" / name
        if not path.is_file():
            raise MissingError(
                f"{self.root / 'index.csv'} lists {name}, which is not in {self.root / 'images'}: complete the copy."
            )
        image, suffix = read_image(path, "rename it, in index.csv too.")
        masks = tuple(Mask(category, numbers_of(path, self.ignore)) for category, path in self._mask_files(index))
        return Sample(name, image, suffix, None, masks)
