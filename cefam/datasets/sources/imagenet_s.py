"""ImageNet-S (50, 300 or 919 classes) in its original layout, with two readings of its masks.

A mask is an RGB PNG of the photograph's size that encodes R + 256 G: 0 = other, 1 to K = classes of the subset by sorted wnid,
1000 = not measured. Each photograph is paired with one concept, the class of its folder.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cefam.concepts.categories import IGNORED
from cefam.datasets.contract import IMAGE_SUFFIXES, Mask, Sample
from cefam.datasets.sources.base import Source, numbers_of, read_image, stamp_of
from cefam.datasets.sources.imagenet import class_of
from cefam.errors import CefamError, MissingError
from cefam.io.reading import read_text

UNMEASURED = 1000
Reading = Literal["published", "paper"]


class ImageNetS(Source):
    """Photographs with the mask of their class, numbered as in ``ConceptSet.imagenet()`` (1 to 1,000).

    Args:
        place: the subset's folder (``ImageNetS919``), with ``validation`` and ``validation-segmentation``.
        reading: "published": the pixels with the largest number in the file; after resizing, partly covered pixels count
            as inside. "paper": the pixels of the folder's class; pixels with 1000 are not measured.
        classes: a text file with the subset's wnids, one per line; ``None``: the folders of the split. Required if folders
            are missing.
        split: "validation", "test" or "train-semi".
    """

    def __init__(
        self,
        place: str,
        reading: Reading = "published",
        classes: str | None = None,
        split: str = "validation",
    ) -> None:
        if reading not in ("published", "paper"):
            raise CefamError(f"reading must be 'published' or 'paper', got {reading!r}.")
        self.reading, self.root = reading, Path(place)
        self.images, self.masks = self.root / split, self.root / f"{split}-segmentation"
        for folder in (self.images, self.masks):
            if not folder.is_dir():
                raise MissingError(
                    f"There is no folder {folder}: name the folder of ImageNet-S that holds {split} and {split}-segmentation."
                )
        self.mask_cut = "cover" if reading == "published" else "nearest"
        self.name = f"imagenet_s: {self.root.name} {split}, masks as {reading}"
        folders = sorted(path.name for path in self.images.iterdir() if path.is_dir())
        self.wnids = folders if classes is None else sorted(read_text(Path(classes)).split())
        self.labels = [
            {"number": class_of(wnid) + 1, "name": _class_name(class_of(wnid)), "category": "object"}
            for wnid in self.wnids
        ]
        self.paths = [
            path
            for folder in folders
            for path in sorted((self.images / folder).iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not self.paths:
            raise MissingError(f"No image was found below {self.images}.")
        self.counted = Counter()

    def _mask_path(self, path: Path) -> Path:
        return self.masks / path.parent.name / f"{path.stem}.png"

    def __len__(self) -> int:
        return len(self.paths)

    def stamp(self, index: int) -> Any:
        """Names and sizes of the photograph and its mask."""
        path = self.paths[index]
        return [stamp_of(path), stamp_of(self._mask_path(path))]

    def sample(self, index: int) -> Sample:
        """One photograph with the mask of its class."""
        path = self.paths[index]
        wnid = path.parent.name
        if wnid not in self.wnids:
            raise CefamError(f"The folder {wnid} is not in the list of classes: add its wnid there.")
        numbers = numbers_of(self._mask_path(path), None)
        known = {0, UNMEASURED, *range(1, len(self.wnids) + 1)}
        unknown = sorted(set(np.unique(numbers).tolist()) - known)
        if unknown:
            raise CefamError(
                f"The mask of {path.name} has labels {unknown[:5]}, but there are {len(self.wnids)} classes: where folders of the subset "
                f"are missing, name all of its wnids in a file (`classes`)."
            )
        published, paper = numbers == numbers.max(), numbers == self.wnids.index(wnid) + 1
        self.counted["read"] += 1
        self.counted["differing"] += bool((published != paper).any())
        concept = class_of(wnid) + 1
        if self.reading == "published":
            index_map = np.where(published, concept, 0)
        else:
            index_map = np.where(paper, concept, np.where(numbers == UNMEASURED, IGNORED, 0))
        image, suffix = read_image(path, "rename it.")
        mask = Mask("object", index_map.astype(np.int32))
        sample = Sample(f"{wnid}/{path.name}", image, suffix, class_of(wnid), (mask,))
        size = sample.picture().size[::-1]
        if index_map.shape != size:
            raise CefamError(f"The mask of {path.name} is {index_map.shape}, its photograph {size}: copy both again.")
        return sample

    def notes(self, counted: Counter[str]) -> list[str]:
        """Number of masks on which the two readings differ."""
        differing, read = counted["differing"], counted["read"]
        return [f"The two readings differ on {differing} of {read} masks; this is the {self.reading} one."]


def _class_name(index: int) -> str:
    from importlib.resources import files

    return (files("cefam") / "data" / "imagenet_classes.txt").read_text().splitlines()[index]
