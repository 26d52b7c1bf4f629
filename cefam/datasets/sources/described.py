"""Any folder of photographs with masks, described by a small YAML file: one PNG per photograph (PASCAL VOC's among them), or COCO.

::

    images: JPEGImages/{id}.jpg          # {id} stands for what tells the photographs apart
    ids: ImageSets/Segmentation/val.txt  # one a line; without it, every file that fits `images`
    masks:
      - {category: object, files: "SegmentationClass/{id}.png", ignore: 255}
    labels: {object: [aeroplane, bicycle]}  # numbered from 1 on; or a CSV file with number, name and category

    images: val2017/{id}                 # COCO: {id} is the file_name
    coco: annotations/instances_val2017.json
    category: object

Paths are relative to the YAML file, and may not leave its folder.
"""

import glob
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cefam.categories import IGNORED, category_of
from cefam.datasets.contract import Mask, Sample
from cefam.datasets.sources.base import Source, numbers_of, read_image, stamp_of
from cefam.errors import CefamError, CefamWarning, MissingError, near
from cefam.reading import read_csv, read_text

KEYS = ("name", "images", "ids", "masks", "labels", "coco", "category")
MASK_KEYS = ("category", "files", "ignore")


@dataclass(frozen=True)
class _Masks:
    """Masks of one category: where they lie, and the number whose pixels are not measured."""

    category: str
    files: str
    ignore: int | None = None


class Described(Source):
    """Photographs with masks as a YAML file describes them.

    A photograph without a mask file has no mask of that category. COCO's objects become one index map per category, and a further one
    where objects of different classes overlap; crowds count like single objects. COCO needs pycocotools.

    Args:
        place: the YAML file.

    Raises:
        MissingError: where a file is missing.
        CefamError: where the description is wrong, with the key.
    """

    refusals: ClassVar[Mapping[str, str]] = {"masks": "does not apply: the description names the masks. Leave it out."}

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
        self.coco = _Coco(self._file("coco"), category_of(self._value("category"))) if "coco" in self.about else None
        self.masks = [] if self.coco else list(self._masks())
        self.labels = self.coco.labels if self.coco else self._labels()
        self.known = {label["number"] for label in self.labels}
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

    def _masks(self) -> Iterator[_Masks]:
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
            yield _Masks(**{**about, "category": category_of(about["category"])})

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
            if not str(number).isdecimal() or int(number) in (0, *labels):
                raise CefamError(
                    f"{self.path}: the number {number} of {name!r} is no whole number above 0 that no other label has. Where categories "
                    f"have numbers of their own, give them in a CSV file, and masks of those numbers."
                )
            labels[int(number)] = {"number": int(number), "name": str(name), "category": category_of(str(category))}
        if self.masks and not labels:
            raise CefamError(f"{self.path}: `labels` is missing: it names what the numbers of the masks mean.")
        return list(labels.values())

    def _ids(self) -> list[str]:
        if "ids" in self.about:
            found = [line.strip() for line in read_text(self._file("ids")).splitlines() if line.strip()]
        elif self.coco:
            found = list(self.coco.images)
        else:
            before, _, after = self.pattern.partition("{id}")
            try:
                pattern = f"{glob.escape(before)}*{glob.escape(after)}"
                paths = [path.relative_to(self.root).as_posix() for path in self.root.glob(pattern)]
            except (ValueError, NotImplementedError) as error:
                raise CefamError(f"{self.path}: `images` is no pattern of paths ({error}).") from error
            found = sorted(path[len(before) : len(path) - len(after)] for path in paths)
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

    def _mask_files(self, index: int) -> list[tuple[_Masks, Path]]:
        return [(masks, self._within(masks.files.replace("{id}", self.ids[index]))) for masks in self.masks]

    def stamp(self, index: int) -> Any:
        """Names and lengths of the photograph and its masks, and what COCO says of it."""
        masks = [[repr(masks), *stamp_of(path)] for masks, path in self._mask_files(index)]
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
            masks = tuple(Mask(each.category, numbers_of(file, each.ignore)) for each, file in files)
        unknown = {label for mask in masks for label in mask.labels} - self.known
        if unknown:
            raise CefamError(
                f"The masks of {self.ids[index]} have labels {sorted(unknown)[:5]}, which {self.path} does not list: add them to `labels`, "
                f"or, if such pixels are not to be measured, set `ignore` to the number."
            )
        return Sample(self.ids[index], image, suffix, None, masks)


