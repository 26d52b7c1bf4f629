"""Animals with Attributes 2 in its original layout: photographs of 50 classes, and the attributes of each class."""

from pathlib import Path
from typing import Any

from cefam.datasets.contract import Sample
from cefam.datasets.sources.base import Source, stamp_of
from cefam.datasets.sources.images import list_images
from cefam.errors import CefamError, MissingError
from cefam.io.reading import read_text

TABLES = ("classes.txt", "predicates.txt", "predicate-matrix-binary.txt")


class AwA2(Source):
    """Photographs with their class (0 to 49) and the attributes of that class, numbered as in ``ConceptSet.awa2()``.

    Attributes are annotated per class, not per photograph: not every photograph of a zebra shows its hooves.

    Args:
        place: the folder with classes.txt, predicates.txt, predicate-matrix-binary.txt and JPEGImages/.
    """

    def __init__(self, place: str) -> None:
        self.root = Path(place)
        for name in TABLES:
            if not (self.root / name).is_file():
                raise MissingError(f"{self.root} is not a folder of AwA2: it has no {name}.")
        classes, predicates, matrix = (read_text(self.root / name).splitlines() for name in TABLES)
        self.classes = [line.split()[1] for line in classes if line.strip()]
        names = [line.split()[1] for line in predicates if line.strip()]
        rows = [[cell == "1" for cell in line.split()] for line in matrix if line.strip()]
        if len(rows) != len(self.classes) or any(len(row) != len(names) for row in rows):
            raise CefamError(
                f"{self.root / TABLES[2]} does not hold {len(self.classes)} rows of {len(names)} numbers: copy it again."
            )
        self.attributes = [tuple(n for n, holds in enumerate(row, start=1) if holds) for row in rows]
        self.labels = [{"number": n, "name": name, "category": "attribute"} for n, name in enumerate(names, start=1)]
        self.images = [path for path, _ in list_images(self.root / "JPEGImages")]
        unknown = {path.parent.name for path in self.images} - set(self.classes)
        if unknown:
            raise CefamError(f"The folder {min(unknown)} of {self.root / 'JPEGImages'} is no class of classes.txt.")
        self.name = f"awa2: {self.root.name}"

    def __len__(self) -> int:
        return len(self.images)

    def stamp(self, index: int) -> Any:
        """File name and size."""
        return stamp_of(self.images[index])

    def sample(self, index: int) -> Sample:
        """One photograph."""
        path = self.images[index]
        label = self.classes.index(path.parent.name)
        name = path.relative_to(self.root / "JPEGImages").as_posix()
        return Sample(name, path.read_bytes(), path.suffix.lower(), label, present=self.attributes[label])
