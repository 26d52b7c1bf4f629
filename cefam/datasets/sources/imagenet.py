"""ImageNet (ILSVRC 2012): the original tars, or one folder per wnid."""

import io
import tarfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from cefam.datasets.contract import IMAGE_SUFFIXES, Sample
from cefam.datasets.sources.base import Source, stamp_of
from cefam.datasets.sources.images import list_images
from cefam.errors import CefamError, MissingError, near


@cache
def wnids() -> list[str]:
    """The 1,000 wnids in class order (sorted), from timm."""
    from timm import data

    info: Any = data.ImageNetInfo()  # type: ignore[attr-defined]
    return [info.index_to_label_name(index) for index in range(info.num_classes())]


def class_of(wnid: str) -> int:
    """Index of a wnid among the 1,000 classes.

    Raises:
        CefamError: for a name that is not one of them.
    """
    try:
        return wnids().index(wnid)
    except ValueError:
        raise CefamError(
            f"{wnid!r} is not the wnid of one of ImageNet's 1,000 classes.{near(wnid, wnids())} Folders are called n01440764 and so on."
        ) from None


class ImageNet(Source):
    """Photographs with their class, 0 to 999.

    Args:
        place: ``ILSVRC2012_img_train.tar`` (a tar of tars), ``ILSVRC2012_img_val.tar``, a folder with one of them, or a folder with
            one folder per wnid. The classes of the validation tar are read from ``ILSVRC2012_devkit_t12.tar.gz`` in the
            same folder, if it exists and scipy is installed; otherwise they are unknown, which does not affect training.
    """

    shuffle_by_default = True  # the tars are sorted by class

    def __init__(self, place: str) -> None:
        self.labels = []
        path = Path(place)
        tars = sorted(path.glob("ILSVRC2012_img_*.tar"))
        if len(tars) > 1:
            raise CefamError(f"{path} holds {len(tars)} tars called ILSVRC2012_img_*.tar: name one of them.")
        path = tars[0] if tars else path
        self.path, self.name = path, f"imagenet: {path.name}"
        # Name, class, and location: a path, or (first byte, length) in the tar.
        self.entries: list[tuple[str, int | None, Path | tuple[int, int]]]
        self.entries = _from_tar(path) if path.is_file() else _from_folder(path)
        if not self.entries:
            raise MissingError(f"No image was found in {path}.")

    def __len__(self) -> int:
        return len(self.entries)

    def stamp(self, index: int) -> Any:
        """Name, class, and file name and size or position in the tar."""
        name, label, where = self.entries[index]
        return [name, label, *(stamp_of(where) if isinstance(where, Path) else where)]

    def sample(self, index: int) -> Sample:
        """One photograph."""
        name, label, where = self.entries[index]
        if isinstance(where, Path):
            return Sample(name, where.read_bytes(), where.suffix.lower(), label)
        with self.path.open("rb") as tar:
            tar.seek(where[0])
            return Sample(name, tar.read(where[1]), Path(name).suffix.lower(), label)


def _from_folder(root: Path) -> list[tuple[str, int | None, Path | tuple[int, int]]]:
    images = [path for path, _ in list_images(root)]
    return [(path.relative_to(root).as_posix(), class_of(path.relative_to(root).parts[0]), path) for path in images]


def _from_tar(path: Path) -> list[tuple[str, int | None, Path | tuple[int, int]]]:
    """Name, class, and position (first byte, length) of every image in a tar and in the tars within it."""
    found: list[tuple[str, int | None, Path | tuple[int, int]]] = []
    truth = _validation_classes(path.parent)
    try:
        with tarfile.open(path, "r:") as outer:
            for member in outer:
                if member.name.endswith(".tar"):
                    wnid, inner = Path(member.name).stem, outer.extractfile(member)
                    with tarfile.open(fileobj=inner, mode="r:") as of_class:
                        # The tars are uncompressed, so offsets add up.
                        found += [
                            (
                                f"{wnid}/{image.name}",
                                class_of(wnid),
                                (member.offset_data + image.offset_data, image.size),
                            )
                            for image in of_class
                            if Path(image.name).suffix.lower() in IMAGE_SUFFIXES
                        ]
                elif Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                    name = member.name.removeprefix("./")
                    parent = Path(name).parent.name
                    label = class_of(parent) if parent in wnids() else truth.get(Path(name).name)
                    found.append((name, label, (member.offset_data, member.size)))
    except tarfile.TarError as error:
        raise CefamError(f"{path} cannot be read as a tar ({error}): copy it again.") from error
    return sorted(found, key=lambda entry: entry[0])


def _validation_classes(folder: Path) -> dict[str, int]:
    """Class of each validation image by file name, from the devkit; empty if the devkit or scipy is missing."""
    devkit = folder / "ILSVRC2012_devkit_t12.tar.gz"
    if not devkit.is_file():
        return {}
    try:
        from scipy.io import loadmat
    except ImportError:
        return {}
    try:
        with tarfile.open(devkit) as tar:
            members = {Path(member.name).name: tar.extractfile(member) for member in tar if member.isfile()}
            truth, meta = (members[name].read() for name in ("ILSVRC2012_validation_ground_truth.txt", "meta.mat"))  # type: ignore[union-attr]
        numbers = [int(line) for line in truth.split()]
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        classes = [class_of(wnid_of[number]) for number in numbers]
    except (tarfile.TarError, EOFError, zlib.error, OSError, KeyError, ValueError, TypeError) as error:
        raise CefamError(
            f"{devkit} cannot be read ({type(error).__name__}: {error}): copy it again, or remove it."
        ) from error
    return {f"ILSVRC2012_val_{index:08d}.JPEG": label for index, label in enumerate(classes, start=1)}
