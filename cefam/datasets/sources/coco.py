"""COCO annotations: polygons and run-length encodings as index maps."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from cefam.concepts.categories import label_number
from cefam.datasets.contract import Mask
from cefam.errors import CefamError, CefamWarning


class Coco:
    """The annotations of a COCO file.

    Boxes without masks and objects of unlisted photographs are skipped with a warning.
    """

    def __init__(self, path: Path, category: str) -> None:
        self.path, self.category = path, category
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            self.images = _by_key(about["images"], "file_name", path)
            numbers = {int(number) for number in _by_key(about["images"], "id", path)}
            kinds = _by_key(about["categories"], "id", path)
            self.labels: list[dict[str, Any]] = [
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
            try:
                label_number(label["number"], label["name"])
            except CefamError as error:
                raise CefamError(f"{path}: {error} Number the categories from 1.") from error
        for name, image in self.images.items():
            sides: list[Any] = [image.get("height"), image.get("width")]
            if not all(isinstance(side, int) for side in sides) or min(sides) < 1:
                raise CefamError(f"{path}: image {image['id']} ({name}) has no height and width: add them.")
        self._leave_out(numbers)

    def _leave_out(self, listed: set[int]) -> None:
        """Remove objects without a mask or a listed photograph, with a warning."""
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
        """Category and segmentation of each object in a photograph."""
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
    """Entries by the value of ``key``, which must be unique."""
    found: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        if entry[key] in found:
            raise CefamError(f"{path}: {key} {entry[key]!r} is listed twice: merge the entries, or remove one.")
        found[entry[key]] = entry
    return found


def _area(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Mask (H, W) of polygons or run lengths."""
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
    except Exception as error:  # its C code raises various exceptions
        raise CefamError(f"{where}: the segmentation cannot be read ({error}).") from error
    return found


def _check_polygons(polygons: list[Any], height: int, width: int) -> None:
    """Reject polygons that pycocotools misreads or crashes on, e.g. with coordinates far outside the photograph."""
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
    """Reject run lengths that do not cover the photograph exactly; pycocotools leaves missing pixels uninitialized."""
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, the photograph's {[height, width]}")
    counts = segmentation["counts"]
    counts = counts if isinstance(counts, list) else _decompressed(counts)
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"its run lengths cover {sum(counts)} pixels, the photograph has {height * width}")


def _decompressed(text: str) -> list[int]:
    """Decode COCO's run lengths: 5-bit groups, lowest first; from the fourth on, the difference to the second last count."""
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
