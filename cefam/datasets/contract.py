"""The sample contract: photographs and their masks, and how they are stored in tar shards. Writers and readers use this file.

A folder of shards, local or behind a URL, holds ``manifest.json`` and ``shard-000000.tar`` ... In a tar, a sample KEY has

* ``KEY.<jpg|png|...>``: the photograph, its original bytes;
* ``KEY.json``: ``{"id": ..., "label": class index or null, "masks": [{"category": ..., "labels": [...]}, ...]}``;
* ``KEY.mask0.png``, ``KEY.mask1.png`` ...: one index map per entry of ``masks``, 16-bit, 0 = no label, 65535 = not measured.

The manifest holds all counts: the length of an epoch is known without opening a tar.
"""

import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from PIL import Image

from cefam.categories import IGNORED
from cefam.datasets import storage
from cefam.errors import CefamError, MissingError
from cefam.files import write_text
from cefam.pictures import open_mask, open_picture
from cefam.reading import read_description

MANIFEST = "manifest.json"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".ppm", ".pgm")
MaskCut = Literal["nearest", "cover"]


@dataclass(frozen=True)
class Mask:
    """One index map (H, W) of whole numbers: 0 is no label, 65535 is not measured."""

    category: str
    index_map: np.ndarray

    @property
    def labels(self) -> list[int]:
        """The label numbers that occur in it, ascending."""
        return [int(value) for value in np.unique(self.index_map) if value not in (0, IGNORED)]


@dataclass(frozen=True)
class Sample:
    """One photograph: ``image`` its original bytes, ``suffix`` their kind (".jpg"), ``label`` its class, if known."""

    id: str
    image: bytes
    suffix: str
    label: int | None = None
    masks: tuple[Mask, ...] = ()

    def picture(self) -> Image.Image:
        """The decoded photograph, upright.

        Raises:
            CefamError: where it cannot be decoded.
        """
        return open_picture(self.image, self.id)


@dataclass
class Manifest:
    """What a folder of shards holds; the counts are exact.

    ``mask_size`` is ``None`` where masks have several sizes. ``mask_cut`` is how masks are cut with their photographs:
    "nearest", or "cover": what a label covers in part is inside (the published reading of ImageNet-S).
    """

    source: str
    num_samples: int = 0
    num_pairs: int = 0
    mask_size: list[int] | None = None
    mask_cut: MaskCut = "nearest"
    labels: list[dict[str, Any]] = field(default_factory=list)
    shards: list[dict[str, Any]] = field(default_factory=list)
    format: str = "cefam-shards"
    version: int = 1

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read a folder's manifest.

        Raises:
            MissingError: where the folder has none, or a shard that it lists is missing.
            CefamError: where it is something else, or of another version.
        """
        place = storage.join(folder, MANIFEST)
        if not storage.exists(place):
            raise MissingError(f"{folder} holds no shards (no {MANIFEST}): make them with `cefam prepare`.")
        manifest = read_description(storage.read_text(place), cls, place, "run `cefam prepare` again", cls._complete)
        for shard in () if storage.is_url(folder) else manifest.shards:
            if not storage.exists(storage.join(folder, shard["file"])):
                raise MissingError(
                    f"{place} lists {shard['file']}, which does not exist: copy it, or run `cefam prepare` again."
                )
        return manifest

    def _complete(self) -> bool:
        counted = sum(shard["samples"] for shard in self.shards) == self.num_samples > 0
        hashed = all(shard["sha256"] for shard in self.shards)
        named = all({"number", "name", "category"} <= set(label) for label in self.labels)
        return counted and hashed and named and self.mask_cut in get_args(MaskCut)

    def write(self, folder: Path) -> None:
        """Write it; it comes last, so a folder without one is unfinished."""
        write_text(folder / MANIFEST, json.dumps(asdict(self), indent=1))

    def counts(self, folder: str | Path) -> dict[str, int]:
        """How many samples each shard holds, by its place, in order."""
        return {storage.join(folder, shard["file"]): shard["samples"] for shard in self.shards}


def is_shards(folder: str | Path) -> bool:
    """Whether a folder holds shards, rather than images."""
    return storage.exists(storage.join(folder, MANIFEST))


def check(sample: Sample) -> None:
    """Refuse a sample that cannot be stored, or would be read differently.

    Raises:
        CefamError: for a mask that is not (H, W) whole numbers of 16 bits, or masks of several sizes.
    """
    for mask in sample.masks:
        if mask.index_map.ndim != 2 or mask.index_map.dtype.kind not in "iub":
            given = f"{mask.index_map.shape} {mask.index_map.dtype}"
            raise CefamError(f"A {mask.category} mask of {sample.id} must be (H, W) whole numbers, got {given}.")
        if mask.index_map.max(initial=0) > np.iinfo(np.uint16).max or mask.index_map.min(initial=0) < 0:
            raise CefamError(f"A {mask.category} mask of {sample.id} has labels outside 0 .. 65535.")
    sizes = sorted({mask.index_map.shape for mask in sample.masks})
    if len(sizes) > 1:
        raise CefamError(f"The masks of {sample.id} have several sizes, {sizes}: resize them to one (nearest).")


def encode(sample: Sample, key: str) -> dict[str, Any]:
    """A sample as the members of a tar."""
    masks = [{"category": mask.category, "labels": mask.labels} for mask in sample.masks]
    members: dict[str, Any] = {
        "__key__": key,
        sample.suffix.lstrip(".").lower(): sample.image,
        "json": json.dumps({"id": sample.id, "label": sample.label, "masks": masks}).encode(),
    }
    for index, mask in enumerate(sample.masks):
        buffer = io.BytesIO()
        Image.fromarray(mask.index_map.astype(np.uint16)).save(buffer, format="PNG")
        members[f"mask{index}.png"] = buffer.getvalue()
    return members


def decode(members: dict[str, Any], with_masks: bool = True) -> Sample:
    """The inverse of :func:`encode`, for what webdataset reads from a tar.

    Raises:
        CefamError: where a member is missing, with shard and key.
    """
    where = f"{members.get('__url__', 'a shard')}, key {members['__key__']}"
    suffix = next((s for s in IMAGE_SUFFIXES if s.lstrip(".") in members), None)
    if suffix is None or "json" not in members:
        raise CefamError(
            f"{where}: the sample has no {'image' if suffix is None else 'json'}. Run `cefam prepare` again."
        )
    try:
        about = json.loads(members["json"])
        name, label, categories = about["id"], about["label"], [entry["category"] for entry in about["masks"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CefamError(f"{where}: its json cannot be read. Run `cefam prepare` again.") from error
    masks = []
    for index, category in enumerate(categories if with_masks else ()):
        if f"mask{index}.png" not in members:
            raise CefamError(f"{where}: mask {index} is missing. Run `cefam prepare` again.")
        masks.append(Mask(category, open_mask(members[f"mask{index}.png"], f"mask {index} of {where}")))
    return Sample(name, members[suffix.lstrip(".")], suffix, label, tuple(masks))
