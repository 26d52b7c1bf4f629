"""Per-pair records: one line per (pair, method, protocol). They are the source of every table."""

import csv
import heapq
import math
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from cefam.concepts import ConceptSet
from cefam.evaluator import METRICS, PairValues

VALUES = (*METRICS, "auc", "auc_high", "auc_low")
COLUMNS = (
    "image",
    "mask",
    "label",
    "word",
    "category",
    "method",
    "protocol",
    *VALUES,
    "stage",
    "expressible",
)


def rows_of(found: PairValues, ids: list[str], categories: list[str], concepts: ConceptSet) -> Iterator[list[Any]]:
    """The records of one batch, in the order of ``COLUMNS``; a category that is not measured is ''."""
    images, places, labels = found.pairs.image.tolist(), found.place.tolist(), found.label.tolist()
    category = found.category.tolist()
    words = [concepts.concepts[c].word for c in found.pairs.concept.tolist()]
    for method, protocols in found.values.items():
        for protocol, values in protocols.items():
            columns = {name: getattr(values, name) for name in (*METRICS, "auc", "stage")}
            columns |= {"auc_high": found.auc_high, "auc_low": found.auc_low, "expressible": values.expressible.int()}
            measured = [columns[name].tolist() for name in (*VALUES, "stage", "expressible")]
            for row, cells in enumerate(zip(*measured, strict=True)):
                name = categories[category[row]] if category[row] >= 0 else ""
                yield [ids[images[row]], places[row], labels[row], words[row], name, method, protocol, *cells]


def merge(parts: Iterable[Path], path: Path, run_length: int = 500_000) -> None:
    """Join the parts that processes wrote into one sorted file: its order does not tell how many there were.

    By image, mask and label; the methods of a pair keep their order. Sorted in runs on disk, since Broden has 11 million
    lines.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, ExitStack() as stack:
        runs: list[Path] = []
        for part in parts:
            lines = csv.reader(stack.enter_context(part.open(newline="", encoding="utf-8")))
            while rows := sorted(islice(lines, run_length), key=_place):
                runs.append(Path(folder) / str(len(runs)))
                with runs[-1].open("w", newline="", encoding="utf-8") as out:
                    csv.writer(out).writerows(rows)
        sources: Any = [csv.reader(stack.enter_context(run.open(newline="", encoding="utf-8"))) for run in runs]
        with path.open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(COLUMNS)
            writer.writerows(heapq.merge(*sources, key=_place))


def _place(row: Any) -> tuple[str, int, int]:
    return row[0], int(row[1]), int(row[2])


def read(path: str | Path) -> Iterator[dict[str, Any]]:
    """Records as dicts; the values (``VALUES``) as floats, NaN where undefined, and ``expressible`` as a bool."""
    with Path(path).open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            numbers: dict[str, Any] = {name: float(row[name]) for name in VALUES}
            yield {**row, **numbers, "expressible": row["expressible"] == "1"}


class Cell:
    """Sums of one table cell; means leave out undefined pairs, and only the Hit Rate counts inexpressible ones."""

    def __init__(self) -> None:
        self.pairs = self.undefined = self.expressible = 0
        self.values = {name: array("d") for name in METRICS}

    def add(self, record: dict[str, Any]) -> None:
        """Count one record."""
        self.pairs += 1
        if math.isnan(record["nra"]):
            self.undefined += 1
            return
        self.expressible += record["expressible"]
        for name in METRICS:
            if record["expressible"]:
                self.values[name].append(record[name])
            elif name == "hit":
                self.values[name].append(0.0)

    def mean(self, metric: str) -> float | None:
        """The mean of a metric, or ``None`` where no pair has it; summed exactly, so that order cannot matter."""
        values = self.values[metric]
        return math.fsum(values) / len(values) if values else None
