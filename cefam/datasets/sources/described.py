"""A folder of photographs with masks, described by a YAML file: one PNG per photograph (e.g. PASCAL VOC), or COCO annotations.

::

    images: JPEGImages/{id}.jpg          # {id} is the part that differs between photographs
    ids: ImageSets/Segmentation/val.txt  # one per line; default: all files that match `images`
    masks:
      - {category: object, files: "SegmentationClass/{id}.png", ignore: 255}
    labels: {object: [aeroplane, bicycle]}  # numbered from 1; or a CSV file with number, name and category

    images: val2017/{id}                 # COCO: {id} is the file_name
    coco: annotations/instances_val2017.json
    category: object

Paths are relative to the YAML file and must stay in its folder.
"""

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cefam.concepts.categories import category_of, label_number
from cefam.datasets.contract import Mask, Sample
from cefam.datasets.sources.base import Source, numbers_of, read_image, stamp_of
from cefam.datasets.sources.coco import Coco
from cefam.datasets.sources.images import holds_data
from cefam.errors import CefamError, MissingError, near
from cefam.io.reading import read_csv, read_text

KEYS = ("name", "images", "ids", "masks", "labels", "coco", "category")
MASK_KEYS = ("category", "files", "ignore")


class Described(Source):
    """Photographs with masks, described by a YAML file.

    A photograph without a mask file has no mask of that category. COCO objects share an index map
    unless objects of different classes overlap; crowds count like single objects. COCO needs pycocotools.

    Args:
        place: the YAML file.
    """

    def __init__(self, place: str) -> None:
        import yaml

        path = Path(place)
        if not path.is_file():
            raise MissingError(f"There is no file {path}: name the YAML file that describes the data.")
        try:
            about = yaml.safe_load(read_text(path))
        except yaml.YAMLError as error:
            raise CefamError(f"{path} cannot be read as YAML ({' '.join(str(error).split())}).") from error
        self.path, self.root = path, path.parent
        self.about = _checked(about, KEYS, str(path))
        self.name = f"described: {self.about.get('name', path.stem)}"
        self.pattern = self._value("images")
        if "{id}" not in self.pattern:
            raise CefamError(f"{path}: `images` needs '{{id}}' where the photographs differ, got {self.pattern!r}.")
        self.coco = Coco(self._file("coco"), category_of(self._value("category"))) if "coco" in self.about else None
        self.masks = [] if self.coco else list(self._masks())
        self.labels = self.coco.labels if self.coco else self._labels()
        self.known, self.table = {label["number"] for label in self.labels}, f"`labels` of {self.path}"
        self.ids = self._ids()

    def _value(self, key: str) -> str:
        if not isinstance(self.about.get(key), str):
            raise CefamError(f"{self.path}: `{key}` must be a text, got {self.about.get(key)!r}.")
        return str(self.about[key])

    def _file(self, key: str) -> Path:
        path = self._within(self._value(key))
        if not path.is_file():
            raise MissingError(f"{self.path}: `{key}` names {path}, which does not exist.")
        return path

    def _within(self, name: str) -> Path:
        """A path below the folder of the description."""
        path = self.root / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise CefamError(
                f"{self.path}: {name} leaves the folder of the description: put the description above the data."
            )
        return path

    def _masks(self) -> Iterator[dict[str, Any]]:
        listed = self.about.get("masks", [])
        for place, entry in enumerate(listed if isinstance(listed, list) else [listed]):
            where = f"{self.path}: masks[{place}]"
            about = _checked(entry, MASK_KEYS, where)
            if not all(isinstance(about.get(key), str) for key in ("category", "files")):
                raise CefamError(f"{where} needs `category` and `files`, two texts.")
            if "{id}" not in about["files"]:
                raise CefamError(f"{where}: `files` needs '{{id}}', got {about['files']!r}.")
            if not isinstance(about.get("ignore"), int | None):
                raise CefamError(f"{where}: `ignore` must be a whole number, got {about['ignore']!r}.")
            yield {"ignore": None, **about, "category": category_of(about["category"])}

    def _labels(self) -> list[dict[str, Any]]:
        listed, found = self.about.get("labels", {}), list[tuple[Any, Any, Any]]()
        if isinstance(listed, str):
            rows = [row for _, row in read_csv(self._file("labels"), ("number", "name", "category"))[1]]
            found = [(row["number"], row["name"], row["category"]) for row in rows]
        elif isinstance(listed, dict):
            found = [
                (number, name, category)
                for category, names in listed.items()
                for number, name in (names.items() if isinstance(names, dict) else enumerate(names or (), start=1))
            ]
        else:
            raise CefamError(f"{self.path}: `labels` must be names by category, or the name of a CSV file.")
        labels: dict[int, dict[str, Any]] = {}
        for number, name, category in found:
            try:
                number = label_number(number, str(name))
            except CefamError as error:
                raise CefamError(f"{self.path}: {error}") from error
            if number in labels:
                raise CefamError(
                    f"{self.path}: the number {number} of {name!r} is used twice. If categories number their labels separately, renumber "
                    f"the masks, and list all labels in a CSV file."
                )
            labels[number] = {"number": number, "name": str(name), "category": category_of(str(category))}
        if self.masks and not labels:
            raise CefamError(f"{self.path}: `labels` is missing: it names what the numbers of the masks mean.")
        return list(labels.values())

    def _ids(self) -> list[str]:
        if "ids" in self.about:
            found = [line.strip() for line in read_text(self._file("ids")).splitlines() if line.strip()]
        elif self.coco:
            found = list(self.coco.images)
        else:
            parts = self.pattern.split("{id}")
            try:
                paths = [path.relative_to(self.root) for path in self.root.glob("*".join(map(glob.escape, parts)))]
            except (ValueError, NotImplementedError) as error:
                raise CefamError(f"{self.path}: `images` is no pattern of paths ({error}).") from error
            first, *others = map(re.escape, parts)
            form = re.compile(f"{first}(?P<id>[^/]+){'(?P=id)'.join(others)}")
            fits = (form.fullmatch(path.as_posix()) for path in paths if holds_data(path))
            found = sorted(fit["id"] for fit in fits if fit)
        if not found:
            raise MissingError(f"{self.path}: no photograph fits {self.pattern}.")
        twice = len(found) - len(set(found))
        if twice:
            raise CefamError(f"{self.path}: {twice} photograph(s) are listed twice.")
        return found

    def __len__(self) -> int:
        return len(self.ids)

    def _image(self, index: int) -> Path:
        return self._within(self.pattern.replace("{id}", self.ids[index]))

    def _mask_files(self, index: int) -> list[tuple[dict[str, Any], Path]]:
        return [(masks, self._within(masks["files"].replace("{id}", self.ids[index]))) for masks in self.masks]

    def stamp(self, index: int) -> Any:
        """Names and sizes of the photograph and its masks, and its COCO annotations."""
        masks = [[masks, *stamp_of(path)] for masks, path in self._mask_files(index)]
        return [stamp_of(self._image(index)), masks, self.coco.stamp(self.ids[index]) if self.coco else None]

    def sample(self, index: int) -> Sample:
        """One photograph with its masks."""
        path = self._image(index)
        if not path.is_file():
            raise MissingError(f"{self.path} lists {self.ids[index]}, but there is no {path}: complete the copy.")
        image, suffix = read_image(path, "rename it.")
        if self.coco:
            masks = self.coco.masks(self.ids[index])
        else:
            files = [(each, file) for each, file in self._mask_files(index) if file.is_file()]
            masks = tuple(Mask(each["category"], numbers_of(file, each["ignore"])) for each, file in files)
        return Sample(self.ids[index], image, suffix, None, masks)


def _checked(about: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    """Return ``about`` if it is a mapping with known keys."""
    if not isinstance(about, dict):
        raise CefamError(f"{where} must hold {', '.join(keys)}, got {type(about).__name__}.")
    for key in about:
        if key not in keys:
            raise CefamError(f"{where}: unknown key {key!r}.{near(str(key), keys)} The keys are {', '.join(keys)}.")
    return about
