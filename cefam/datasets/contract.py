"""The sample contract: photographs with masks, and their format in tar shards, for both writers and readers.

A folder of shards, local or behind a URL, holds ``manifest.json`` and ``shard-000000.tar`` ... In a tar, a sample KEY has

* ``KEY.<jpg|png|...>``: the original bytes of the photograph;
* ``KEY.json``: ``{"id": ..., "label": class index or null, "masks": [{"category": ..., "labels": [...]}, ...], "crc32": ...}``,
  and ``"present": [label numbers]`` if the image-level labels are known;
* ``KEY.mask0.png``, ``KEY.mask1.png`` ...: one index map per entry of ``masks``, 16-bit, 0 = no label, 65535 = not measured.

``crc32`` covers the photograph, the masks and the rest of the json, in this order, so that a damaged sample can be named.

The manifest holds all counts, so the length of an epoch is known without opening a tar. A manifest with ``layout`` "webdataset"
describes existing shards in the folder ``root``, with a photograph and its class in ``KEY.cls``, or ``label`` or ``cls`` of
``KEY.json``.
"""

import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from PIL import Image

from cefam.concepts.categories import IGNORED
from cefam.datasets import storage
from cefam.errors import CefamError, MissingError
from cefam.images.pictures import open_mask, open_picture, read_pixels
from cefam.io.files import write_text
from cefam.io.reading import read_description

if TYPE_CHECKING:  # preparing data needs no torch
    from torch import Tensor

MANIFEST = "manifest.json"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".ppm", ".pgm")
MaskCut = Literal["nearest", "cover"]
ShardLayout = Literal["cefam", "webdataset"]


@dataclass(frozen=True)
class Mask:
    """One index map (H, W) of integers: 0 = no label, 65535 = not measured."""

    category: str
    index_map: np.ndarray

    @property
    def labels(self) -> list[int]:
        """Label numbers in the index map, ascending."""
        return [int(value) for value in np.unique(self.index_map) if value not in (0, IGNORED)]


@dataclass(frozen=True)
class Sample:
    """One photograph: ``image`` holds the original bytes, ``suffix`` the file type (".jpg"), ``label`` the class, if known.

    ``present`` lists the numbers of the image-level labels, if all of them are known (AwA2's attributes). ``where`` names
    the shard and key for messages.
    """

    id: str
    image: bytes
    suffix: str
    label: int | None = None
    masks: tuple[Mask, ...] = ()
    present: tuple[int, ...] | None = None
    where: str = field(default="", compare=False)

    def picture(self) -> Image.Image:
        """The decoded photograph, upright.

        Raises:
            CefamError: if it cannot be decoded.
        """
        return open_picture(self.image, self._name)

    def pixels(self) -> "Tensor":
        """The pixels of the photograph, upright, uint8 (3, H, W).

        Raises:
            CefamError: if it cannot be decoded.
        """
        return read_pixels(self.image, self._name)

    @property
    def _name(self) -> str:
        return f"{self.id} ({self.where})" if self.where else self.id


@dataclass(frozen=True)
class Shard:
    """A tar at the path or URL ``place``, with its number of samples (-1: unknown) and checksum ("": unknown)."""

    place: str
    count: int = -1
    sha256: str = ""
    layout: ShardLayout = "cefam"


@dataclass
class Manifest:
    """Contents of a folder of shards; the counts are exact.

    ``mask_size`` is ``None`` if the masks differ in size. ``mask_cut`` tells how masks are resized with their photographs:
    "nearest", or "cover", where partly covered pixels count as inside (the published reading of ImageNet-S).
    """

    source: str
    num_samples: int = 0
    num_pairs: int = 0
    mask_size: list[int] | None = None
    mask_cut: MaskCut = "nearest"
    labels: list[dict[str, Any]] = field(default_factory=list)
    shards: list[dict[str, Any]] = field(default_factory=list)
    layout: ShardLayout = "cefam"
    root: str | None = None
    format: str = "cefam-shards"
    version: int = 1

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read the manifest of a folder, local or behind a URL.

        Raises:
            MissingError: if the manifest, or a shard that it lists, is missing.
            CefamError: if it has another format or version.
        """
        manifest = cls.find(folder)
        if manifest is None:
            raise MissingError(f"{folder} holds no shards (no {MANIFEST}): make them with `cefam prepare`.")
        return manifest

    @classmethod
    def find(cls, folder: str | Path) -> Self | None:
        """As :meth:`read`, but ``None`` if the folder has no manifest."""
        place = storage.join(folder, MANIFEST)
        try:
            text = storage.read_bytes(place)
        except MissingError:
            return None
        manifest = read_description(text, cls, place, "run `cefam prepare` again", cls._complete)
        if manifest.root is not None and storage.is_url(folder):
            raise CefamError(f"{place} names another place, {manifest.root}: only a manifest of your own may do that.")
        for shard, entry in zip(manifest.placed(folder), manifest.shards, strict=True):
            if not storage.is_url(shard.place) and not Path(shard.place).is_file():
                raise MissingError(
                    f"{place} lists {entry['file']}, which does not exist: copy it, or run `cefam prepare` again."
                )
        return manifest

    def _complete(self) -> bool:
        counted = sum(shard["samples"] for shard in self.shards) == self.num_samples > 0
        hashed = all(shard["sha256"] and isinstance(shard["sha256"], str) for shard in self.shards)
        counted &= isinstance(self.root, str | None)
        within = not any(
            storage.is_url(s["file"]) or ".." in Path(s["file"]).parts or Path(s["file"]).is_absolute()
            for s in self.shards
        )
        named = all({"number", "name", "category"} <= set(label) for label in self.labels)
        known = self.mask_cut in get_args(MaskCut) and self.layout in get_args(ShardLayout)
        return counted and hashed and within and named and known

    def write(self, folder: Path) -> None:
        """Write the manifest; it is written last, so a folder without a manifest is unfinished."""
        write_text(folder / MANIFEST, json.dumps(asdict(self), indent=1))

    def placed(self, folder: str | Path) -> list[Shard]:
        """The shards of a folder, in order."""
        root = folder if self.root is None else self.root
        return [Shard(storage.join(root, s["file"]), s["samples"], s["sha256"], self.layout) for s in self.shards]


def check(sample: Sample) -> None:
    """Reject a sample that cannot be stored without loss."""
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
    """Convert a sample to the members of a tar."""
    masks = [{"category": mask.category, "labels": mask.labels} for mask in sample.masks]
    about: dict[str, Any] = {"id": sample.id, "label": sample.label, "masks": masks}
    if sample.present is not None:
        about["present"] = list(sample.present)
    pictures = []
    for mask in sample.masks:
        buffer = io.BytesIO()
        Image.fromarray(mask.index_map.astype(np.uint16)).save(buffer, format="PNG")
        pictures.append(buffer.getvalue())
    about["crc32"] = _crc32(about, sample.image, *pictures)
    return {
        "__key__": key,
        sample.suffix.lstrip(".").lower(): sample.image,
        "json": json.dumps(about).encode(),
        **{f"mask{index}.png": picture for index, picture in enumerate(pictures)},
    }


def _crc32(about: Mapping[str, Any], *contents: bytes) -> int:
    found = 0
    rest = json.dumps({name: value for name, value in about.items() if name != "crc32"}).encode()
    for content in (*contents, rest):
        found = zlib.crc32(content, found)
    return found


def decode(members: Mapping[str, Any], layout: ShardLayout = "cefam", with_masks: bool = True) -> Sample:
    """A sample from the members of a tar: the inverse of :func:`encode`."""
    where = f"{members.get('__url__', 'a shard')}, key {members['__key__']}"
    suffix = next((s for s in IMAGE_SUFFIXES if s.lstrip(".") in members), None)
    if suffix is None or ("json" not in members and layout == "cefam"):
        raise CefamError(
            f"{where}: the sample has no {'image' if suffix is None else 'json'}. Run `cefam prepare` again."
        )
    image = members[suffix.lstrip(".")]
    if layout == "webdataset":
        return Sample(members["__key__"], image, suffix, _label(members, where), where=where)
    try:
        about = json.loads(members["json"])
        name, label, categories = about["id"], about["label"], [entry["category"] for entry in about["masks"]]
        present = None if about.get("present") is None else tuple(map(int, about["present"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CefamError(
            f"{where}: its json cannot be read. Copy the shard again, or run `cefam prepare` again."
        ) from error
    for index in range(len(categories)):
        if f"mask{index}.png" not in members:
            raise CefamError(f"{where}: mask {index} is missing. Run `cefam prepare` again.")
    pictures = [members[f"mask{index}.png"] for index in range(len(categories))]
    if "crc32" in about and about["crc32"] != _crc32(about, image, *pictures):
        raise CefamError(f"{where}: its bytes are others than when it was written. Copy the shard again.")
    masks = [
        Mask(category, open_mask(picture, f"mask {index} of {where}"))
        for index, (category, picture) in enumerate(zip(categories, pictures, strict=True))
        if with_masks
    ]
    return Sample(name, image, suffix, label, tuple(masks), present, where)


def _label(members: Mapping[str, Any], where: str) -> int | None:
    """Class of a webdataset sample, from ``cls``, or ``label`` or ``cls`` of the json; ``None`` if there is none."""
    try:
        if "cls" in members:
            return int(members["cls"])
        about = json.loads(members.get("json", "{}"))
        found = about.get("label", about.get("cls")) if isinstance(about, dict) else None
        return None if found is None else int(found)
    except (ValueError, TypeError) as error:
        raise CefamError(f"{where}: its class cannot be read ({error}).") from error
