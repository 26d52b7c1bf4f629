"""A folder of images, flat or with one subfolder per class."""

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cefam.datasets.contract import IMAGE_SUFFIXES, Sample
from cefam.datasets.sources.base import Source, stamp_of
from cefam.errors import CefamError, CefamWarning, MissingError
from cefam.io.reading import readable


def list_images(folder: str | Path) -> list[tuple[Path, int | None]]:
    """Images below a folder in sorted order, with their classes: the index of the subfolder, or ``None`` in a flat folder."""
    root = Path(folder)
    if not root.is_dir():
        raise MissingError(f"There is no folder {root}: name one that holds images.")
    files = list(_files_below(root, ()))
    found = sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise MissingError(f"No image ({', '.join(IMAGE_SUFFIXES)}) was found below {root}.")
    for path in found:
        if not path.is_file():
            raise MissingError(f"{path} is a broken link, or not a file: remove it.")
    others = Counter(path.suffix.lower() or path.name for path in files if path.suffix.lower() not in IMAGE_SUFFIXES)
    if others:
        kinds = ", ".join(f"{count} x {suffix}" for suffix, count in others.most_common(5))
        warnings.warn(
            f"{others.total()} file(s) below {root} are skipped, since they do not have the suffix of an image: {kinds}.",
            CefamWarning,
            stacklevel=2,
        )
    folders = [path.relative_to(root).parts[0] if path.parent != root else None for path in found]
    index = {name: position for position, name in enumerate(sorted(set(filter(None, folders))))}
    empty = sorted(
        path.name for path in root.iterdir() if path.is_dir() and holds_data(path) and path.name not in index
    )
    if index and empty:
        warnings.warn(
            f"{len(empty)} folder(s) below {root} hold no image and are no classes: {', '.join(empty[:5])}.",
            CefamWarning,
            stacklevel=2,
        )
    return [(path, None if folder is None else index[folder]) for path, folder in zip(found, folders, strict=True)]


def holds_data(path: Path) -> bool:
    """Whether a file or folder is user data: neither hidden (.DS_Store) nor created by an archiver or file server."""
    return not path.name.startswith(".") and path.name not in ("__MACOSX", "@eaDir", "#recycle", "Thumbs.db")


def _files_below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All files except hidden ones, including those in linked folders; links to a parent folder are not followed."""
    here = folder.resolve()
    if here in above:
        return
    for path in folder.iterdir():
        if not holds_data(path):
            continue
        if path.is_dir():
            yield from _files_below(path, (*above, here))
        else:
            yield path


class ImageFolder(Source):
    """Photographs without masks.

    Args:
        place: the folder.
        masks: must be empty.
    """

    def __init__(self, place: str, masks: list[str] | None = None) -> None:
        if masks:
            raise CefamError(f"A folder of images holds no masks, got masks = {list(masks)}: leave `masks` out.")
        self.root = Path(place)
        self.name, self.labels = f"images: {self.root.name}", []
        self.images = list_images(place)

    def __len__(self) -> int:
        return len(self.images)

    def stamp(self, index: int) -> Any:
        """File name and size."""
        return stamp_of(self.images[index][0])

    def sample(self, index: int) -> Sample:
        """One photograph, with the index of its folder as class."""
        path, label = self.images[index]
        return Sample(readable(path.relative_to(self.root).as_posix()), path.read_bytes(), path.suffix.lower(), label)

    def notes(self, counted: Counter[str]) -> list[str]:
        """Advice to shuffle, if the photographs are sorted by class."""
        if self.order is not None or len({label for _, label in self.images}) < 2:
            return []
        return [
            "The photographs lie class by class: to train from these shards, prepare them with `--shuffle true`, or a batch will be of few "
            "classes."
        ]
