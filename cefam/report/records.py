"""Per-pair records: one line per (pair, method, protocol). They are the source of every table."""

import csv
import heapq
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np

from cefam.concepts.sets import ConceptSet
from cefam.errors import CefamError
from cefam.evaluation.evaluator import PairValues
from cefam.metrics.table import AREAS, METRICS, SECONDARY

# Maps are in single precision: further digits depend on the order of summation.
DIGITS = 9


BEFORE = ("image", "mask", "label", "word", "category", "method", "protocol")
AFTER = ("stage", "expressible")
PAIR = ("image", "mask", "label")


def values(secondary: Sequence[str] = ()) -> tuple[str, ...]:
    """Numeric columns: the metrics and the areas from which they are computed."""
    return (*METRICS, *secondary, *AREAS)


def columns(secondary: Sequence[str] = ()) -> tuple[str, ...]:
    """All columns."""
    return (*BEFORE, *values(secondary), *AFTER)


def rows_of(
    measured: PairValues,
    ids: Sequence[str],
    categories: Sequence[str],
    concepts: ConceptSet,
    secondary: Sequence[str] = (),
) -> Iterator[list[Any]]:
    """Yield the records of one batch, with columns as in :func:`columns`; a category that is not measured is ''."""
    found = measured.found
    images, places, labels = found.pairs.image.tolist(), found.place.tolist(), found.label.tolist()
    category = found.category.tolist()
    words = [concepts.concepts[c].word for c in found.pairs.concept.tolist()]
    areas = {"auc_high": measured.auc_high, "auc_low": measured.auc_low}
    for method, protocols in measured.values.items():
        for protocol, of_method in protocols.items():
            numbers = {**of_method.metrics, "auc": of_method.auc, **areas}
            texts = [[f"{value:.{DIGITS}g}" for value in numbers[name].tolist()] for name in values(secondary)]
            rest = [of_method.stage.tolist(), of_method.expressible.int().tolist()]
            for row, cells in enumerate(zip(*texts, *rest, strict=True)):
                name = categories[category[row]] if category[row] >= 0 else ""
                yield [ids[images[row]], places[row], labels[row], words[row], name, method, protocol, *cells]


def merge(lines: Iterator[list[str]], path: Path, secondary: Sequence[str] = (), run_length: int = 500_000) -> None:
    """Write records to one file, sorted by image, mask and label, so that it does not depend on the number of processes.

    The sort is stable: the methods of a pair keep their order. It is an external merge sort, since Broden has 11 million
    lines.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, ExitStack() as stack:
        runs: list[Path] = []
        while rows := sorted(islice(lines, run_length), key=_place):
            runs.append(Path(folder) / str(len(runs)))
            with runs[-1].open("w", newline="", encoding="utf-8") as out:
                csv.writer(out).writerows(rows)
        sources: Any = [csv.reader(stack.enter_context(run.open(newline="", encoding="utf-8"))) for run in runs]
        with path.open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(columns(secondary))
            writer.writerows(heapq.merge(*sources, key=_place))


def _place(row: Any) -> tuple[str, int, int]:
    return row[0], int(row[1]), int(row[2])


@dataclass(frozen=True)
class Block:
    """A block of records by column: ``text`` as lists, ``numbers`` (:func:`values`) and ``expressible`` as arrays."""

    text: dict[str, list[str]]
    numbers: dict[str, np.ndarray]
    expressible: np.ndarray

    def pairs(self) -> np.ndarray:
        """A hash of each record's pair, consistent within a process."""
        return np.fromiter(
            map(hash, zip(*(self.text[name] for name in PAIR), strict=True)), np.int64, len(self.expressible)
        )

    def where(self, rows: np.ndarray) -> "Block":
        """The records for which ``rows`` is true."""
        numbers = {name: column[rows] for name, column in self.numbers.items()}
        return Block(
            {name: list(compress(column, rows)) for name, column in self.text.items()}, numbers, self.expressible[rows]
        )


def blocks(path: str | Path, methods: Mapping[str, str] | None = None, size: int = 5_000) -> Iterator[Block]:
    """Yield the records of a file in blocks of ``size``, by column; ``methods`` gives new names by old ones."""
    renamed = methods or {}
    with Path(path).open(newline="", encoding="utf-8") as lines:
        reader = csv.reader(lines)
        header = next(reader, [])
        missing = sorted(set(columns()) - set(header))
        if missing:
            raise CefamError(f"{path} is not a file of records: it has no column {', '.join(map(repr, missing))}.")
        numeric = values([name for name in SECONDARY if name in header])
        while rows := list(islice(reader, size)):
            try:
                if any(len(row) != len(header) for row in rows):
                    raise ValueError("a line has more or fewer values than the header")
                cells = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
                numbers = {name: np.array(list(map(float, cells[name]))) for name in numeric}
            except ValueError as error:
                raise CefamError(f"{path}, up to line {reader.line_num}: {error}.") from error
            text = {name: cells[name] for name in (*BEFORE, "stage")}
            text["method"] = [renamed.get(name, name) for name in text["method"]]
            yield Block(text, numbers, np.array(cells["expressible"]) == "1")


def read(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file as dicts: :func:`values` as floats, NaN where undefined, and ``expressible`` as a bool.

    :func:`blocks` is faster for large files, and raises the same errors.
    """
    for block in blocks(path):
        numbers = {name: column.tolist() for name, column in block.numbers.items()}
        every = {**block.text, **numbers, "expressible": block.expressible.tolist()}
        yield from (dict(zip(every, row, strict=True)) for row in zip(*every.values(), strict=True))


def blocks_of(found: Sequence[dict[str, Any]]) -> Iterator[Block]:
    """Convert records from :func:`read` to a block."""
    if found:
        numbers = {name: np.array([row[name] for row in found]) for name in values(list(SECONDARY)) if name in found[0]}
        text = {name: [str(row.get(name, "")) for row in found] for name in BEFORE}
        yield Block(text, numbers, np.array([bool(row["expressible"]) for row in found]))


def inexpressible_pairs(found: Iterable[Block]) -> set[int]:
    """Hashes of the pairs that at least one method cannot express."""
    return {int(pair) for block in found for pair in block.where(~block.expressible).pairs()}