def _checked(about: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    """A mapping with known keys.

    Raises:
        CefamError: for something else, or an unknown key.
    """
    if not isinstance(about, dict):
        raise CefamError(f"{where} must hold {', '.join(keys)}, got {type(about).__name__}.")
    for key in about:
        if key not in keys:
            raise CefamError(f"{where}: unknown key {key!r}.{near(str(key), keys)} The keys are {', '.join(keys)}.")
    return about


class _Coco:
    """The annotations of a COCO file.

    Boxes without masks, and objects of photographs that are not listed, are left out with a warning.

    Raises:
        CefamError: for a file in another form, or entries that contradict each other, with the entry.
    """

    def __init__(self, path: Path, category: str) -> None:
        self.path, self.category = path, category
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            self.images = _by_key(about["images"], "file_name", path)
            numbers = {int(number) for number in _by_key(about["images"], "id", path)}
            kinds = _by_key(about["categories"], "id", path)
            self.labels = [
                {"number": int(number), "name": str(each["name"]), "category": category}
                for number, each in kinds.items()
            ]
            self.objects: dict[int, list[dict[str, Any]]] = {}
            for each in about["annotations"]:
                self.objects.setdefault(int(each["image_id"]), []).append(each)
                if int(each["category_id"]) not in kinds:
                    raise CefamError(
                        f"{path}: annotation {each.get('id')} has category {each['category_id']}, which is not listed."
                    )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, CefamError):
                raise
            raise CefamError(f"{path} is not a COCO file of annotations ({type(error).__name__}: {error}).") from error
        for label in self.labels:
            if not 0 < label["number"] < IGNORED:
                raise CefamError(
                    f"{path}: category {label['name']!r} has the id {label['number']}; masks hold numbers from 1 to {IGNORED - 1} (0 means "
                    f"'no label'): number the categories from 1."
                )
        for name, image in self.images.items():
            sides: list[Any] = [image.get("height"), image.get("width")]
            if not all(isinstance(side, int) and side > 0 for side in sides):
                raise CefamError(f"{path}: image {image['id']} ({name}) has no height and width: add them.")
        self._leave_out(numbers)

    def _leave_out(self, listed: set[int]) -> None:
        """Keep the objects that have masks and a photograph, and say how many do not."""
        elsewhere = [each for number, objects in self.objects.items() if number not in listed for each in objects]
        boxes = [each for objects in self.objects.values() for each in objects if not each.get("segmentation")]
        for left_out, reason in (
            (elsewhere, "belong to an image_id that is not listed"),
            (boxes, "are boxes without masks"),
        ):
            if left_out:
                warnings.warn(
                    f"{self.path}: {len(left_out)} annotation(s) {reason} and are left out, as annotation {left_out[0].get('id')}.",
                    CefamWarning,
                    stacklevel=2,
                )
        self.objects = {
            number: [each for each in objects if each.get("segmentation")]
            for number, objects in self.objects.items()
            if number in listed
        }

    def _of(self, name: str) -> list[dict[str, Any]]:
        if name not in self.images:
            raise CefamError(
                f"{self.path} does not know {name}: `images` must be a pattern whose {{id}} is the file_name."
            )
        return self.objects.get(int(self.images[name]["id"]), [])

    def stamp(self, name: str) -> Any:
        """What the file says of a photograph."""
        return [(each["category_id"], each["segmentation"]) for each in self._of(name)]

    def masks(self, name: str) -> tuple[Mask, ...]:
        """Index maps of a photograph."""
        height, width = self.images[name]["height"], self.images[name]["width"]
        covered: dict[int, np.ndarray] = {}
        for each in self._of(name):
            number, where = int(each["category_id"]), f"{self.path}, annotation {each.get('id')} of {name}"
            area = _area(each["segmentation"], height, width, where)
            if not area.any():
                warnings.warn(f"{where} covers no pixel and is left out.", CefamWarning, stacklevel=2)
                continue
            covered[number] = covered[number] | area if number in covered else area
        maps: list[np.ndarray] = []
        for number, area in covered.items():
            free = next((index_map for index_map in maps if not (index_map[area] > 0).any()), None)
            if free is None:
                maps.append(free := np.zeros((height, width), np.int32))
            free[area] = number
        return tuple(Mask(self.category, index_map) for index_map in maps)


def _by_key(entries: list[dict[str, Any]], key: str, path: Path) -> dict[Any, dict[str, Any]]:
    """Entries by one of their values, which no two may share.

    Raises:
        CefamError: where two do.
    """
    found: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        if entry[key] in found:
            raise CefamError(f"{path}: {key} {entry[key]!r} is listed twice: merge the entries, or remove one.")
        found[entry[key]] = entry
    return found


def _area(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Polygons or run lengths as a mask (H, W)."""
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise CefamError("COCO's masks need pycocotools: `pip install cefam[coco]`.") from error
    try:
        if isinstance(segmentation, list):
            _check_polygons(segmentation, height, width)
            runs = coco.merge(coco.frPyObjects(segmentation, height, width))
        else:
            _check_runs(segmentation, height, width)
            listed = isinstance(segmentation["counts"], list)
            runs = coco.frPyObjects(segmentation, height, width) if listed else segmentation
        found: np.ndarray = coco.decode(runs).astype(bool)
    except Exception as error:  # its C code raises whatever it meets
        raise CefamError(f"{where}: the segmentation cannot be read ({error}).") from error
    return found


def _check_polygons(polygons: list[Any], height: int, width: int) -> None:
    """Refuse what pycocotools would read as something else, or crash at: coordinates must be numbers near the photograph."""
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon must be a list of at least three points, x and y in turn")
        points = np.asarray(polygon, dtype=float)
        if not np.isfinite(points).all():
            raise ValueError("a coordinate is no finite number")
        for side, values in ((width, points[::2]), (height, points[1::2])):
            if values.min() < -side or values.max() > 2 * side:
                raise ValueError(
                    f"coordinates from {values.min():g} to {values.max():g} leave a photograph {side} pixels long"
                )


def _check_runs(segmentation: dict[str, Any], height: int, width: int) -> None:
    """Refuse run lengths that do not cover the photograph exactly: pycocotools leaves memory as it was where they are too short."""
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, the photograph's {[height, width]}")
    counts = segmentation["counts"]
    counts = counts if isinstance(counts, list) else _decompressed(counts)
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"its run lengths cover {sum(counts)} pixels, the photograph has {height * width}")


def _decompressed(text: str) -> list[int]:
    """COCO's compressed run lengths: groups of 5 bits, the lowest first, each but the first three as a difference to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for letter in text.encode() if isinstance(text, str) else text:
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts
