"""The sample contract: how photographs and their masks are stored in tar shards. Writers and readers both use this file.

A folder of shards holds ``manifest.json`` and ``shard-000000.tar`` ... In a tar, a sample KEY has

* ``KEY.<jpg|png|...>``: the photograph, its original bytes;
* ``KEY.json``: ``{"id": ..., "label": class index or null, "masks": [{"category": ..., "labels": [...]}, ...]}``;
* ``KEY.mask0.png``, ``KEY.mask1.png`` ...: one index map per entry of ``masks``, 16-bit, 0 = no label.

The manifest counts everything, so that nobody has to open a tar to know how long an epoch is.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from cefam.files import alone, write_text

FORMAT, VERSION = "cefam-shards", 1
MANIFEST = "manifest.json"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".ppm", ".pgm")


@dataclass(frozen=True)
class Mask:
    """One index map (H, W) of whole numbers: ``labels`` are those that occur in it, 0 is none."""

    category: str
    index_map: np.ndarray


@dataclass(frozen=True)
class Sample:
    """One photograph: ``image`` its original bytes, ``suffix`` their kind (".jpg"), ``label`` its class, if known."""

    id: str
    image: bytes
    suffix: str
    label: int | None = None
    masks: tuple[Mask, ...] = ()

    def picture(self) -> Image.Image:
        """The decoded photograph.

        Raises:
            ValueError: where it cannot be decoded.
        """
        return open_picture(self.image, self.id)


def open_picture(source: bytes | Path, name: str) -> Image.Image:
    """Decode a photograph wholly, first frame, any mode.

    Raises:
        ValueError: where it is empty, truncated or no image.
    """
    try:
        picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        picture.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"The image {name} cannot be read ({error}): replace it or take it out of the data set."
        ) from error
    return picture


@dataclass
class Manifest:
    """What a folder of shards holds; the counts are exact. ``mask_size`` is ``None`` where masks have several sizes."""

    source: str
    num_samples: int = 0
    num_pairs: int = 0
    mask_size: list[int] | None = None
    labels: list[dict[str, Any]] = field(default_factory=list)
    shards: list[dict[str, Any]] = field(default_factory=list)
    format: str = FORMAT
    version: int = VERSION

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read a folder's manifest.

        Raises:
            FileNotFoundError: where the folder has none, or a shard that it lists is missing.
            ValueError: where it is none of this version.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no shards (no {MANIFEST}): make them with `cefam prepare`.")
        try:
            values = json.loads(path.read_text())
            if (values["format"], values["version"]) != (FORMAT, VERSION):
                raise KeyError("version")
            manifest = cls(**values)
            whole = sum(shard["samples"] for shard in manifest.shards) == manifest.num_samples > 0
            whole = whole and all(shard["sha256"] for shard in manifest.shards)
            if not whole or any({"number", "name", "category"} - set(label) for label in manifest.labels):
                raise KeyError("counts or labels")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is no manifest of {FORMAT} version {VERSION}: run `cefam prepare` again."
            ) from error
        for shard in manifest.shards:
            if not (path.parent / shard["file"]).is_file():
                raise FileNotFoundError(
                    f"{path} lists {shard['file']}, which is not there: copy it, or run `cefam prepare` again."
                )
        return manifest

    def files(self, folder: str | Path) -> list[str]:
        """Paths of the shards, in order."""
        return list(self.counts(folder))

    def counts(self, folder: str | Path) -> dict[str, int]:
        """How many samples each shard holds, by its path."""
        return {str(Path(folder) / shard["file"]): shard["samples"] for shard in self.shards}


class ShardWriter:
    """Write samples into shards; a context manager. The manifest comes last, so a folder without one is unfinished.

    Args:
        folder: where to; created. It must not hold a finished set.
        source: what the data is, for the manifest.
        samples_per_shard: a data worker reads whole shards, so make at least ranks x workers of them.
        labels: the vocabulary of the index maps: dicts with number, name and category.

    Raises:
        FileExistsError: where the folder holds a finished set.
    """

    def __init__(
        self, folder: str | Path, source: str, samples_per_shard: int = 256, labels: Iterable[dict[str, Any]] = ()
    ) -> None:
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard must be positive, got {samples_per_shard}.")
        self.folder = Path(folder)
        if (self.folder / MANIFEST).exists():
            raise FileExistsError(
                f"{folder} already holds a finished set of shards: name another folder, or remove it."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.samples_per_shard = samples_per_shard
        self.manifest = Manifest(source=source, labels=list(labels))
        self._alone = ExitStack()  # held while writing
        self._tar: Any = None
        self._count = self._pairs = 0
        self._mask_sizes: set[tuple[int, ...]] = set()
        self._ids: set[str] = set()

    def __enter__(self) -> Self:
        self._alone.enter_context(alone(self.folder))
        return self

    def write(self, sample: Sample) -> None:
        """Add one sample.

        Raises:
            ValueError: for an id that is there already, a mask that holds no whole numbers, or masks of several sizes.
        """
        import webdataset as wds

        if sample.id in self._ids:
            raise ValueError(f"There are two samples {sample.id!r}: ids name the pairs in all tables and must differ.")
        for mask in sample.masks:
            if mask.index_map.ndim != 2 or mask.index_map.dtype.kind not in "iub":
                given = f"{mask.index_map.shape} {mask.index_map.dtype}"
                raise ValueError(f"A {mask.category} mask of {sample.id} must be (H, W) whole numbers, got {given}.")
        sizes = sorted({mask.index_map.shape for mask in sample.masks})
        if len(sizes) > 1:
            raise ValueError(f"The masks of {sample.id} have several sizes, {sizes}: resize them to one (nearest).")
        self._ids.add(sample.id)
        if self._tar is None:
            # The name ends in .part until the shard is whole; a stopped run leaves no shard that looks finished.
            self._tar = wds.TarWriter(str(self._path()) + ".part", mtime=0, encoder=False)
        encoded = encode(sample, f"{self.manifest.num_samples:08d}")
        self._tar.write(encoded)
        self._count += 1
        self._pairs += sum(len(mask["labels"]) for mask in json.loads(encoded["json"])["masks"])
        self.manifest.num_samples += 1
        self._mask_sizes.update(sizes)
        if self._count == self.samples_per_shard:
            self._close_shard()

    def _path(self) -> Path:
        return self.folder / f"shard-{len(self.manifest.shards):06d}.tar"

    def _close_shard(self) -> None:
        self._tar.close()
        path = self._path()
        os.replace(f"{path}.part", path)
        with path.open("rb") as tar:
            digest = hashlib.file_digest(tar, "sha256").hexdigest()
        about = {"file": path.name, "samples": self._count, "pairs": self._pairs, "sha256": digest}
        self.manifest.shards.append(about)
        self.manifest.num_pairs += self._pairs
        self._tar, self._count, self._pairs = None, 0, 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._alone:
            if kind is None:
                self._finish()
            else:
                if self._tar is not None:
                    with suppress(OSError):  # a full disk refuses to close it, too
                        self._tar.close()
                # It may be there without a tar: a signal can come while one is being opened.
                Path(f"{self._path()}.part").unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._tar is not None:
            self._close_shard()
        if not self.manifest.num_samples:
            raise ValueError(f"No sample was found in {self.manifest.source}: nothing was written to {self.folder}.")
        if len(self._mask_sizes) == 1:
            self.manifest.mask_size = list(self._mask_sizes.pop())
        write_text(self.folder / MANIFEST, json.dumps(asdict(self.manifest), indent=1))


def encode(sample: Sample, key: str) -> dict[str, Any]:
    """A sample as the members of a tar."""
    masks = [
        {"category": mask.category, "labels": [int(v) for v in np.unique(mask.index_map) if v]} for mask in sample.masks
    ]
    members: dict[str, Any] = {
        "__key__": key,
        sample.suffix.lstrip(".").lower(): sample.image,
        "json": json.dumps({"id": sample.id, "label": sample.label, "masks": masks}).encode(),
    }
    for index, mask in enumerate(sample.masks):
        buffer = io.BytesIO()
        if mask.index_map.max(initial=0) > np.iinfo(np.uint16).max or mask.index_map.min(initial=0) < 0:
            raise ValueError(f"A {mask.category} mask of {sample.id} has labels outside 0 .. 65535.")
        Image.fromarray(mask.index_map.astype(np.uint16)).save(buffer, format="PNG")
        members[f"mask{index}.png"] = buffer.getvalue()
    return members


def decode(members: dict[str, Any]) -> Sample:
    """The inverse of :func:`encode`, for what webdataset reads from a tar.

    Raises:
        ValueError: where a member is missing, with shard and key.
    """
    where = f"{members.get('__url__', 'a shard')}, key {members['__key__']}"
    suffix = next((s for s in IMAGE_SUFFIXES if s.lstrip(".") in members), None)
    if suffix is None or "json" not in members:
        raise ValueError(
            f"{where}: the sample has no {'image' if suffix is None else 'json'}. Run `cefam prepare` again."
        )
    try:
        about = json.loads(members["json"])
        name, label, categories = about["id"], about["label"], [entry["category"] for entry in about["masks"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: its json cannot be read. Run `cefam prepare` again.") from error
    masks = []
    for index, category in enumerate(categories):
        if f"mask{index}.png" not in members:
            raise ValueError(f"{where}: mask {index} is missing. Run `cefam prepare` again.")
        picture = open_picture(members[f"mask{index}.png"], f"mask {index} of {where}")
        masks.append(Mask(category, np.asarray(picture).astype(np.int32)))
    return Sample(name, members[suffix.lstrip(".")], suffix, label, tuple(masks))


def unreadable(error: Exception) -> bool:
    """What webdataset is told to do with a shard that is no whole tar.

    Raises:
        ValueError: always; the message names the shard.
    """
    if isinstance(error, ValueError):  # said already, further inside
        raise error
    raise ValueError(
        f"A shard cannot be read ({error}): copy the shards again, or run `cefam prepare` again."
    ) from error


def read_members(path: str | Path, count: int | None = None) -> Iterator[dict[str, Any]]:
    """The members of all samples of one shard, in order, before :func:`decode`.

    Raises:
        ValueError: where the shard holds another number of samples than ``count``: a copy that was cut between two samples
            is a whole tar.
    """
    import webdataset as wds

    found = 0
    for members in wds.DataPipeline(wds.SimpleShardList([str(path)]), wds.tarfile_to_samples(handler=unreadable)):
        found += 1
        yield members
    if count is not None and found != count:
        raise ValueError(
            f"{path} holds {found} samples, its manifest says {count}: copy the shards again, or run `cefam prepare` again."
        )


def read_shard(path: str | Path, count: int | None = None) -> Iterator[Sample]:
    """All samples of one shard, in order; see :func:`read_members`."""
    return (decode(members) for members in read_members(path, count))
