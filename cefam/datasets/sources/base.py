"""Interface of raw data sets that can be converted to shards."""

import hashlib
import io
import json
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar
from zipfile import Path as ZipPath

import numpy as np
from PIL import Image

from cefam.concepts.categories import IGNORED
from cefam.datasets.contract import IMAGE_SUFFIXES, MaskCut, Sample
from cefam.errors import CefamError, CefamWarning, MissingError
from cefam.images.pictures import open_mask, turned


class Source(ABC):
    """Samples in a fixed order, read one by one.

    Attributes:
        name: description of the data, for the manifest.
        labels: the vocabulary of the masks: dicts with number, name and category.
        known: numbers that masks may hold, listed in ``table``; ``None``: any.
        mask_cut: how masks are resized with their photographs; see :class:`cefam.datasets.contract.Manifest`.
        shuffle_by_default: whether samples are shuffled by default.
        order: indices of the samples in output order; ``None``: the stored order.
        counted: counts collected while samples are read, for :meth:`notes`.
    """

    name: str
    labels: list[dict[str, Any]]
    mask_cut: MaskCut = "nearest"
    known: set[int] | None = None
    table = ""
    shuffle_by_default: ClassVar[bool] = False
    counted: Counter[str]
    order: Sequence[int] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def sample(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            CefamError: if it is broken.
        """

    @abstractmethod
    def stamp(self, index: int) -> Any:
        """Identifier of this sample's files without reading them (names and sizes); JSON-serializable."""

    def shuffle(self) -> None:
        """Shuffle the samples with a fixed seed; data sorted by class would give training batches with few classes."""
        order = list(range(len(self)))
        Random(0).shuffle(order)
        self.order = order

    def _indices(self, start: int, stop: int) -> Sequence[int]:
        order = range(len(self)) if self.order is None else self.order
        return order[start:stop]

    def samples(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples in order; checks that each photograph can be decoded, and that its masks have its orientation.

        Raises:
            CefamError: for the first broken sample.
        """
        told = False
        for index in self._indices(start, stop):
            sample = self.sample(index)
            self._check_labels(sample)
            _check_orientation(sample)
            contradicted = "" if told else _contradicted(sample)
            if contradicted:
                told = True  # warn once per shard
                warnings.warn(
                    f"The {contradicted}: regions will be stretched onto such masks. Look for sides that were swapped, or masks of a crop.",
                    CefamWarning,
                    stacklevel=2,
                )
            yield sample

    def _check_labels(self, sample: Sample) -> None:
        for mask in sample.masks:
            unknown = [label for label in mask.labels if self.known is not None and label not in self.known]
            if unknown:
                raise CefamError(
                    f"The {mask.category} mask of {sample.id} has labels {unknown[:5]}, which {self.table} does not list: add them there, "
                    f"or, if such pixels are not to be measured, set `ignore` to the number."
                )

    def digest(self, start: int, stop: int) -> str:
        """Digest that identifies the input of these samples."""
        stamps = [self.stamp(index) for index in self._indices(start, stop)]
        return hashlib.sha256(json.dumps([self.name, self.labels, self.mask_cut, stamps]).encode()).hexdigest()

    def notes(self, counted: Counter[str]) -> list[str]:
        """Messages for the user after all samples were read.

        Args:
            counted: sum of ``counted`` over all samples and processes.
        """
        return []

    def in_a_worker(self) -> None:  # noqa: B027  optional hook
        """Reopen resources that a forked process must not share."""


def _check_orientation(sample: Sample) -> None:
    """Reject masks that do not follow the EXIF orientation of their photograph."""
    picture = sample.picture()  # raises if the photograph is broken
    if not sample.masks or not turned(Image.open(io.BytesIO(sample.image))):
        return
    if picture.height == picture.width:
        warnings.warn(
            f"The photograph {sample.id} is stored on its side and shown upright; it is square, so its masks are taken to be upright.",
            CefamWarning,
            stacklevel=2,
        )
        return
    for mask in sample.masks:
        height, width = mask.index_map.shape
        if (height > width) != (picture.height > picture.width):
            raise CefamError(
                f"The photograph {sample.id} is stored on its side and shown upright ({picture.height} x {picture.width}), its "
                f"{mask.category} mask is {height} x {width}: turn the mask, or remove the photograph's EXIF orientation."
            )


def _contradicted(sample: Sample) -> str:
    """Description of the first mask whose aspect ratio differs from the photograph's; "" if there is none."""
    picture = Image.open(io.BytesIO(sample.image))  # reads the header only
    sides = picture.size if turned(picture) else picture.size[::-1]
    for mask in sample.masks:
        height, width = mask.index_map.shape
        # Allow for rounding of the sides at another resolution.
        scale = max(height / sides[0], width / sides[1])
        if max(abs(height - scale * sides[0]), abs(width - scale * sides[1])) > 1.5:
            return f"{mask.category} mask of {sample.id} is {height} x {width}, its photograph {sides[0]} x {sides[1]}"
    return ""


def numbers_of(path: Path | ZipPath, ignore: int | None) -> np.ndarray:
    """Label numbers (H, W) of a mask file; pixels with the number ``ignore`` become 65535 (not measured)."""
    if not path.is_file():
        raise MissingError(f"The mask {path.name} is not in {path.parent}: complete the copy.")
    numbers = open_mask(path.read_bytes(), str(path))
    return numbers if ignore is None else np.where(numbers == ignore, IGNORED, numbers)


def read_image(path: Path | ZipPath, advice: str) -> tuple[bytes, str]:
    """The bytes of an image file and its suffix."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise CefamError(f"{path} does not have the suffix of an image ({', '.join(IMAGE_SUFFIXES)}): {advice}")
    return path.read_bytes(), path.suffix.lower()


def stamp_of(path: Path | ZipPath) -> list[Any]:
    """Name and size of a file (-1 if it is missing); hashing its contents would be slow."""
    if not path.is_file():
        return [str(path), -1]
    if isinstance(path, ZipPath):
        return [str(path), path.root.getinfo(path.at).file_size]
    return [str(path), path.stat().st_size]
