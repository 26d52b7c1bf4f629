"""What a raw data set must offer to become shards."""

import hashlib
import io
import json
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
        options: names of the options of the constructor.
        refusals: error messages for options that do not apply here.
        name: what the data is, for the manifest.
        labels: the vocabulary of the masks: dicts with number, name and category.
        mask_cut: how the masks are cut with their photographs.
        shuffle_by_default: whether they are shuffled if nothing else is asked for.
        order: in which samples are given; ``None``: as they lie.
        counted: what was counted while samples were read, for :meth:`notes`.
    """

    options: ClassVar[tuple[str, ...]] = ()
    refusals: ClassVar[Mapping[str, str]] = {}
    name: str
    labels: list[dict[str, Any]]
    mask_cut: MaskCut = "nearest"
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
            CefamError: where it is broken.
        """

    @abstractmethod
    def stamp(self, index: int) -> Any:
        """What identifies this sample's input without reading it (names, lengths), in plain types."""

    def shuffle(self) -> None:
        """Give samples in a random order, always the same: training batches from data that lies class by class are of few classes."""
        order = list(range(len(self)))
        Random(0).shuffle(order)
        self.order = order

    def _indices(self, start: int, stop: int) -> Sequence[int]:
        order = range(len(self)) if self.order is None else self.order
        return order[start:stop]

    def samples(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples in order, each with a photograph that can be decoded and masks that lie as it does.

        Raises:
            CefamError: for the first that is broken.
        """
        told = False
        for index in self._indices(start, stop):
            sample = self.sample(index)
            _check_orientation(sample)
            contradicted = "" if told else _contradicted(sample)
            if contradicted:
                told = True  # once a shard
                warnings.warn(
                    f"The {contradicted}: regions will be stretched onto such masks. Look for sides that were swapped, or masks of a crop.",
                    CefamWarning,
                    stacklevel=2,
                )
            yield sample

    def digest(self, start: int, stop: int) -> str:
        """A digest that identifies the input of these samples."""
        stamps = [self.stamp(index) for index in self._indices(start, stop)]
        return hashlib.sha256(json.dumps([self.name, self.labels, self.mask_cut, stamps]).encode()).hexdigest()

    def notes(self, counted: Counter[str]) -> list[str]:
        """What is worth knowing once all samples were read.

        Args:
            counted: the sum of ``counted`` over all samples, whatever process read them.
        """
        return []

    def in_a_worker(self) -> None:  # noqa: B027  most have nothing to do
        """Open anew what a process that was forked may not share."""


def _check_orientation(sample: Sample) -> None:
    """Refuse masks that are oriented like the stored file of a photograph that is shown upright."""
    picture = sample.picture()  # a broken photograph is found now, not in the middle of a run
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
    """The first mask whose sides contradict the photograph's, in words: regions are stretched onto it; "" where there is none."""
    picture = Image.open(io.BytesIO(sample.image))  # its size stands before its pixels
    sides = picture.size if turned(picture) else picture.size[::-1]
    for mask in sample.masks:
        height, width = mask.index_map.shape
        # The same picture at another resolution: its sides are whole numbers of pixels.
        scale = max(height / sides[0], width / sides[1])
        if max(abs(height - scale * sides[0]), abs(width - scale * sides[1])) > 1.5:
            return f"{mask.category} mask of {sample.id} is {height} x {width}, its photograph {sides[0]} x {sides[1]}"
    return ""


def numbers_of(path: Path | ZipPath, ignore: int | None) -> np.ndarray:
    """A mask file as label numbers (H, W); pixels with the number ``ignore`` become 65535, which is not measured.

    Raises:
        MissingError: where there is no file.
        CefamError: where it cannot be read as a mask.
    """
    if not path.is_file():
        raise MissingError(f"The mask {path.name} is not in {path.parent}: complete the copy.")
    numbers = open_mask(path.read_bytes(), str(path))
    return numbers if ignore is None else np.where(numbers == ignore, IGNORED, numbers)


def read_image(path: Path | ZipPath, advice: str) -> tuple[bytes, str]:
    """The bytes of an image file and its suffix.

    Raises:
        CefamError: where the suffix is not that of an image.
    """
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise CefamError(f"{path} does not have the suffix of an image ({', '.join(IMAGE_SUFFIXES)}): {advice}")
    return path.read_bytes(), path.suffix.lower()


def stamp_of(path: Path | ZipPath) -> list[Any]:
    """Name and length of a file: reading it would take as long as the work."""
    if not path.is_file():
        return [str(path), -1]
    if isinstance(path, ZipPath):
        return [str(path), path.root.getinfo(path.at).file_size]
    return [str(path), path.stat().st_size]
